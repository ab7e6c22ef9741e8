from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.records import RecordStore, StoredRecord
from p2pnode.wire.peer_id import PeerId

OWN = PeerId(b"\x12\x20" + bytes(32))
PEERS = [PeerId(b"\x12\x20" + bytes([n]) * 32) for n in range(1, 9)]


def _record(value: bytes = b"v", expires: float = 100.0) -> StoredRecord:
    return StoredRecord(value, received=0.0, expires=expires)


def _store(max_records, max_bytes, per_peer=99, bytes_per_peer=99, **shares):
    return RecordStore(
        OWN,
        max_records=max_records,
        max_bytes=max_bytes,
        max_records_per_peer=per_peer,
        max_bytes_per_peer=bytes_per_peer,
        shares=shares,
    )


def _by_distance(keys):
    return sorted(keys, key=lambda key: point(key) ^ point(OWN))


def test_a_record_is_served_until_it_expires_and_then_dropped():
    store = _store(9, 99)
    assert store.put(b"k", _record(expires=10.0), 0.0)
    assert store.get(b"k", 9.9).value == b"v"
    assert store.get(b"k", 10.0) is None
    store.expire(10.0)
    assert (len(store), store.size) == (0, 0)


def test_a_record_that_has_expired_already_is_not_taken():
    store = _store(9, 99)
    assert not store.put(b"k", _record(expires=1.0), 1.0)
    assert len(store) == 0


def test_a_renewed_record_lives_until_its_new_expiry():
    store = _store(9, 99)
    store.put(b"k", _record(expires=10.0), 0.0)
    store.put(b"k", _record(b"new", expires=20.0), 5.0)
    store.expire(15.0)
    assert store.get(b"k", 15.0).value == b"new"
    assert store.size == 3


def test_a_full_store_keeps_the_keys_closest_to_the_node():
    store = _store(3, 99)
    keys = [b"key%d" % n for n in range(20)]
    for key in keys:
        store.put(key, _record(), 0.0)
    assert [key for key in _by_distance(keys) if store.get(key, 0.0)] == _by_distance(keys)[:3]


def test_bytes_are_bounded_too_and_a_record_too_large_leaves_the_old_one():
    store = _store(99, 10)
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
    store = _store(5, 12)
    now = 0.0
    for number, size, expires, passed in steps:
        now += passed
        store.put(b"%d" % number, _record(b"x" * size, float(expires)), now)
        assert len(store) <= 5
        assert store.size == sum(len(each.value) for each in store._records.values()) <= 12
        order = store._orders.get("", [])
        assert sorted(key for _, key in order) == sorted(store._records)
        assert order == sorted(order)
        assert len(store._expiries) <= 2 * len(store) + 65
        assert {key for _, key in store._expiries} >= set(store._records)
        assert all(each.expires > now for each in store._records.values())


def test_one_sender_fills_its_share_and_no_more():
    store = _store(9, 99, per_peer=2, bytes_per_peer=5)
    for key in (b"a", b"b"):
        assert store.put(key, replace(_record(b"22"), sender=PEERS[0]), 0.0)
    assert not store.put(b"c", replace(_record(b""), sender=PEERS[0]), 0.0)
    assert store.put(b"a", replace(_record(b"333"), sender=PEERS[0]), 0.0)
    assert not store.put(b"a", replace(_record(b"4444"), sender=PEERS[0]), 0.0)
    assert store.get(b"a", 0.0).value == b"333"
    assert store.put(b"c", replace(_record(b"4444"), sender=PEERS[1]), 0.0)
    assert store.put(b"d", _record(b"66666666"), 0.0)  # this node's own are not counted
    store.remove(b"a")
    assert store.put(b"e", replace(_record(b"3"), sender=PEERS[0]), 0.0)


def test_one_namespace_fills_its_share_with_its_own_closest_keys():
    store = _store(10, 999, pk=0.2)
    keys = [b"/pk/%d" % n for n in range(20)]
    assert store.put(b"/other/x", _record(), 0.0)
    for key in keys:
        store.put(key, _record(), 0.0)
    assert [key for key in _by_distance(keys) if store.get(key, 0.0)] == _by_distance(keys)[:2]
    assert store.get(b"/other/x", 0.0)


def test_the_next_expiry_is_told():
    store = _store(9, 99)
    assert store.next_expiry() == float("inf")
    store.put(b"a", _record(expires=20.0), 0.0)
    store.put(b"b", _record(expires=10.0), 0.0)
    assert store.next_expiry() == 10.0
    assert sorted(store) == [b"a", b"b"]


def test_a_value_that_does_not_fit_after_all_costs_no_other_its_place():
    near, large, *far = _by_distance([b"key%d" % n for n in range(6)])
    store = _store(99, 8)
    assert store.put(near, _record(b"1234"), 0.0)
    for key in far:
        assert store.put(key, _record(b"v"), 0.0)
    assert not store.put(large, _record(b"too large"), 0.0)
    assert set(store) == {near, *far}
    assert store.put(large, _record(b"fits"), 0.0)
    assert set(store) == {near, large}


def test_a_namespace_gives_way_to_another_only_where_that_helps():
    keys = _by_distance([b"/%s/%d" % (name, n) for name in (b"a", b"b") for n in range(4)])
    store = _store(99, 6, a=0.5)
    near, *rest = keys
    for key in rest:
        store.put(key, _record(b"v"), 0.0)
    kept = set(store)
    assert not store.put(near, _record(b"1234567"), 0.0)
    assert set(store) == kept
