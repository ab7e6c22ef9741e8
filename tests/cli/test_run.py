"""`run describe`, as an owner and a member of a run type it."""

import json

import pytest
from click.testing import CliRunner

from cli.commands import run as commands
from p2pnode.clock import wall_time
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.runs import RunStore
from p2pnode.errors import ConfigError, DaemonNotRunningError


def _no_daemon(*_args, **_params):
    raise DaemonNotRunningError("no daemon runs here")


@pytest.fixture
def type_in(tmp_path, monkeypatch):
    """Run a subcommand of `run` on a data directory without a daemon."""
    monkeypatch.setattr(commands, "call_daemon", _no_daemon)

    def invoke(*arguments):
        return CliRunner().invoke(
            commands.run, [*arguments, "--data-dir", str(tmp_path)], catch_exceptions=True
        )

    invoke("create", "lm")
    return invoke


def test_an_owner_describes_a_run_and_reads_it_back(type_in):
    done = type_in(
        "describe", "lm", "--layers", "blocks.[0:12]", "--model", "tiny", "--set",
        "learning_rate=3e-4",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "your daemon publishes it as soon as it runs" in done.output
    read = json.loads(type_in("describe", "lm", "--json").output)
    assert read == {
        "run": "lm",
        "kind": "layers",
        "patterns": ["blocks.[0:12]"],
        "options": {"learning_rate": 3e-4, "model": "tiny"},
        "stored": None,
    }
    shown = type_in("describe", "lm").output
    assert "blocks.[0:12]" in shown
    assert "0.0003" in shown


def test_options_change_alone_and_are_taken_back(type_in):
    type_in("describe", "lm", "--experts", "ffn.[0:2].[0:2]", "--set", "optimizer=sgd")
    type_in("describe", "lm", "--set", "warmup_steps=10", "--unset", "optimizer")
    read = json.loads(type_in("describe", "lm", "--json").output)
    assert (read["kind"], read["options"]) == ("experts", {"warmup_steps": 10})


def test_a_setting_may_count_for_one_block_alone(type_in):
    done = type_in(
        "describe", "lm", "--layers", "blocks.[0:2]", "--layers", "wide.0", "--set",
        "hidden_dim=32", "--set", "wide:layer=ffn", "--set", "wide:learning_rate=0.5",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    read = json.loads(type_in("describe", "lm", "--unset", "wide:layer", "--json").output)
    assert read["patterns"] == ["blocks.[0:2]", "wide.0"]
    assert read["options"] == {"hidden_dim": 32, "wide:learning_rate": 0.5}


def test_a_running_daemon_publishes_at_once(type_in, monkeypatch):
    asked = []

    def call(_socket, command, **params):
        asked.append((command, params))
        return {"stored": 7}

    monkeypatch.setattr(commands, "call_daemon", call)
    done = type_in("describe", "lm", "--layers", "blocks.[0:2]", "--json")
    assert json.loads(done.output)["stored"] == 7
    assert asked == [("run.publish", {"run": "lm"})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "a.0", "--experts", "b.0"], "not of both"),
        (["--set", "threads=2"], "'threads' is no setting that all members must agree on"),
        (["--set", "seed"], "NAME=VALUE"),
        (["--unset", "speed"], "'speed' is no setting"),
        (["--set", "wide:threads=2"], "'wide:threads' is no setting"),
        (["--set", "wide:rounds.mode=best"], "'wide:rounds.mode' is no setting"),
    ],
)
def test_what_makes_no_sense_is_told_as_usage(type_in, arguments, message):
    done = type_in("describe", "lm", *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_a_value_of_the_wrong_type_is_told(type_in):
    done = type_in("describe", "lm", "--set", "learning_rate=fast")
    assert isinstance(done.exception, ConfigError)
    assert "learning_rate must be a number" in str(done.exception)


def test_a_member_reads_what_it_has_found_and_cannot_change_it(type_in, tmp_path):
    theirs = RunStore(DataDir(tmp_path / "theirs"))
    theirs.create("digits")
    invite = theirs.invite("digits", scopes=["host"], expires_at=wall_time() + 60, peer=None)
    RunStore(DataDir(tmp_path)).accept(invite)
    assert "not said yet" in type_in("describe", "digits").output
    assert isinstance(type_in("describe", "digits", "--set", "seed=1").exception, ConfigError)
