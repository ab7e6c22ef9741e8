import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pnode.config import RelaySettings
from p2pnode.errors import ConfigError
from p2pnode.host.budgets.rates import Subnets
from p2pnode.protocols.relay.core import Circuit, Place, RelayCore
from p2pnode.protocols.relay.messages import Limit, Status
from p2pnode.wire.keys import PrivateKey

PEERS = [PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in range(8)]
A, B, C, D = PEERS[:4]


def core(acl=None, log=None, **settings):
    log = log if log is not None else []
    chosen = RelaySettings(**({"request_burst": 1000} | settings))
    return RelayCore(chosen, acl, lambda peer, reason: log.append((peer, reason)))


def home(number, street=0):
    return Subnets(f"52.0.{street}.{number}/32", f"52.0.{street}.0/24")


def test_a_reservation_lasts_its_lifetime_and_is_renewed_by_asking_again():
    log = []
    relay = core(log=log, reservation_lifetime=100.0)
    assert relay.receive_reserve(A, None, 0.0).expires_at == 100.0
    assert relay.receive_reserve(A, None, 60.0).expires_at == 160.0
    assert relay.reservations == 1
    assert relay.next_expiry() == 160.0
    relay.expire(159.9)
    assert relay.holds(A)
    relay.expire(160.0)
    assert not relay.holds(A)
    assert log == [(A, "it was not renewed")]
    assert relay.next_expiry() == float("inf")


def test_a_circuit_needs_a_reservation_at_its_end():
    relay = core(reservation_lifetime=100.0)
    assert relay.receive_connect(A, B, 0.0) is Status.NO_RESERVATION
    relay.receive_reserve(B, None, 0.0)
    assert isinstance(relay.receive_connect(A, B, 1.0), Circuit)
    assert relay.receive_connect(B, A, 1.0) is Status.NO_RESERVATION
    assert relay.receive_connect(A, B, 100.0) is Status.NO_RESERVATION
    assert relay.receive_connect(B, B, 1.0) is Status.PERMISSION_DENIED
    assert relay.refused == {Status.NO_RESERVATION: 3, Status.PERMISSION_DENIED: 1}


def test_a_peer_that_leaves_loses_its_reservation():
    log = []
    relay = core(log=log)
    relay.receive_reserve(A, home(1), 0.0)
    relay.receive_gone(A)
    relay.receive_gone(B)
    assert log == [(A, "it is no longer connected")]
    assert relay.receive_connect(B, A, 0.0) is Status.NO_RESERVATION


def test_all_reservations_together_are_limited_and_renewals_are_not():
    relay = core(max_reservations=2)
    for peer in (A, B):
        assert isinstance(relay.receive_reserve(peer, None, 0.0), Place)
    assert relay.receive_reserve(C, None, 0.0) is Status.RESERVATION_REFUSED
    assert isinstance(relay.receive_reserve(A, None, 1.0), Place)
    relay.receive_gone(B)
    assert isinstance(relay.receive_reserve(C, None, 2.0), Place)


def test_a_household_cannot_take_the_places_of_its_street():
    relay = core(max_reservations_per_address=2, max_reservations_per_network=3)
    for peer in (A, B):
        assert isinstance(relay.receive_reserve(peer, home(1), 0.0), Place)
    assert relay.receive_reserve(C, home(1), 0.0) is Status.RESERVATION_REFUSED
    assert isinstance(relay.receive_reserve(C, home(2), 0.0), Place)
    assert relay.receive_reserve(D, home(3), 0.0) is Status.RESERVATION_REFUSED
    assert isinstance(relay.receive_reserve(D, home(3, street=1), 0.0), Place)
    assert isinstance(relay.receive_reserve(A, home(1), 1.0), Place)  # a renewal
    relay.receive_gone(A)
    assert isinstance(relay.receive_reserve(PEERS[4], home(1), 2.0), Place)


def test_circuits_are_limited_in_all_and_for_a_peer_at_either_end():
    relay = core(max_circuits=3, max_circuits_per_peer=2)
    for peer in (B, C, D):
        relay.receive_reserve(peer, None, 0.0)
    first = relay.receive_connect(A, B, 0.0)
    assert isinstance(relay.receive_connect(A, C, 0.0), Circuit)
    assert relay.receive_connect(A, D, 0.0) is Status.RESOURCE_LIMIT_EXCEEDED
    assert isinstance(relay.receive_connect(C, D, 0.0), Circuit)
    assert relay.receive_connect(B, C, 0.0) is Status.RESOURCE_LIMIT_EXCEEDED  # as C has two
    assert relay.receive_connect(D, B, 0.0) is Status.RESOURCE_LIMIT_EXCEEDED  # in all
    relay.end(first)
    assert isinstance(relay.receive_connect(D, B, 0.0), Circuit)


def test_who_asks_too_often_has_to_wait():
    relay = core(request_burst=2, requests_per_second=1.0)
    for _ in range(2):
        assert isinstance(relay.receive_reserve(A, None, 0.0), Place)
    assert relay.receive_reserve(A, None, 0.0) is Status.RESOURCE_LIMIT_EXCEEDED
    assert relay.holds(A)  # what it has, it keeps
    assert relay.receive_connect(A, B, 0.5) is Status.RESOURCE_LIMIT_EXCEEDED
    assert isinstance(relay.receive_reserve(B, None, 0.0), Place)
    assert isinstance(relay.receive_connect(A, B, 1.0), Circuit)


class Friends:
    def may_reserve(self, peer):
        return peer != C

    def may_connect(self, source, target):
        return (source, target) == (A, B)


def test_the_owner_decides_who_may_use_it():
    relay = core(acl=Friends())
    assert relay.receive_reserve(C, None, 0.0) is Status.PERMISSION_DENIED
    for peer in (A, B):
        relay.receive_reserve(peer, None, 0.0)
    assert relay.receive_connect(B, A, 0.0) is Status.PERMISSION_DENIED
    assert isinstance(relay.receive_connect(A, B, 0.0), Circuit)


def test_what_a_circuit_may_carry_is_told_and_counted_each_way():
    relay = core(circuit_bytes=100, circuit_seconds=60.0)
    relay.receive_reserve(B, None, 0.0)
    circuit = relay.receive_connect(A, B, 0.0)
    assert circuit.limit == relay.limit == Limit(duration=60, data=100)
    assert circuit.room(0, 64) == 64
    circuit.carried[0] += 64
    assert (circuit.room(0, 64), circuit.room(1, 64)) == (36, 64)
    circuit.carried[1] += 10
    relay.end(circuit)
    assert relay.carried == 74
    assert not relay.circuits


def test_a_circuit_without_limits_has_room_for_anything():
    relay = core(circuit_bytes=0, circuit_seconds=0)
    relay.receive_reserve(B, None, 0.0)
    circuit = relay.receive_connect(A, B, 0.0)
    circuit.carried[0] = 1 << 60
    assert circuit.room(0, 64) == 64
    assert not circuit.limit


def test_a_relay_that_stops_takes_all_reservations_back():
    log = []
    relay = core(log=log)
    for number, peer in enumerate((A, B)):
        relay.receive_reserve(peer, home(number), 0.0)
    relay.drop_all("enough")
    assert log == [(A, "enough"), (B, "enough")]
    assert relay.reservations == 0


@given(
    limit=st.integers(0, 10**6),
    pieces=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 65536)), max_size=50),
)
def test_a_circuit_has_room_for_what_it_may_carry_each_way_and_no_more(limit, pieces):
    circuit = Circuit(
        source=PEERS[0], target=PEERS[1], began_at=0.0, limit=Limit(duration=0, data=limit)
    )
    offered = [0, 0]
    for way, size in pieces:
        room = circuit.room(way, size)
        assert 0 <= room <= size
        circuit.carried[way] += room
        offered[way] += size
    assert circuit.carried == [min(each, limit) if limit else each for each in offered]


class Counts(RuleBasedStateMachine):
    """Whatever happens in whatever order, no limit is passed and no place is lost."""

    SETTINGS = RelaySettings(
        max_reservations=4,
        max_reservations_per_address=2,
        max_reservations_per_network=3,
        max_circuits=3,
        max_circuits_per_peer=2,
        reservation_lifetime=10.0,
        request_burst=10_000,
    )

    def __init__(self):
        super().__init__()
        self.relay = RelayCore(self.SETTINGS)
        self.now = 0.0
        self.places = {}  # subnets and ends of those that hold one
        self.open = []

    @rule(seconds=st.floats(0, 6))
    def pass_time(self, seconds):
        self.now += seconds

    @rule(peer=st.sampled_from(PEERS), where=st.none() | st.integers(0, 5))
    def reserve(self, peer, where):
        subnets = None if where is None else home(where % 3, street=where // 3)
        if isinstance(self.relay.receive_reserve(peer, subnets, self.now), Place):
            self.places[peer] = subnets, self.now + 10.0

    @rule(source=st.sampled_from(PEERS), end=st.sampled_from(PEERS))
    def connect(self, source, end):
        circuit = self.relay.receive_connect(source, end, self.now)
        if isinstance(circuit, Circuit):
            assert self.places[end][1] > self.now
            self.open.append(circuit)

    @rule(peer=st.sampled_from(PEERS))
    def leave(self, peer):
        self.relay.receive_gone(peer)
        self.places.pop(peer, None)

    @rule(data=st.data())
    def end(self, data):
        if self.open:
            circuit = data.draw(st.sampled_from(self.open))
            self.open.remove(circuit)
            self.relay.end(circuit)

    @invariant()
    def no_limit_is_passed(self):
        self.relay.expire(self.now)
        self.places = {peer: place for peer, place in self.places.items() if place[1] > self.now}
        assert self.relay.reservations == len(self.places) <= 4
        for index, most in ((0, 2), (1, 3)):
            taken = [place[0][index] for place in self.places.values() if place[0] is not None]
            assert all(taken.count(each) <= most for each in taken)
        assert self.relay.circuits == self.open
        assert len(self.open) <= 3
        ends = [peer for each in self.open for peer in (each.source, each.target)]
        assert all(ends.count(peer) <= 2 for peer in ends)


TestCounts = Counts.TestCase
TestCounts.settings = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"client": "sometimes"}, "relay.client must be one of auto, always, never"),
        ({"server": "x"}, "relay.server must be one of"),
        ({"retry_pause": 9.0, "retry_pause_max": 8.0}, "retry_pause must not exceed"),
        ({"min_lifetime": 9.0, "max_lifetime": 8.0}, "min_lifetime must not exceed"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(chosen, why):
    with pytest.raises(ConfigError, match=why):
        RelaySettings(**chosen)
