from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.protocols.kad.messages import Contact
from p2pnode.protocols.kad.provider_store import MAX_CONTACT_BYTES, ProviderStore
from p2pnode.wire.peer_id import PeerId

PEERS = [PeerId(b"\x12\x20" + bytes([n]) * 32) for n in range(1, 9)]


def test_providers_are_listed_latest_first_until_they_expire():
    store = ProviderStore(max_keys=9, max_per_key=9, max_keys_per_peer=9, max_providers=99)
    for number, peer in enumerate(PEERS[:3]):
        store.add(b"k", Contact(peer), expires=10.0 + number)
    store.add(b"k", Contact(PEERS[0]), expires=20.0)
    assert [each.peer_id for each in store.get(b"k", 0.0)] == [PEERS[0], PEERS[2], PEERS[1]]
    assert [each.peer_id for each in store.get(b"k", 11.0)] == [PEERS[0], PEERS[2]]
    store.expire(30.0)
    assert len(store) == 0
    assert store.get(b"k", 0.0) == []


def test_providers_are_bounded_per_key_and_in_keys():
    store = ProviderStore(max_keys=2, max_per_key=3, max_keys_per_peer=9, max_providers=99)
    for peer in PEERS:
        store.add(b"k", Contact(peer), expires=10.0)
    assert [each.peer_id for each in store.get(b"k", 0.0)] == PEERS[:-4:-1]
    store.add(b"l", Contact(PEERS[0]), expires=10.0)
    store.add(b"k", Contact(PEERS[0]), expires=10.0)
    store.add(b"m", Contact(PEERS[0]), expires=10.0)
    assert [len(store.get(key, 0.0)) for key in (b"k", b"l", b"m")] == [3, 0, 1]


def test_a_peer_that_provides_too_much_displaces_its_own_oldest():
    store = ProviderStore(max_keys=9, max_per_key=9, max_keys_per_peer=2, max_providers=99)
    store.add(b"a", Contact(PEERS[1]), expires=10.0)
    for key in (b"a", b"b", b"a", b"c"):
        store.add(key, Contact(PEERS[0]), expires=10.0)
    assert [len(store.get(key, 0.0)) for key in (b"a", b"b", b"c")] == [2, 0, 1]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 30), st.integers(0, 3)))
)
def test_the_store_stays_consistent_and_bounded(steps):
    store = ProviderStore(max_keys=3, max_per_key=2, max_keys_per_peer=2, max_providers=99)
    now = 0.0
    for number, peer, life, passed in steps:
        now += passed
        store.expire(now)
        store.add(b"%d" % number, Contact(PEERS[peer]), now + life)
        pairs = {(key, who) for key, providers in store._keys.items() for who in providers}
        assert pairs == {(key, who) for who, keys in store._of_peer.items() for key in keys}
        assert store._count == len(pairs)
        assert len(store) <= 3
        assert all(len(each) <= 2 for each in (*store._keys.values(), *store._of_peer.values()))
        assert {(key, who) for _, key, who in store._expiries} >= pairs
        assert len(store._expiries) <= 2 * len(pairs) + 65
    store.expire(now + 30)
    assert len(store) == 0
    assert store.next_expiry() == float("inf")


def test_providers_are_bounded_in_all_the_longest_unrenewed_key_gives_way():
    store = ProviderStore(max_keys=99, max_per_key=99, max_keys_per_peer=99, max_providers=5)
    for number, key in enumerate((b"k", b"k", b"l", b"l", b"m", b"m")):
        store.add(key, Contact(PEERS[number]), expires=10.0)
    found = [each.peer_id for key in (b"k", b"l", b"m") for each in store.get(key, 0.0)]
    assert sorted(found) == sorted(PEERS[1:6])


def test_no_more_addresses_of_a_provider_are_kept_than_there_is_room_for():
    store = ProviderStore(max_keys=9, max_per_key=9, max_keys_per_peer=9, max_providers=9)
    names = [f"{letter * 60}.example" for letter in "abcdefghijklmnop"]
    addresses = tuple(Multiaddr(f"/dns4/{name}/tcp/{port}") for name in names for port in (1, 2))
    store.add(b"k", Contact(PEERS[0], addresses), expires=10.0)
    (kept,) = store.get(b"k", 0.0)
    assert 3 < len(kept.addresses) < len(addresses)
    assert kept.addresses == addresses[: len(kept.addresses)]
    assert len(b"".join(each.to_bytes() for each in kept.addresses)) <= MAX_CONTACT_BYTES
