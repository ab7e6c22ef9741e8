import time

import pytest
from multiaddr import Multiaddr

from p2pnode.config import DhtSettings
from p2pnode.errors import ProtocolError, ResourceLimitError
from p2pnode.protocols.kad.core import KadCore, time_text
from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import (
    MAX_PEERS,
    Contact,
    Message,
    MessageType,
    Record,
    decode,
    encode,
)
from p2pnode.protocols.kad.validators import Validator
from p2pnode.wire.peer_id import PeerId


def _by_distance(target, peers):
    return sorted(peers, key=lambda peer: point(peer) ^ target)


class Rising(Validator):
    """Values are numbers that may only rise; a value lives as many seconds past 1000."""

    def validate(self, key, value, now):
        if not value.isdigit():
            raise ProtocolError("not a number")

    def merge(self, key, values, now):
        best = max(values, key=int)
        return best if int(best) + 1000 > now else b""

    def expires(self, key, value):
        return 1000.0 + int(value)


def _peer(number: int) -> PeerId:
    return PeerId(b"\x12\x20" + number.to_bytes(32, "big"))


OWN, SENDER, CLIENT = _peer(0), _peer(1), _peer(99)
ADDRESS = Multiaddr("/ip4/127.0.0.1/tcp/1")
WALL = 1000.0
NOW = 10.0


def _contact_of(peer: PeerId) -> Contact:
    return Contact(peer, () if peer == _peer(7) else (ADDRESS,))


@pytest.fixture
def core():
    times = {"record_ttl": 50.0, "provider_ttl": 50.0, "republish_interval": 20.0}
    settings = DhtSettings(bucket_size=4, max_record_bytes=100, **times)
    core = KadCore(OWN, settings, {"n": Rising()})
    for number in range(1, 40):
        core.table.receive_alive(_peer(number), 0.0)
    return core


def _ask(core, kind, key=b"", wall=WALL, sender=SENDER, **fields):
    request = Message(type=kind, key=key, **fields)
    return core.receive_request(sender, request, _contact_of, NOW, wall)


def _put(core, value, key=b"/n/x", wall=WALL):
    return _ask(core, MessageType.PUT_VALUE, key, wall, record=Record(key, value))


def _get(core, key=b"/n/x", wall=WALL):
    answer = _ask(core, MessageType.GET_VALUE, key, wall)
    return answer.record and answer.record.value


def test_find_node_names_the_k_closest_without_the_one_who_asks(core):
    answer = _ask(core, MessageType.FIND_NODE, b"key")
    known = [peer for peer in core.table if peer not in {SENDER, _peer(7)}]
    assert [each.peer_id for each in answer.closer] == _by_distance(point(b"key"), known)[:4]
    assert (answer.type, answer.key) == (MessageType.FIND_NODE, b"key")


def test_no_more_providers_are_told_of_than_others_read():
    core = KadCore(OWN, DhtSettings(max_providers_per_key=2 * MAX_PEERS), {})
    for number in range(1, 2 * MAX_PEERS):
        provider = Contact(_peer(number), (ADDRESS,))
        core.providers.add(b"multihash", provider, WALL + number)
    answer = _ask(core, MessageType.GET_PROVIDERS, b"multihash")
    assert len(answer.providers) == MAX_PEERS
    assert answer.providers[0].peer_id == _peer(2 * MAX_PEERS - 1)  # the latest renewed first
    assert decode(encode(answer)).providers == answer.providers


def test_find_node_names_the_target_first_even_a_client(core):
    answer = _ask(core, MessageType.FIND_NODE, bytes(CLIENT))
    assert answer.closer[0].peer_id == CLIENT
    assert len(answer.closer) == 5
    own = _ask(core, MessageType.FIND_NODE, bytes(OWN))
    assert own.closer[0] == Contact(OWN, (ADDRESS,))
    known = _by_distance(point(b""), core.table)[0]
    names = [each.peer_id for each in _ask(core, MessageType.FIND_NODE, bytes(known)).closer]
    assert names.count(known) == 1


def test_find_node_does_not_name_the_one_who_asks_or_a_target_without_address(core):
    core.table.remove(_peer(7))
    for target in (SENDER, _peer(7)):
        answer = _ask(core, MessageType.FIND_NODE, bytes(target))
        assert target not in [each.peer_id for each in answer.closer]


def test_a_stored_value_is_served_with_its_time_and_closer_peers(core):
    request = Message(type=MessageType.PUT_VALUE, key=b"/n/x", record=Record(b"/n/x", b"7"))
    assert core.receive_request(SENDER, request, _contact_of, NOW, WALL) == request
    answer = _ask(core, MessageType.GET_VALUE, b"/n/x")
    assert answer.record == Record(b"/n/x", b"7", "1970-01-01T00:16:40Z")
    assert len(answer.closer) == 4
    assert _ask(core, MessageType.GET_VALUE, b"/n/unknown").record is None


def test_a_stored_value_is_merged_with_what_was_there(core):
    _put(core, b"9")
    _put(core, b"3")
    assert _get(core) == b"9"


def test_a_value_ends_by_its_own_word_or_by_the_stores_limit(core):
    _put(core, b"9")
    assert _get(core, wall=1008.9) == b"9"
    assert _get(core, wall=1009.0) is None
    _put(core, b"900", wall=1010.0)
    assert _get(core, wall=1059.9) == b"900"
    core.expire(1060.0)
    assert len(core.records) == 0


def test_a_merge_that_leaves_nothing_removes_the_record(core):
    _put(core, b"9")
    _put(core, b"3", wall=1020.0)
    assert _get(core, wall=1000.0) is None


@pytest.mark.parametrize(
    ("kind", "key", "fields"),
    [
        (MessageType.PUT_VALUE, b"/n/x", {}),
        (MessageType.PUT_VALUE, b"/n/x", {"record": Record(b"/n/x", b"none")}),
        (MessageType.PUT_VALUE, b"/n/x", {"record": Record(b"/n/x", b"1" * 101)}),
        (MessageType.PUT_VALUE, b"/o/x", {"record": Record(b"/o/x", b"1")}),
        (MessageType.GET_VALUE, b"/o/x", {}),
        (MessageType.GET_VALUE, b"", {}),
        (MessageType.FIND_NODE, b"", {}),
        (MessageType.ADD_PROVIDER, b"m" * 81, {"providers": (Contact(SENDER),)}),
        (MessageType.GET_PROVIDERS, b"m" * 81, {}),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused_and_changes_nothing(core, kind, key, fields):
    with pytest.raises(ProtocolError):
        _ask(core, kind, key, **fields)
    assert len(core.records) == len(core.providers) == 0


def test_providers_are_those_who_said_so_of_themselves(core):
    both = (Contact(SENDER, (ADDRESS,)), Contact(CLIENT, (ADDRESS,)))
    assert _ask(core, MessageType.ADD_PROVIDER, b"mh", providers=both) is None
    answer = _ask(core, MessageType.GET_PROVIDERS, b"mh", sender=CLIENT)
    assert answer.providers == both[:1]
    assert len(answer.closer) == 4
    assert _ask(core, MessageType.GET_PROVIDERS, b"mh", wall=1050.0).providers == ()


def test_a_ping_is_echoed(core):
    assert _ask(core, MessageType.PING) == Message(type=MessageType.PING)


def test_a_node_is_near_a_key_when_it_is_among_the_k_closest(core):
    others = _by_distance(point(b"key"), map(_peer, range(1, 40)))
    rank = _by_distance(point(b"key"), map(_peer, range(40))).index(OWN)
    assert core.is_near(b"key", others[:3])  # fewer than k are known: everybody is near
    assert core.is_near(b"key", others[:4]) is (rank < 4)
    near = next(key for key in (b"%d" % n for n in range(999)) if _rank(key) == 3)
    far = next(key for key in (b"%d" % n for n in range(999)) if _rank(key) == 4)
    assert core.is_near(near, _by_distance(point(near), map(_peer, range(1, 40)))[:4])
    assert not core.is_near(far, _by_distance(point(far), map(_peer, range(1, 40)))[:4])


def _rank(key):
    return _by_distance(point(key), map(_peer, range(40))).index(OWN)


def test_peers_without_a_sign_of_life_are_not_named_unless_connected(core):
    late = 2 * DhtSettings().liveness_interval + 1.0
    heard, connected, *_ = (peer for peer in core.table if peer != SENDER)
    core.table.receive_alive(heard, late - 5.0)

    def contact_of(peer):
        return Contact(peer, (ADDRESS,), connected=peer == connected)

    request = Message(type=MessageType.FIND_NODE, key=b"key")
    answer = core.receive_request(SENDER, request, contact_of, late, WALL)
    assert {each.peer_id for each in answer.closer} == {heard, connected}


def test_a_copy_ends_when_the_first_one_does(core):
    copy = Record(b"/n/x", b"999", time_text(WALL - 40.0))
    _ask(core, MessageType.PUT_VALUE, b"/n/x", record=copy)
    assert _ask(core, MessageType.GET_VALUE, b"/n/x").record == copy
    assert _get(core, wall=WALL + 9.9) == b"999"
    assert _get(core, wall=WALL + 10.0) is None


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Midway"])
def test_a_time_without_a_zone_is_utc_wherever_the_node_is(core, monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        _ask(
            core,
            MessageType.PUT_VALUE,
            b"/n/x",
            record=Record(b"/n/x", b"999", "1970-01-01T00:16:20"),
        )
        assert core.records.get(b"/n/x", WALL).received == 980.0
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("received", ["yesterday", "", time_text(WALL + 1e6), time_text(0.0)])
def test_a_time_that_cannot_be_true_does_no_harm(core, received):
    _ask(core, MessageType.PUT_VALUE, b"/n/x", record=Record(b"/n/x", b"999", received))
    assert _get(core, wall=WALL + 4.9) == b"999"
    assert _get(core, wall=WALL + 50.0) is None


def test_a_value_stored_again_lives_on_and_an_older_copy_does_not_shorten_its_life(core):
    _put(core, b"999")
    _put(core, b"999", wall=WALL + 30.0)
    old = Record(b"/n/x", b"999", time_text(WALL))
    _ask(core, MessageType.PUT_VALUE, b"/n/x", WALL + 31.0, record=old)
    assert _get(core, wall=WALL + 79.0) == b"999"
    assert core.records.get(b"/n/x", WALL + 79.0).renewed == WALL + 31.0


def test_a_sender_beyond_its_share_is_refused_and_others_are_not():
    core = KadCore(OWN, DhtSettings(max_records_per_peer=2), {"n": Rising()})
    for key in (b"/n/a", b"/n/b"):
        _put(core, b"9", key)
    with pytest.raises(ResourceLimitError):
        _put(core, b"9", b"/n/c")
    other = Record(b"/n/c", b"9")
    assert _ask(core, MessageType.PUT_VALUE, b"/n/c", sender=CLIENT, record=other)
    assert core.store(b"/n/d", b"9", WALL)


def test_the_next_expiry_covers_values_and_providers(core):
    assert core.next_expiry() == float("inf")
    _ask(core, MessageType.ADD_PROVIDER, b"mh", providers=(Contact(SENDER, (ADDRESS,)),))
    assert core.next_expiry() == WALL + 50.0
    _put(core, b"7")
    assert core.next_expiry() == WALL + 7.0
