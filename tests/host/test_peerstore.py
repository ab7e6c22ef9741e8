import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import NetworkSettings
from p2pnode.host.peerstore import Peerstore, write_atomically
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

SETTINGS = NetworkSettings(max_peerstore_peers=3, max_addresses_per_peer=4, address_ttl=100.0)
PEERS = [PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in range(1, 7)]
A, B, C, D, E, F = PEERS


def address(port):
    return tcp_address("10.0.0.1", port)


def test_addresses_expire():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1)], 10, now=0)
    store.add_addresses(A, [address(2)], 20, now=0)
    assert store.addresses_of(A, 9) == [address(1), address(2)]
    assert store.addresses_of(A, 10) == [address(2)]
    store.expire(15)
    assert store.addresses_of(A, 0) == [address(2)]
    store.expire(20)
    assert len(store) == 0


def test_a_shorter_lifetime_does_not_cut_a_longer_one():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1)], 100, now=0)
    store.add_addresses(A, [address(1)], 10, now=0)
    assert store.addresses_of(A, 50) == [address(1)]


def test_the_address_that_worked_last_comes_first():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1), address(2), address(3)], 10, now=0)
    store.prefer(A, address(3), 10, now=0)
    assert store.addresses_of(A, 0) == [address(3), address(1), address(2)]


def test_of_too_many_addresses_the_first_to_expire_goes():
    store = Peerstore(SETTINGS)
    for port, ttl in [(1, 50), (2, 10), (3, 50), (4, 50), (5, 50)]:
        store.add_addresses(A, [address(port)], ttl, now=0)
    assert store.addresses_of(A, 0) == [address(port) for port in (1, 3, 4, 5)]


def test_the_peer_heard_of_longest_ago_is_forgotten_but_never_a_pinned_one():
    store = Peerstore(SETTINGS)
    for peer in (A, B, C):
        store.add_addresses(peer, [address(1)], 10, now=0)
    store.pin(A)
    store.set_protocols(B, ["/x"])
    store.add_addresses(D, [address(1)], 10, now=0)
    assert [bool(store.addresses_of(peer, 0)) for peer in (A, B, C, D)] == [True, True, False, True]
    assert store.protocols_of(B) == {"/x"}
    for peer in (B, D, E):
        store.pin(peer)
    assert len(store) == 4  # all pinned: connections have a budget of their own
    assert store.addresses_of(E, 0) == []


def test_while_pinned_addresses_stay_and_afterwards_they_expire():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1)], 10, now=0)
    store.pin(A)
    store.expire(50)
    assert store.addresses_of(A, 50) == [address(1)]
    store.unpin(A, now=50)
    assert store.addresses_of(A, 149) == [address(1)]
    assert store.addresses_of(A, 150) == []


def test_what_is_saved_is_loaded_with_what_is_left_of_its_time():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1)], 60, now=1000)
    store.add_addresses(B, [address(2)], 10_000, now=1000)
    store.pin(C)
    text = store.dump(now=1010, wall=5000)
    again = Peerstore(SETTINGS)
    again.load(text, now=7, wall=5020)
    assert again.addresses_of(A, 7 + 29) == [address(1)]
    assert again.addresses_of(A, 7 + 30) == []
    assert again.addresses_of(B, 7 + 79) == [address(2)]
    assert again.addresses_of(B, 7 + 80) == []  # nothing is kept for longer than address_ttl
    assert again.addresses_of(C, 0) == []


def test_a_clock_that_jumped_back_does_not_keep_addresses_for_ever():
    store = Peerstore(SETTINGS)
    store.add_addresses(A, [address(1)], 60, now=0)
    again = Peerstore(SETTINGS)
    again.load(store.dump(now=0, wall=1_000_000), now=0, wall=0)
    assert again.addresses_of(A, SETTINGS.address_ttl) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "peers": {}}',
        '{"format": 1, "peers": []}',
        '{"format": 1, "peers": {"nobody": {}}}',
        json.dumps({"format": 1, "peers": {str(A): {"/nowhere": 1}}}),
        json.dumps({"format": 1, "peers": {str(A): {"/ip4/1.2.3.4/tcp/1": None}}}),
        json.dumps({"format": 1, "peers": {str(A): ["/ip4/1.2.3.4/tcp/1"]}}),
    ],
)
def test_a_broken_file_is_told_apart(text):
    with pytest.raises(ValueError, match=r".+"):
        Peerstore(SETTINGS).load(text, 0, 0)


def nested(inner):
    names = st.sampled_from(["format", "peers", "x"])
    return st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), nested, max_leaves=8))
def test_any_json_is_refused_or_loaded(document):
    try:
        Peerstore(SETTINGS).load(json.dumps(document), 0, 0)
    except ValueError:
        return


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "peers.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
