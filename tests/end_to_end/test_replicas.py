"""Replicas and hand-over between real daemons, while somebody trains."""

import time

import pytest
import torch

import p2pnode as package
from p2pnode.daemon.control.client import call_daemon
from p2pnode.testing.daemons import ask_command

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
EXPERT = "digits/ffn.0"
INTERVAL = 0.5
QUICK = (
    "--experts", EXPERT,
    "--set", "hosting.update_period=1",
    "--set", "hosting.threads=1",
    "--set", f"hosting.standby_interval={INTERVAL}",
    "--set", "hosting.standby_grace=0.5",
    "--set", "weights.snapshot_interval=0.1",
)  # fmt: skip


@pytest.fixture
def token(tmp_path):
    ask_command("run", "create", "digits", "--data-dir", tmp_path / "owner")
    return ask_command("run", "invite", "digits", "--data-dir", tmp_path / "owner")["invite"]


def shown(daemon):
    (expert,) = call_daemon(daemon.data_dir / "control.sock", "experts")
    return ("standby" if expert["standby"] else "serving", expert["steps"])


def await_state(daemon, wanted, within=30.0):
    until = time.monotonic() + within
    while (found := shown(daemon)) != wanted:
        assert time.monotonic() < until, f"{found} instead of {wanted}"
        time.sleep(0.1)


def test_a_replica_serves_while_its_host_is_dead_paused_or_stopped_and_no_step_is_lost(
    start, token, tmp_path
):
    options = ("--invite", token, *QUICK)
    primary = start("primary", *options, command="host")
    replica = start(
        "replica", *options, "--standby", "--bootstrap", primary.address, command="host"
    )
    rows = torch.randn(4, 64)
    with package.connect(replica.address, run="digits", invite=token) as swarm:
        expert = swarm.expert("ffn.0", forward_timeout=15.0, backward_timeout=15.0)
        steps = 0

        def step():
            nonlocal steps
            expert(rows).sum().backward()
            steps += 1

        for _ in range(10):
            step()
        await_state(replica, ("standby", steps), within=10 * INTERVAL + 5)
        primary.kill()
        step()
        assert shown(replica) == ("serving", steps) == ("serving", 11)
        # Its host comes back with what it had saved, and takes what was learnt meanwhile.
        primary = start("primary", *options, "--bootstrap", replica.address, command="host")
        assert shown(primary) == ("serving", steps)
        for _ in range(5):
            step()
        await_state(replica, ("standby", steps))
        assert shown(primary) == ("serving", 16)
        # Its machine's owner pauses it for a while.
        primary.ask("pause")
        await_state(replica, ("serving", steps))
        step()
        primary.ask("resume")
        await_state(replica, ("standby", steps))
        step()
        assert shown(primary) == ("serving", 18)
        # It is stopped in good order, between two steps: none is lost.
        assert primary.terminate() == 0
        for _ in range(3):
            step()
        assert shown(replica) == ("serving", steps) == ("serving", 21)
