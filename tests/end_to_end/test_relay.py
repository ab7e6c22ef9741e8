"""`p2pnode relay`, and a daemon that is reached through it."""

import pytest

from p2pnode.testing.daemons import ask_command, run_command

pytestmark = pytest.mark.real


def test_a_daemon_is_reached_and_measured_through_a_relay(start):
    relay = start("relay", "--unlimited", command="relay")
    served = start(
        "served",
        *("--set", f"relay.relays={relay.address}"),
        *("--set", "perf.serve=true"),
    )
    reserved = served.wait_for("relay_reserved")
    assert reserved["relay"] == relay.peer_id
    way = f"{relay.address}/p2p-circuit/p2p/{served.peer_id}"
    assert way in served.ask("status")["addresses"]
    (held,) = served.ask("status")["relay"]["held"]["reservations"]
    assert (held["relay"], held["limited"]) == (relay.peer_id, False)
    found = ask_command("perf", way, "--upload", "1M", "--download", "1M")
    assert found["download_bytes"] == 1_048_576
    given = relay.ask("status")["relay"]["given"]
    assert (given["serving"], given["reservations"]) == (True, 1)
    assert given["bytes_carried"] > 2 * 1_048_576
    shown = run_command("status", "--data-dir", relay.data_dir).stdout
    assert "1 reservation, " in shown
    assert relay.terminate() == 0
