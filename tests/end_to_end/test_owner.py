"""A volunteer who wants the machine back, as the trainer sees it, and as the volunteer does."""

import logging

import pytest
import torch

import p2pnode as package
from p2pnode.config import Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.errors import BadRequestError, ConfigError, NoLiveExpertError, PausedError
from p2pnode.testing.daemons import ask_command, run_command

pytestmark = pytest.mark.real
QUICK = ("--hidden-dim", "8", "--set", "hosting.update_period=1.5", "--set", "hosting.threads=1")
X = torch.ones(2, 8)


def forwards(daemon):
    return daemon.ask("status")["calls"].get("forward", 0)


def test_a_paused_host_loses_no_call_of_a_trainer_and_comes_back(start):
    hosting = ("--experts", "digits/ffn.0", *QUICK)
    first = start("first", *hosting, command="host")
    second = start("second", *hosting, "--bootstrap", first.address, command="host")
    settings = Settings().replace(trainer={"patience": 1.0})
    with package.connect(first.address, run="digits", settings=settings) as swarm:
        expert = swarm.expert("ffn.0")
        for _ in range(4):  # both are tried, since their speed is not known yet
            expert(X)
        assert forwards(first) > 0
        assert forwards(second) > 0

        paused = ask_command("pause", "--for", "2h", "--data-dir", first.data_dir)
        assert (paused["paused"], paused["cause"]) == (True, "owner")
        assert first.wait_for("node_paused")["until"] == paused["until"]
        before = forwards(first), forwards(second)
        for _ in range(3):
            expert(X)
        assert (forwards(first), forwards(second)) == (before[0], before[1] + 3)
        shown = run_command("status", "--data-dir", first.data_dir).stdout
        assert "no, its owner paused it, until " in shown
        (expert_here,) = ask_command("experts", "--data-dir", first.data_dir)
        assert expert_here["state"] == "paused"

        ask_command("pause", "--data-dir", second.data_dir)
        with pytest.raises((NoLiveExpertError, PausedError)):
            expert(X)

        assert not ask_command("resume", "--data-dir", first.data_dir)["paused"]
        first.wait_for("node_resumed")
    with package.connect(first.address, run="digits") as swarm:
        swarm.expert("ffn.0")(X)
    assert forwards(first) == before[0] + 1


def test_quiet_hours_and_times_that_are_none_are_refused_by_name(start, tmp_path):
    done = run_command("join", "--data-dir", tmp_path / "x", "--quiet-hours", "monday 9-17")
    assert done.returncode != 0
    assert "mon-fri 09:00-17:00" in done.stderr
    daemon = start("quiet", "--quiet-hours", "00:00-24:00")
    assert daemon.ask("status")["owner"]["cause"] == "quiet hours"
    socket = daemon.data_dir / "control.sock"
    with pytest.raises(BadRequestError, match="seconds must be a number"):
        call_daemon(socket, "pause", seconds="long")
    with pytest.raises(ConfigError, match="--for 2h"):
        call_daemon(socket, "pause", seconds=-5)
    assert not ask_command("resume", "--data-dir", daemon.data_dir)["paused"]


def test_one_call_can_be_followed_from_the_trainers_log_to_its_hosts(start, caplog):
    host = start("host", "--experts", "digits/ffn.0", "--log-level", "debug", *QUICK,
                 command="host")  # fmt: skip
    caplog.set_level(logging.DEBUG, "p2pnode.calls")
    with package.connect(host.address, run="digits") as swarm:
        swarm.expert("ffn.0")(X)
    (made,) = [each.trace for each in caplog.records if each.getMessage().startswith("forward")]
    while (served := host.wait_for("call_served"))["operation"] != "forward":
        pass
    assert served["trace"] == made
    assert len(made) == 16
