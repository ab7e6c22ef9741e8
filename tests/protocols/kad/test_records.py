from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import Contact
from p2pnode.protocols.kad.records import ProviderStore, RecordStore, StoredRecord
from p2pnode.wire.peer_id import PeerId

OWN = PeerId(b"\x12\x20" + bytes(32))
PEERS = [PeerId(b"\x12\x20" + bytes([n]) * 32) for n in range(1, 9)]


def _record(value: bytes = b"v", expires: float = 100.0) -> StoredRecord:
    return StoredRecord(value, received=0.0, expires=expires)


def _by_distance(keys):
    return sorted(keys, key=lambda key: point(key) ^ point(OWN))


def test_a_record_is_served_until_it_expires_and_then_dropped():
    store = RecordStore(OWN, max_records=9, max_bytes=99)
    assert store.put(b"k", _record(expires=10.0), 0.0)
    assert store.get(b"k", 9.9).value == b"v"
    assert store.get(b"k", 10.0) is None
    store.expire(10.0)
    assert (len(store), store.size) == (0, 0)


def test_a_record_that_has_expired_already_is_not_taken():
    store = RecordStore(OWN, max_records=9, max_bytes=99)
    assert not store.put(b"k", _record(expires=1.0), 1.0)
    assert len(store) == 0


def test_a_renewed_record_lives_until_its_new_expiry():
    store = RecordStore(OWN, max_records=9, max_bytes=99)
    store.put(b"k", _record(expires=10.0), 0.0)
    store.put(b"k", _record(b"new", expires=20.0), 5.0)
    store.expire(15.0)
    assert store.get(b"k", 15.0).value == b"new"
    assert store.size == 3


def test_a_full_store_keeps_the_keys_closest_to_the_node():
    store = RecordStore(OWN, max_records=3, max_bytes=99)
    keys = [b"key%d" % n for n in range(20)]
    for key in keys:
        store.put(key, _record(), 0.0)
    assert [key for key in _by_distance(keys) if store.get(key, 0.0)] == _by_distance(keys)[:3]


def test_bytes_are_bounded_too_and_a_record_too_large_leaves_the_old_one():
    store = RecordStore(OWN, max_records=99, max_bytes=10)
    near, middle, far = _by_distance([b"a", b"b", b"c"])
    assert store.put(near, _record(b"4444"), 0.0)
    assert store.put(far, _record(b"4444"), 0.0)
    assert store.put(middle, _record(b"333"), 0.0)
    assert store.get(far, 0.0) is None
    assert not store.put(middle, _record(b"7" * 7), 0.0)
    assert store.get(middle, 0.0).value == b"333"
    assert store.size == 7


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 30), st.integers(0, 3)))
)
def test_the_store_stays_consistent_and_bounded(steps):
    store = RecordStore(OWN, max_records=5, max_bytes=12)
    now = 0.0
    for number, size, expires, passed in steps:
        now += passed
        store.put(b"%d" % number, _record(b"x" * size, float(expires)), now)
        assert len(store) <= 5
        assert store.size == sum(len(each.value) for each in store._records.values()) <= 12
        assert sorted(key for _, key in store._order) == sorted(store._records)
        assert store._order == sorted(store._order)
        assert len(store._expiries) <= 2 * len(store) + 65
        assert {key for _, key in store._expiries} >= set(store._records)
        assert all(each.expires > now for each in store._records.values())


def test_providers_are_listed_latest_first_until_they_expire():
    store = ProviderStore(max_keys=9, max_per_key=9)
    for number, peer in enumerate(PEERS[:3]):
        store.add(b"k", Contact(peer), expires=10.0 + number)
    store.add(b"k", Contact(PEERS[0]), expires=20.0)
    assert [each.peer_id for each in store.get(b"k", 0.0)] == [PEERS[0], PEERS[2], PEERS[1]]
    assert [each.peer_id for each in store.get(b"k", 11.0)] == [PEERS[0], PEERS[2]]
    store.expire(30.0)
    assert len(store) == 0
    assert store.get(b"k", 0.0) == []


def test_providers_are_bounded_per_key_and_in_keys():
    store = ProviderStore(max_keys=2, max_per_key=3)
    for peer in PEERS:
        store.add(b"k", Contact(peer), expires=10.0)
    assert [each.peer_id for each in store.get(b"k", 0.0)] == PEERS[:-4:-1]
    store.add(b"l", Contact(PEERS[0]), expires=10.0)
    store.add(b"k", Contact(PEERS[0]), expires=10.0)
    store.add(b"m", Contact(PEERS[0]), expires=10.0)
    assert [len(store.get(key, 0.0)) for key in (b"k", b"l", b"m")] == [3, 0, 1]
