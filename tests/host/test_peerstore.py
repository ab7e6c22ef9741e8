import math
import random

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pnode.config import NetworkSettings
from p2pnode.host.peerstore import MAX_EXPIRED_AT_ONCE, Origin, Peerstore
from p2pnode.testing.keys import ForeignKey
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

SETTINGS = NetworkSettings(
    max_peerstore_peers=3,
    max_addresses_per_peer=4,
    identified_address_ttl=50.0,
    certified_address_ttl=80.0,
    connected_address_ttl=100.0,
)
PEERS = [PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in range(1, 7)]
A, B, C, D, E, F = PEERS


def address(port):
    return tcp_address("10.0.0.1", port)


def ports_of(store, peer, now=0.0):
    return [int(each.value_for_protocol("tcp")) for each in store.addresses_of(peer, now)]


def store_of(**changes):
    return Peerstore(NetworkSettings(**{"max_addresses_per_peer": 4, **changes}))


# --- lifetimes ------------------------------------------------------------------------------------


def test_told_addresses_live_as_long_as_their_teller_says():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1)], 10, now=0)
    store.add_addresses(A, [address(2)], 20, now=0)
    assert ports_of(store, A, 9) == [1, 2]
    assert ports_of(store, A, 10) == [2]
    store.expire(15)
    assert ports_of(store, A, 0) == [2]
    store.expire(20)
    assert (len(store), store.size) == (0, 0)


def test_each_origin_has_its_own_lifetime():
    store = Peerstore(SETTINGS)
    store.identify(A, [address(1)], now=0)
    store.certify(B, 1, [address(2)], b"record", now=0)
    store.prefer(C, address(3), now=0)
    for peer, port, until in [(A, 1, 50), (B, 2, 80), (C, 3, 100)]:
        assert ports_of(store, peer, until - 1) == [port]
        assert ports_of(store, peer, until) == []


def test_hearsay_is_told_from_what_a_peer_says_or_was_found_at():
    store = store_of()
    store.add_addresses(A, [address(1), address(2)], 10, now=0)
    store.identify(A, [address(2)], now=0)
    store.configure(A, [address(3)])
    store.pin(A)
    assert {*store.addresses_of(A, 0)} == {address(1), address(2), address(3)}
    assert store.addresses_of(A, 0, hearsay=False) == [address(3), address(2)]


def test_a_shorter_lifetime_or_a_weaker_origin_takes_nothing_away():
    store = Peerstore(SETTINGS)
    store.prefer(A, address(1), now=0)
    store.add_addresses(A, [address(1)], 10, now=0)
    store.identify(A, [address(1)], now=0)
    assert ports_of(store, A, 99) == [1]


def test_of_very_many_that_expire_at_once_some_wait_for_the_next_time_unseen():
    store = store_of()
    peers = [PrivateKey.from_seed(n.to_bytes(32, "big")).peer_id for n in range(1, 1102)]
    for each in peers:
        store.add_addresses(each, [address(1)], 10, now=0)
    store.expire(10)
    assert len(store) == 1101 - MAX_EXPIRED_AT_ONCE
    assert not any(store.addresses_of(each, 10) for each in peers)
    store.expire(10)
    assert (len(store), store.size) == (0, 0)


def test_while_pinned_addresses_stay_and_afterwards_they_expire():
    store = Peerstore(SETTINGS)
    store.identify(A, [address(1)], now=0)
    store.add_addresses(A, [address(2)], 10, now=0)
    store.pin(A)
    store.expire(500)
    assert ports_of(store, A, 500) == [1, 2]
    store.unpin(A, now=500)
    assert ports_of(store, A, 549) == [1]  # hearsay does not become better by a connection
    assert ports_of(store, A, 550) == []
    store.unpin(B, now=500)  # of whom nothing is known
    assert len(store) == 1


def test_configured_addresses_stay_for_ever():
    store = Peerstore(SETTINGS)
    store.configure(A, [address(1)])
    for peer in (B, C, D, E):
        store.prefer(peer, address(2), now=0)
    store.expire(math.inf)
    assert ports_of(store, A, math.inf) == [1]
    store.forget_address(A, address(1))
    assert ports_of(store, A, math.inf) == [1]


# --- origins --------------------------------------------------------------------------------------


def test_the_address_that_worked_last_comes_first_then_the_best_founded():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1)], 10, now=0)
    store.certify(A, 1, [address(2)], b"record", now=0)
    store.prefer(A, address(3), now=0)
    assert ports_of(store, A) == [3, 2, 1]
    assert store.preferred_of(A) == address(3)
    store.prefer(A, address(1), now=0)
    assert ports_of(store, A) == [1, 3, 2]


def test_a_signed_record_replaces_what_the_peer_said_before():
    store = Peerstore(SETTINGS)
    store.identify(A, [address(1)], now=0)
    store.add_addresses(A, [address(2)], 90, now=0)
    assert store.certify(A, 5, [address(3)], b"five", now=0)
    assert ports_of(store, A) == [3, 2]
    store.identify(A, [address(4)], now=0)
    assert ports_of(store, A) == [3, 4, 2]
    assert store.certify(A, 6, [address(5)], b"six", now=0)
    assert ports_of(store, A) == [5, 2]
    assert store.record_of(A) == b"six"


def test_an_older_record_never_replaces_a_newer_one_and_the_same_one_renews_it():
    store = Peerstore(SETTINGS)
    store.certify(A, 5, [address(1)], b"five", now=0)
    assert not store.certify(A, 4, [address(2)], b"four", now=10)
    assert (ports_of(store, A, 10), store.record_of(A)) == ([1], b"five")
    assert ports_of(store, A, 80) == []
    assert store.certify(A, 5, [address(1)], b"five", now=70)
    assert ports_of(store, A, 149) == [1]


def test_an_address_that_is_somebody_elses_is_forgotten():
    store = Peerstore(SETTINGS)
    store.prefer(A, address(1), now=0)
    store.add_addresses(A, [address(2)], 10, now=0)
    store.forget_address(A, address(1))
    store.forget_address(A, address(3))
    store.forget_address(B, address(1))
    assert ports_of(store, A) == [2]
    assert store.preferred_of(A) is None


def test_keys_are_kept_where_the_id_does_not_hold_them():
    store = Peerstore(SETTINGS)
    rsa = ForeignKey.generate("RSA")
    assert store.public_key_of(rsa.peer_id) is None
    store.set_key(rsa.peer_id, rsa.public_key)
    assert store.public_key_of(rsa.peer_id) == rsa.public_key
    mine = PrivateKey.from_seed(bytes(32)).public_key
    store.set_key(mine.peer_id, mine)
    assert store.public_key_of(mine.peer_id) == mine
    assert len(store) == 1


# --- bounds ---------------------------------------------------------------------------------------


def test_of_too_many_addresses_the_least_founded_goes_and_of_these_the_first_to_expire():
    store = Peerstore(SETTINGS)
    store.identify(A, [address(1)], now=0)
    for port, ttl in [(2, 50), (3, 10), (4, 50), (5, 5000)]:
        store.add_addresses(A, [address(port)], ttl, now=0)
    assert ports_of(store, A) == [1, 2, 4, 5]
    store.certify(A, 1, [address(port) for port in range(10, 20)], b"record", now=0)
    assert all(port >= 10 for port in ports_of(store, A))
    assert len(ports_of(store, A)) == 4


def test_hearsay_pushes_out_hearsay_and_nobody_we_met():
    store = Peerstore(SETTINGS)
    store.identify(A, [address(1)], now=0)
    store.add_addresses(B, [address(1)], 10, now=0)
    store.set_protocols(C, ["/x"])
    for peer in (D, E, F):
        store.add_addresses(peer, [address(1)], 10, now=0)
    assert [bool(ports_of(store, peer)) for peer in PEERS] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]
    assert store.protocols_of(C) == {"/x"}


def test_of_those_we_met_the_one_heard_of_longest_ago_goes():
    store = Peerstore(SETTINGS)
    for peer in (A, B, C):
        store.identify(peer, [address(1)], now=0)
    store.set_protocols(A, ["/x"])
    store.identify(D, [address(1)], now=0)
    assert [bool(ports_of(store, peer)) for peer in (A, B, C, D)] == [True, False, True, True]


def test_connected_peers_are_never_forgotten():
    store = Peerstore(SETTINGS)
    for peer in (A, B, C, D):
        store.pin(peer)
        store.identify(peer, [address(1)], now=0)
    assert len(store) == 4  # connections have a budget of their own
    store.identify(E, [address(1)], now=0)
    assert ports_of(store, E) == []
    store.unpin(A, now=0)
    assert len(store) == 3


def test_long_addresses_count_by_their_bytes():
    store = store_of(max_peerstore_peers=1000, max_peerstore_bytes=21_000)
    for number in range(100):
        peer = PrivateKey.from_seed(number.to_bytes(32, "big")).peer_id
        store.certify(peer, 1, [address(1)], bytes(4000), now=0)
        assert store.size <= 21_000
    assert len(store) == 4


# --- on disk --------------------------------------------------------------------------------------


def reloaded(store, *, now=0.0, wall=0.0, later=0.0):
    again = Peerstore(SETTINGS)
    again.restore(store.snapshot(now, wall), 0.0, wall + later)
    return again


def test_what_is_kept_has_what_is_left_of_its_time():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1)], 60, now=1000)
    store.certify(B, 7, [address(2)], b"record", now=1000)
    store.pin(B)
    store.pin(C)
    again = reloaded(store, now=1010, wall=5000, later=20)
    assert ports_of(again, A, 29) == [1]
    assert ports_of(again, A, 30) == []
    assert ports_of(again, B, 59) == [2]
    assert ports_of(again, B, 60) == []
    assert ports_of(again, C) == []
    assert not again.certify(B, 6, [address(3)], b"older", now=0)
    assert again.record_of(B) == b"record"


def test_preference_and_key_survive():
    store = Peerstore(SETTINGS)
    key = ForeignKey.generate("ECDSA")
    store.add_addresses(key.peer_id, [address(1), address(2)], 60, now=0)
    store.prefer(key.peer_id, address(2), now=0)
    store.set_key(key.peer_id, key.public_key)
    again = reloaded(store)
    assert ports_of(again, key.peer_id) == [2, 1]
    assert again.public_key_of(key.peer_id) == key.public_key


def test_configured_addresses_are_left_to_the_configuration():
    store = Peerstore(SETTINGS)
    store.configure(A, [address(1)])
    assert len(reloaded(store)) == 0


def test_a_clock_that_was_set_back_does_not_keep_addresses_for_ever():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1)], 60, now=0)
    again = Peerstore(SETTINGS)
    again.restore(store.snapshot(0, 1_000_000), 0, wall=0)
    assert ports_of(again, A, 99) == [1]
    assert ports_of(again, A, 100) == []


# --- invariants -----------------------------------------------------------------------------------

SMALL = NetworkSettings(
    max_peerstore_peers=4,
    max_addresses_per_peer=3,
    max_peerstore_bytes=6000,
    identified_address_ttl=50.0,
    certified_address_ttl=80.0,
    connected_address_ttl=100.0,
)
peers = st.sampled_from(PEERS)
ports = st.integers(1, 6)
some = st.lists(ports, max_size=5, unique=True).map(lambda found: list(map(address, found)))


class Life(RuleBasedStateMachine):
    """Anything may happen in any order; a model remembers what must hold whatever else does."""

    def __init__(self):
        super().__init__()
        self.store = Peerstore(SMALL)
        self.now = 0.0
        self.pinned = set()
        self.configured = {}
        self.records = {}

    @rule(peer=peers, addresses=some, ttl=st.floats(0, 200))
    def tell(self, peer, addresses, ttl):
        self.store.add_addresses(peer, addresses, ttl, self.now)

    @rule(peer=peers, addresses=some)
    def identify(self, peer, addresses):
        self.store.identify(peer, addresses, self.now)

    @rule(peer=peers, addresses=some, seq=st.integers(0, 5), size=st.integers(1, 1500))
    def certify(self, peer, addresses, seq, size):
        known = self.store.record_of(peer)
        record = bytes([seq]) * size
        counted = self.store.certify(peer, seq, addresses, record, self.now)
        if known is not None:
            assert counted is (seq >= known[0])
        if counted and self.store.record_of(peer) is not None:
            assert self.store.record_of(peer) == record
            known = self.store._entries[peer].addresses
            certified = {each for each, how in known.items() if how.origin is Origin.CERTIFIED}
            assert certified <= set(addresses)

    @rule(peer=peers, port=ports)
    def connect_by(self, peer, port):
        self.store.prefer(peer, address(port), self.now)

    @rule(peer=peers, port=ports)
    def forget(self, peer, port):
        self.store.forget_address(peer, address(port))
        if port not in self.configured.get(peer, ()):
            assert address(port) not in self.store.addresses_of(peer, self.now)

    @rule(peer=st.sampled_from(PEERS[:2]), port=ports)
    def configure(self, peer, port):
        self.store.configure(peer, [address(port)])
        self.configured.setdefault(peer, set()).add(port)

    @rule(peer=peers, protocols=st.sets(st.sampled_from(["/a", "/b"])))
    def serve(self, peer, protocols):
        self.store.set_protocols(peer, protocols)

    @rule(peer=peers)
    def pin(self, peer):
        self.store.pin(peer)
        self.pinned.add(peer)

    @rule(peer=peers)
    def unpin(self, peer):
        self.store.unpin(peer, self.now)
        self.pinned.discard(peer)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds):
        self.now += seconds
        self.store.expire(self.now)

    @rule()
    def restart(self):
        snapshot = self.store.snapshot(self.now, 1000 + self.now)
        expected = {  # what is kept for another moment; rounding may cost an instant
            peer: {each for each, known in entry.addresses.items() if known.until > self.now + 1}
            for peer, entry in self.store._entries.items()
        }
        self.store = Peerstore(SMALL)
        self.store.restore(snapshot, self.now, 1000 + self.now)
        self.pinned.clear()
        self.configured.clear()
        for peer, addresses in expected.items():
            if len(snapshot) <= 2:  # small enough to fit whole
                assert addresses <= set(self.store.addresses_of(peer, self.now))

    def chosen(self, peer):
        return {address(port) for port in self.configured.get(peer, ())}

    @invariant()
    def within_its_bounds_unless_all_are_kept(self):
        kept = self.pinned | set(self.configured)
        over = len(self.store) > 4 or self.store.size > 6000
        assert not over or set(self.store._entries) <= kept
        for entry in self.store._entries.values():
            assert len(entry.addresses) <= 3

    @invariant()
    def those_connected_or_configured_are_known(self):
        assert self.pinned <= set(self.store._entries)
        for peer, chosen in self.configured.items():
            assert chosen <= set(ports_of(self.store, peer, self.now))

    @invariant()
    def its_books_are_right(self):
        entries = self.store._entries
        assert self.store.size == sum(each.measure() for each in entries.values())
        filed = [peer for ages in self.store._ages.values() for peer in ages]
        assert sorted(filed) == sorted(entries)
        for peer, entry in entries.items():
            assert entry.expires == entry.next_expiry()
            assert peer in self.store._ages[entry.rate()]

    @invariant()
    def nothing_expired_is_told(self):
        for peer, entry in self.store._entries.items():
            if peer not in self.pinned:
                for each in set(self.store.addresses_of(peer, self.now)) - self.chosen(peer):
                    assert entry.addresses[each].until > self.now


TestLife = Life.TestCase
TestLife.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_flood_of_tales_costs_bounded_memory_and_no_acquaintance():
    store = store_of(max_peerstore_peers=100)
    rng = random.Random(0)
    friends = [PrivateKey.from_seed(rng.randbytes(32)).peer_id for _ in range(50)]
    for friend in friends:
        store.certify(friend, 1, [address(1)], b"record", now=0)
    for _ in range(1000):
        stranger = PrivateKey.from_seed(rng.randbytes(32)).peer_id
        store.add_addresses(stranger, [address(port) for port in range(1, 9)], 1e9, now=0)
    assert len(store) == 100
    assert all(ports_of(store, friend) == [1] for friend in friends)


@pytest.mark.parametrize("kind", ["RSA", "ECDSA"])
def test_ids_that_hold_no_key_are_told_apart(kind):
    assert str(ForeignKey.generate(kind).peer_id).startswith("Qm")


# --- peers of an earlier session ------------------------------------------------------------------


def test_peers_met_before_are_listed_those_reached_first_and_hearsay_not_at_all():
    store = store_of()
    store.prefer(A, address(1), now=0)
    store.identify(B, [address(2)], now=0)
    store.add_addresses(C, [address(3)], 10, now=0)
    store.prefer(D, address(4), now=0)
    store.set_protocols(E, {"/a"})
    assert store.met(9, now=0) == [D, A, B]
    assert store.met(1, now=0) == [D]
    store.pin(D)
    assert store.met(9, now=0) == [A, B]
    assert store.met(9, now=math.inf) == []
