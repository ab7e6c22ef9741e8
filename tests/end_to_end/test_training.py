"""Hosting and training as users do it: real daemons, and a trainer in another process or thread."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import p2pnode as package
from p2pnode.config import Settings
from p2pnode.errors import (
    DeadlineExceededError,
    DialError,
    HostLostError,
    NoLiveExpertError,
    NoPeersError,
    NotAMemberError,
    PermissionDeniedError,
    SchemaError,
    TensorTooLargeError,
    TokenExpiredError,
    WrongRunError,
)
from p2pnode.testing.daemons import ask_command, environment

pytestmark = pytest.mark.real
GRID = "digits/ffn0.[0:2].[0:2]"
QUICK = ("--set", "hosting.update_period=1.5", "--set", "hosting.threads=1")
ROOT = Path(package.__file__).parent.parent


@pytest.fixture
def owner(tmp_path):
    """The data directory of a run's owner."""
    ask_command("run", "create", "digits", "--data-dir", tmp_path / "owner")
    return tmp_path / "owner"


def invite(owner, *arguments):
    return ask_command("run", "invite", "digits", "--data-dir", owner, *arguments)["invite"]


@pytest.fixture
def two_hosts(start, owner):
    token = invite(owner)
    first = start("first", "--invite", token, "--experts", "digits/ffn0.[0:1].[0:2]", *QUICK)
    second = start(
        "second", "--invite", token, "--experts", "digits/ffn0.[1:2].[0:2]",
        "--bootstrap", first.address, *QUICK,
    )  # fmt: skip
    return first, second


def connect(daemon, token, **trainer):
    settings = Settings().replace(trainer=trainer)
    return package.connect(daemon.address, run="digits", invite=token, settings=settings)


def test_hosting_is_visible_from_every_node(start, owner):
    token = invite(owner)
    first = start("first", "--invite", token, *QUICK)
    second = start("second", "--bootstrap", first.address, *QUICK)
    added = ask_command(
        "host", "--data-dir", first.data_dir, "--experts", GRID, "--hidden-dim", "8"
    )
    assert [each["uid"] for each in added["experts"]] == [
        "digits/ffn0.0.0", "digits/ffn0.0.1", "digits/ffn0.1.0", "digits/ffn0.1.1",
    ]  # fmt: skip
    assert len(first.ask("experts")) == 4
    ask_command("run", "inspect", "digits", "--data-dir", first.data_dir)
    # The second node is no member; under its name `digits` it looks for the open run.
    assert second.ask("experts", GRID)[0]["hosts"] == []
    ask_command("host", "--data-dir", second.data_dir, "--experts", "digits/ffn0.0.0",
            "--invite", token, "--hidden-dim", "8")  # fmt: skip
    for _ in range(50):
        found = second.ask("experts", GRID)
        if len(found[0]["hosts"]) == 2:
            break
        time.sleep(0.1)
    assert {host["peer_id"] for host in found[0]["hosts"]} == {first.peer_id, second.peer_id}
    assert [len(each["hosts"]) for each in found] == [2, 1, 1, 1]


def test_remote_experts_train_and_survive_a_killed_host(start, two_hosts, owner):
    first, second = two_hosts
    token = invite(owner, "--scope", "train")
    torch.manual_seed(0)
    inputs, targets = torch.randn(32, 64), torch.randn(32, 64)
    with connect(first, token) as swarm:
        layer = swarm.mixture_of_experts("ffn0", grid=(2, 2), in_features=64, k_best=2)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)

        def step():
            loss = torch.nn.functional.mse_loss(layer(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        before = [step() for _ in range(20)]
        assert before[-1] < before[0]
        second.kill()
        after = [step() for _ in range(20)]
        assert after[-1] < before[0]
        assert swarm.stats().failed_calls > 0
    (expert, *_) = first.ask("experts")
    assert expert["steps"] > 0
    # The experts of a daemon that is stopped in good order go on where they were.
    saved = {each["uid"]: each["steps"] for each in first.ask("experts")}
    assert first.terminate() == 0
    again = start("first", "--experts", "digits/ffn0.[0:1].[0:2]", *QUICK)
    assert {each["uid"]: each["step"] for each in again.ready["experts"]} == saved
    assert all(each["restored"] for each in again.ready["experts"])


def test_every_mistake_of_a_trainer_is_a_typed_error(two_hosts, owner, tmp_path):
    first, second = two_hosts
    inputs = torch.randn(2, 64)
    with connect(first, invite(owner), patience=1.0, search_patience=0.5) as swarm:
        assert swarm.expert("ffn0.0.0")(inputs).shape == (2, 64)
        with pytest.raises(SchemaError, match="64"):
            swarm.expert("ffn0.0.0")(torch.randn(2, 63))
        with pytest.raises(SchemaError, match="float64"):
            swarm.expert("ffn0.0.0")(inputs.double())
        with pytest.raises(NoLiveExpertError, match=r"ffn0\.7\.7"):
            swarm.expert("ffn0.7.7")(inputs)
        with pytest.raises(TensorTooLargeError, match="16384"):
            swarm.expert("ffn0.0.0")(torch.zeros(16_385, 64))
        with pytest.raises(DeadlineExceededError):
            swarm.expert("ffn0.0.0", forward_timeout=1e-5)(inputs)
        assert swarm.expert("ffn0.1.1")(inputs).shape == (2, 64)
        second.kill()
        started = time.monotonic()
        with pytest.raises((DialError, HostLostError, NoLiveExpertError)):
            swarm.expert("ffn0.1.1")(inputs)
        assert time.monotonic() - started < 35
    time.sleep(max(0, started + 3.1 - time.monotonic()))  # its record lives for three seconds
    with connect(first, invite(owner)) as swarm, pytest.raises(NoLiveExpertError):
        swarm.expert("ffn0.1.1")(inputs)


def test_only_members_may_call(two_hosts, owner, tmp_path):
    first, _ = two_hosts
    inputs = torch.randn(2, 64)
    stranger = tmp_path / "stranger"
    ask_command("run", "create", "digits", "--data-dir", stranger)
    for token, expected in [
        (invite(stranger), (NoLiveExpertError, WrongRunError)),
        (None, (NoLiveExpertError, NotAMemberError, WrongRunError)),
        (invite(owner, "--scope", "host"), PermissionDeniedError),
        (invite(owner, "--expires", "1s"), TokenExpiredError),
    ]:
        time.sleep(1.1 if expected is TokenExpiredError else 0)
        with pytest.raises(expected), connect(first, token) as swarm:
            swarm.expert("ffn0.0.0")(inputs)


def test_an_unreachable_bootstrap_address_fails_in_bounded_time(two_hosts, owner):
    _, second = two_hosts
    second.kill()
    with pytest.raises(NoPeersError, match="tcp"), connect(second, invite(owner)):
        pass


def test_a_damaged_checkpoint_is_kept_and_the_one_before_is_used(start, owner, tmp_path):
    arguments = (
        "--invite", invite(owner), "--experts", "digits/ffn0.0.0", *QUICK,
        "--set", "hosting.checkpoint_interval=0.3",
    )  # fmt: skip
    host = start("host", *arguments)
    with connect(host, invite(owner)) as swarm:
        expert = swarm.expert("ffn0.0.0")
        for steps in (1, 2):
            expert(torch.randn(2, 64)).sum().backward()
            while host.wait_for("checkpoint_saved")["steps"] < steps:
                pass  # the one at the start, without a step
    assert host.terminate() == 0
    files = sorted(
        (host.data_dir / "experts").rglob("*.safetensors"), key=lambda p: p.stat().st_mtime
    )
    assert len(files) == 2
    damaged = files[-1].read_bytes()[:-7]
    files[-1].write_bytes(damaged)
    again = start("host", *arguments)
    skipped = again.wait_for("checkpoint_skipped")
    assert skipped["path"] == str(files[-1])
    assert again.ready["experts"][0]["step"] == 1
    assert files[-1].read_bytes() == damaged


def test_the_readme_example_and_script_run_as_they_stand(start, owner, tmp_path):
    text = (ROOT / "README.md").read_text()
    example, script = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(script.splitlines()) <= 30
    host = start(
        "host", "--invite", invite(owner), "--experts", "digits/ffn0.[0:4].[0:4]", *QUICK,
        command="host",
    )  # fmt: skip
    names = {"address": host.address, "invite": invite(owner)}
    exec(example, names)
    assert names["loss"].item() > 0
    file = tmp_path / "elsewhere" / "train.py"
    file.parent.mkdir()
    file.write_text(script.replace("range(100)", "range(20)"))
    done = subprocess.run(
        [sys.executable, file, host.address, invite(owner)],
        cwd=file.parent, env=environment(), capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
