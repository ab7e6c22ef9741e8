"""The commands, as a user types them, against real daemons."""

import json
import re
import signal
import socket
import stat
import subprocess

import pytest

from cli.main import COMMANDS
from p2pnode.testing.daemons import COMMAND, ask_command, run_command

pytestmark = pytest.mark.real


def test_help_answers_at_once_and_names_every_command():
    shown = run_command("--help").stdout
    for command in COMMANDS:
        assert f"  {command} " in shown


def test_two_daemons_meet_and_every_command_answers(start):
    first = start("first")
    assert list(first.ready)[:3] == ["event", "peer_id", "addresses"]
    assert first.address.endswith(f"/p2p/{first.peer_id}")
    second = start("second", "--bootstrap", first.address)
    assert first.ask("id")["peer_id"] == first.peer_id
    status = second.ask("status")
    assert status["peer_id"] == second.peer_id
    assert status["dht"]["peers"] == 1
    budget = status["budget"]
    assert budget["node"]["outbound_connections"]["used"] == 1
    assert first.peer_id in [each["name"] for each in budget["top"]]
    assert budget["refused"] == {}
    (peer,) = second.ask("peers")
    assert (peer["peer_id"], peer["direction"]) == (first.peer_id, "outbound")
    assert peer["way"] == "direct"
    assert status["ways"] == {"direct": 1}
    assert all(0 < each < 5 for each in second.ask("ping", first.peer_id)["seconds"])
    assert all(0 < each < 5 for each in first.ask("ping", second.address)["seconds"])
    assert first.ask("experts") == []
    assert second.ask("stop") == {"stopped": True}
    assert second.process.wait(10) == 0
    assert first.terminate() == 0


def test_an_announced_address_may_end_in_the_peer_id(tmp_path, start):
    peer_id = ask_command("id", "--data-dir", tmp_path / "node")["peer_id"]
    announced = f"/dns4/example.org/tcp/4001/p2p/{peer_id}"
    assert start("node", "--announce", announced).ready["addresses"] == [announced]


def test_machines_too_are_told_which_runs_are_open(start):
    node = start("node", "--experts", "pond/nop.0", "--layer", "nop")
    assert node.ready["open_runs"] == ["pond"]


def test_a_usage_error_is_json_where_json_is_asked_for():
    for arguments in (
        ["absent"],
        ["join", "--absent"],
        ["run", "invite", "x", "--expires", "soon"],
    ):
        done = run_command(*arguments, "--json")
        assert done.returncode == 2
        assert json.loads(done.stdout)["event"] == "error"


def test_tables_for_people(start):
    first = start("first")
    for command, expected in [
        ("status", first.peer_id),
        ("status", "Budget of this node: used / limit"),
        ("status", "0 / 1024"),
        ("peers", "0 peers"),
        ("experts", "0 experts"),
    ]:
        assert expected in run_command(command, "--data-dir", first.data_dir).stdout


def test_people_are_told_the_line_to_paste(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "join", "--data-dir", tmp_path, "--listen", "/ip4/127.0.0.1/tcp/0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, notes = process.communicate(timeout=30)
    assert re.fullmatch(r"p2pnode join --bootstrap /ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+\n", line)
    assert "is ready" in notes
    assert "stopped" in notes
    assert process.returncode == 0


def fails(*arguments):
    """Run a command that must fail; returns its one sentence, and the error's name."""
    plain = run_command(*arguments)
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: ")
    assert "Traceback" not in plain.stderr
    machine = json.loads(run_command(*arguments, "--json").stdout.splitlines()[-1])
    assert machine["event"] == "error"
    return machine["message"], machine["error"]


def test_a_second_daemon_on_the_same_directory_is_refused(start):
    first = start("first")
    sentence, name = fails("join", "--data-dir", first.data_dir, "--listen", "/ip4/127.0.0.1/tcp/0")
    assert name == "DataDirInUseError"
    assert str(first.process.pid) in sentence


def test_a_taken_port_is_refused(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        _, name = fails("join", "--data-dir", tmp_path / "node", "--listen", listen)
    assert name == "AddressInUseError"


def test_an_unreachable_bootstrap_address_is_named(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refuses at once
        address = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}"
        peer = ask_command("id", "--data-dir", tmp_path / "other")["peer_id"]
        sentence, name = fails(
            "join", "--data-dir", tmp_path / "node", "--listen", "/ip4/127.0.0.1/tcp/0",
            "--bootstrap", f"{address}/p2p/{peer}",
        )  # fmt: skip
    assert name == "NoPeersError"
    assert address in sentence


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--listen", "/ip4/127.0.0.1/tcp/x"], "InvalidAddressError"),
        (["--bootstrap", "/ip4/127.0.0.1/tcp/1"], "InvalidAddressError"),
        (["--experts", "digits/ffn.[4:0]"], "InvalidUidError"),
        (["--invite", "p2prun1.nonsense"], "InvalidTokenError"),
        (["--set", "hosting.hiden_dim=3"], "ConfigError"),
        (["--hidden-dim", "wide"], "ConfigError"),
        (["--experts", "digits/ffn.0", "--layer", "absent"], "ConfigError"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, name):
    listen = [] if "--listen" in arguments else ["--listen", "/ip4/127.0.0.1/tcp/0"]
    assert fails("join", "--data-dir", tmp_path / "node", *listen, *arguments)[1] == name


def test_a_corrupt_identity_is_never_overwritten(tmp_path):
    run_command("id", "--data-dir", tmp_path)
    (tmp_path / "identity.key").write_bytes(b"broken")
    sentence, name = fails("join", "--data-dir", tmp_path, "--listen", "/ip4/127.0.0.1/tcp/0")
    assert name == "KeyFileError"
    assert str(tmp_path) in sentence
    assert (tmp_path / "identity.key").read_bytes() == b"broken"


def test_asking_without_a_daemon_says_how_to_start_one(tmp_path):
    for command in ("status", "peers", "experts", "stop"):
        sentence, name = fails(command, "--data-dir", tmp_path)
        assert name == "DaemonNotRunningError"
        assert "p2pnode join" in sentence


def test_runs_are_created_invited_to_and_inspected(tmp_path):
    here = ("--data-dir", tmp_path / "owner")
    created = ask_command("run", "create", "digits", *here)
    again, name = fails("run", "create", "digits", "--data-dir", tmp_path / "owner")
    assert (name, "already" in again) == ("ConfigError", True)
    assert stat.S_IMODE((tmp_path / "owner/runs/digits.key").stat().st_mode) == 0o600
    invite = ask_command("run", "invite", "digits", "--scope", "train", "--expires", "90m", *here)
    shown = ask_command("run", "inspect", invite["invite"], *here)
    assert shown["run_id"] == created["run_id"]
    assert shown["scopes"] == ["train"]
    assert ask_command("run", "inspect", "digits", *here)["scopes"] == ["host", "train"]
    assert "digits" in run_command("run", "inspect", invite["invite"]).stdout
    assert fails("run", "inspect", invite["invite"][:-5])[1] == "InvalidTokenError"
    assert fails("run", "invite", "other", "--data-dir", tmp_path / "owner")[1] == "ConfigError"
    assert run_command("run", "invite", "digits", "--expires", "soon").returncode == 2


def test_everything_may_stand_in_the_config_file(tmp_path):
    config = tmp_path / "node.toml"
    config.write_text(
        f'[node]\ndata_dir = "{tmp_path / "mine"}"\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n'
        'announce = ["/ip4/203.0.113.5/tcp/4001"]\n'
    )
    with subprocess.Popen(
        [*COMMAND, "join", "--json", "--config", config], stdout=subprocess.PIPE, text=True
    ) as process:
        ready = json.loads(process.stdout.readline())
        assert ready["addresses"] == [f"/ip4/203.0.113.5/tcp/4001/p2p/{ready['peer_id']}"]
        assert ask_command("id", "--data-dir", tmp_path / "mine")["peer_id"] == ready["peer_id"]
        hosted = ask_command("host", "--config", config, "--experts", "digits/ffn.0")
        assert [each["uid"] for each in hosted["experts"]] == ["digits/ffn.0"]
        process.send_signal(signal.SIGTERM)
