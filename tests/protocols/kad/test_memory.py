from p2pnode.protocols.kad.memory import MAX_KEYS, Absences, PeersByKey
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


def test_an_absence_is_remembered_for_its_lifetime_or_until_something_comes():
    absences = Absences(3.0)
    absences.remember(b"k", 4.0, 5.0)
    assert absences.holds(b"k", 7.9)
    assert not absences.holds(b"k", 8.0)
    assert not absences.holds(b"other", 5.0)
    absences.remember(b"k", 7.0, 8.0)
    absences.receive_stored(b"k", 8.0)
    assert not absences.holds(b"k", 8.0)
    absences.remember(b"k", 7.5, 8.5)  # a search that had begun before
    assert not absences.holds(b"k", 8.5)
    absences.remember(b"k", 8.5, 9.0)
    assert absences.holds(b"k", 9.0)


def test_absences_are_bounded():
    absences = Absences(3.0)
    for number in range(MAX_KEYS + 5):
        absences.receive_stored(b"%d" % number, 0.0)
        absences.remember(b"%d" % number, 1.0, 1.0)
    assert len(absences) == MAX_KEYS
    assert len(absences._stored) == MAX_KEYS
    assert not absences.holds(b"0", 1.0)
    assert absences.holds(b"%d" % (MAX_KEYS + 4), 1.0)


def test_an_absence_can_be_forgotten_by_who_has_a_reason_to_ask_again():
    absences = Absences(3.0)
    absences.remember(b"a", 0.0, 0.0)
    absences.forget(b"a")
    absences.forget(b"never known")
    assert not absences.holds(b"a", 1.0)
