from p2pnode.protocols.kad.memory import MAX_KEYS, PeersByKey
from p2pnode.wire.peer_id import PeerId

PEERS = [PeerId(b"\x12\x20" + bytes([n]) * 32) for n in range(3)]


def test_peers_are_remembered_for_their_lifetime():
    memory = PeersByKey(10.0)
    memory.remember(b"k", PEERS, 5.0)
    assert memory.recall(b"k", 14.9) == PEERS
    assert memory.recall(b"k", 15.0) == []
    memory.remember(b"k", PEERS[:1], 15.0)
    assert memory.recall(b"k", 16.0) == PEERS[:1]
    memory.forget(b"k")
    memory.forget(b"unknown")
    assert memory.recall(b"k", 16.0) == []


def test_the_number_of_keys_is_bounded_and_the_latest_are_kept():
    memory = PeersByKey(10.0)
    for number in range(MAX_KEYS + 5):
        memory.remember(b"%d" % number, PEERS, 0.0)
        memory.remember(b"kept", PEERS, 0.0)
    assert len(memory) == MAX_KEYS
    assert memory.recall(b"0", 0.0) == []
    assert memory.recall(b"kept", 0.0) == memory.recall(b"%d" % (MAX_KEYS + 4), 0.0) == PEERS
