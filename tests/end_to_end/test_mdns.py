import time

import pytest

pytestmark = pytest.mark.real
WITHIN = 20.0  # seconds; it takes about two


def test_two_daemons_on_one_network_find_each_other_without_a_bootstrap_address(start):
    """The network is loopback, which is where these daemons listen, and so all they speak on."""
    first, second = start("first", "--mdns"), start("second", "--mdns")
    found = {"first": first, "second": second}
    for name, other in (("first", second), ("second", first)):
        event = found[name].wait_for("peer_discovered", WITHIN)
        while event["peer_id"] != other.peer_id:  # other tests may be about
            event = found[name].wait_for("peer_discovered", WITHIN)
        assert f"{event['addresses'][0]}/p2p/{event['peer_id']}" == other.address
    until = time.monotonic() + WITHIN
    while time.monotonic() < until and not first.ask("status")["dht"]["peers"]:
        time.sleep(0.1)
    assert first.ask("status")["dht"]["peers"]
    assert second.peer_id in {peer["peer_id"] for peer in first.ask("peers")}
    assert (first.terminate(), second.terminate()) == (0, 0)


def test_without_the_flag_a_daemon_neither_speaks_nor_listens(start):
    silent, curious = start("silent"), start("curious", "--mdns")
    time.sleep(3)
    assert silent.peer_id not in {peer["peer_id"] for peer in curious.ask("peers")}
