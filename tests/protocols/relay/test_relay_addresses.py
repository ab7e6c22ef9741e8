import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import InvalidAddressError
from p2pnode.protocols.relay.addresses import CIRCUIT, split_way, through, ways_through
from p2pnode.wire.addresses import ip_of, parse_address, read_address, with_p2p
from p2pnode.wire.keys import PrivateKey

RELAY, TARGET = (PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in (1, 2))
PLACE = parse_address("/ip4/52.1.2.3/tcp/4001")


def test_a_relayed_address_is_taken_apart_as_it_was_made():
    address = through(PLACE, RELAY)
    assert str(address) == f"{PLACE}/p2p/{RELAY}/p2p-circuit"
    assert split_way(address) == (RELAY, PLACE, None)
    assert split_way(with_p2p(address, TARGET)) == (RELAY, PLACE, TARGET)
    assert read_address(address.to_bytes()) == address


def test_the_relay_may_be_named_without_its_place():
    way = split_way(parse_address(f"/p2p/{RELAY}/p2p-circuit/p2p/{TARGET}"))
    assert (way.relay, way.target) == (RELAY, TARGET)
    assert not way.where.to_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/52.1.2.3/tcp/4001",
        "/p2p-circuit",
        "/ip4/52.1.2.3/tcp/4001/p2p-circuit",
        f"/ip4/52.1.2.3/tcp/4001/p2p/{RELAY}",
        f"/ip4/52.1.2.3/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{TARGET}/p2p-circuit",
        f"/ip4/52.1.2.3/tcp/4001/p2p/{RELAY}/p2p-circuit/ip4/1.2.3.4/tcp/1",
    ],
)
def test_what_does_not_lead_through_one_relay_is_refused(text):
    with pytest.raises(InvalidAddressError, match="does not lead through one relay"):
        split_way(parse_address(text))


def test_the_end_of_a_circuit_is_at_no_ip_address():
    assert ip_of(CIRCUIT) is None


def ways(dialled, told, limit=8):
    found = ways_through(
        RELAY, [parse_address(each) for each in dialled], map(parse_address, told), limit=limit
    )
    return [str(split_way(each).where) for each in found]


def test_the_address_that_was_dialled_goes_first_and_none_twice():
    told = ["/ip4/52.1.2.3/tcp/1", f"/ip4/52.1.2.3/tcp/4001/p2p/{RELAY}", "/ip6/2600::1/tcp/1"]
    assert ways([str(PLACE)], told) == [str(PLACE), told[0], told[2]]
    assert ways([str(PLACE)], told, limit=2) == [str(PLACE), told[0]]


def test_addresses_of_others_and_through_others_are_left_out():
    told = [f"/ip4/52.9.9.9/tcp/1/p2p/{TARGET}", f"{PLACE}/p2p/{TARGET}/p2p-circuit"]
    assert ways([str(PLACE)], told) == [str(PLACE)]


def test_what_means_another_machine_elsewhere_is_left_out():
    told = ["/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1"]
    assert ways([str(PLACE)], told) == [str(PLACE)]
    assert ways(["/ip4/10.0.0.9/tcp/1"], told) == ["/ip4/10.0.0.9/tcp/1", "/ip4/10.0.0.1/tcp/1"]
    assert ways(["/ip4/127.0.0.1/tcp/9"], told) == ["/ip4/127.0.0.1/tcp/9", *told]


@settings(deadline=None)
@given(ports=st.lists(st.integers(1, 65535), max_size=40), limit=st.integers(1, 8))
def test_no_more_are_taken_than_asked_for(ports, limit):
    told = [f"/ip4/52.1.2.3/tcp/{port}" for port in ports]
    assert len(ways([], told, limit)) == min(limit, len(set(ports)))
