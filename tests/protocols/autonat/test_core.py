import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import ReachabilitySettings
from p2pnode.errors import ProtocolError
from p2pnode.host.budgets.rates import plain_ip
from p2pnode.protocols.autonat.core import (
    MOST_DIAL_DATA,
    Choice,
    DialDataMeter,
    Gatekeeper,
    choose_v1,
    choose_v2,
    dial_data_pieces,
)
from p2pnode.protocols.autonat.messages import DialData
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

SETTINGS = ReachabilitySettings()
SEEN = parse_address("/ip4/8.8.8.8/tcp/50000")
THEIRS = parse_address("/ip4/8.8.8.8/tcp/4001")
VICTIM = parse_address("/ip4/9.9.9.9/tcp/25")
HOME = parse_address("/ip4/192.168.1.2/tcp/4001")
OURS = parse_address("/ip4/1.1.1.1/tcp/4001")
RELAYED = parse_address(
    f"/ip4/8.8.8.8/tcp/1/p2p/{PrivateKey.from_seed(bytes(32)).peer_id}/p2p-circuit"
)
NAMED = parse_address("/dns4/example.org/tcp/4001")
MAPPED = parse_address("/ip6/::ffff:8.8.8.8/tcp/4001")

asked = st.lists(
    st.sampled_from([THEIRS, VICTIM, HOME, OURS, RELAYED, NAMED, MAPPED, None]), max_size=12
).map(tuple)


def peer(number):
    return PrivateKey.from_seed(number.to_bytes(32, "big")).peer_id


def choose(function, addresses, *, seen=SEEN, can_dial=lambda _: True, settings=SETTINGS):
    own = [plain_ip(OURS)]
    return function(addresses, seen, own=own, can_dial=can_dial, settings=settings)


@given(asked)
def test_version_1_dials_only_where_the_request_comes_from(addresses):
    chosen = choose(choose_v1, addresses)
    assert {plain_ip(each) for each in chosen} == {plain_ip(SEEN)}
    assert len(chosen) <= SETTINGS.max_dials_per_request
    assert RELAYED not in chosen


def test_version_1_tries_also_the_place_that_it_sees():
    assert choose(choose_v1, (THEIRS, VICTIM)) == [THEIRS, SEEN]
    assert choose(choose_v1, ()) == [SEEN]


def test_version_1_dials_nobody_for_those_at_private_addresses_or_our_own():
    assert choose(choose_v1, (HOME,), seen=HOME) == []
    assert choose(choose_v1, (OURS,), seen=OURS) == []
    lax = ReachabilitySettings(public_only=False)
    assert choose(choose_v1, (HOME,), seen=HOME, settings=lax) == [HOME]


@given(asked)
def test_version_2_dials_the_first_address_that_may_be_and_knows_whose_it_is(addresses):
    choice = choose(choose_v2, addresses)
    willing = [each for each in addresses if each in {THEIRS, VICTIM, MAPPED}]
    if not willing:
        assert choice is None
    else:
        is_theirs = willing[0] != VICTIM
        assert choice == Choice(addresses.index(willing[0]), willing[0], is_theirs)


def test_version_2_leaves_out_what_this_node_has_no_transport_for():
    chosen = choose(choose_v2, (THEIRS, VICTIM), can_dial=lambda each: each == VICTIM)
    assert chosen == Choice(1, VICTIM, is_theirs=False)


def test_a_peer_has_one_request_at_a_time():
    gate = Gatekeeper(SETTINGS)
    assert gate.enter(peer(1), SEEN, 0.0) is None
    assert "another request" in gate.enter(peer(1), SEEN, 0.0)
    gate.leave(peer(1))
    assert gate.enter(peer(1), SEEN, 0.0) is None


def test_those_who_come_through_a_relay_are_refused():
    assert "relay" in Gatekeeper(SETTINGS).enter(peer(1), RELAYED, 0.0)


def test_a_peer_may_ask_only_so_often():
    gate = Gatekeeper(SETTINGS)

    def ask(now):
        refusal = gate.enter(peer(1), SEEN, now)
        gate.leave(peer(1))
        return refusal

    answers = [ask(0.0) for _ in range(SETTINGS.request_burst_per_peer + 1)]
    assert answers == [None] * SETTINGS.request_burst_per_peer + ["requests come too fast"]
    assert ask(60.0 / SETTINGS.requests_per_minute_per_peer) is None


def test_many_peers_of_one_network_are_held_to_its_allowance():
    gate = Gatekeeper(SETTINGS)
    answers = [
        gate.enter(peer(each), parse_address(f"/ip4/8.8.8.{each}/tcp/1"), 0.0) for each in range(20)
    ]
    assert answers.count(None) == SETTINGS.request_burst_per_network
    assert gate.enter(peer(99), parse_address("/ip4/8.8.9.1/tcp/1"), 0.0) is None


def test_all_together_are_held_to_the_nodes_allowance():
    gate = Gatekeeper(ReachabilitySettings(max_requests=1000))
    answers = [
        gate.enter(peer(each), parse_address(f"/ip4/8.8.{each}.1/tcp/1"), 0.0)
        for each in range(100)
    ]
    assert answers.count(None) == SETTINGS.request_burst


def test_only_so_many_are_served_at_once():
    gate = Gatekeeper(ReachabilitySettings(max_requests=2))
    for number in range(2):
        address = parse_address(f"/ip4/8.8.{number}.1/tcp/1")
        assert gate.enter(peer(number), address, 0.0) is None
    assert "too many" in gate.enter(peer(3), SEEN, 0.0)
    gate.leave(peer(0))
    assert gate.enter(peer(3), SEEN, 0.0) is None
    assert len(gate) == 2


@given(st.floats(0, 1), st.integers(30_000, 100_000))
def test_a_dial_to_a_third_place_costs_from_30_000_to_100_000_bytes(chance, least):
    meter = DialDataMeter(least, chance)
    assert least <= meter.wanted <= MOST_DIAL_DATA
    for piece in dial_data_pieces(meter.wanted):
        assert not meter.is_complete
        meter.receive_piece(piece)
    assert meter.is_complete


def test_data_in_tiny_pieces_is_refused():
    meter = DialDataMeter(30_000, 0.0)
    with pytest.raises(ProtocolError, match="only 99 bytes"):
        meter.receive_piece(DialData(size=99))


def test_the_last_piece_may_be_tiny():
    meter = DialDataMeter(30_000, 0.0)
    for _ in range(7):
        meter.receive_piece(DialData(size=4096))
    meter.receive_piece(DialData(size=1327))
    meter.receive_piece(DialData(size=1))
    assert meter.is_complete
