from p2pnode.protocols.pubsub.cache import MessageCache, SeenCache
from p2pnode.protocols.pubsub.messages import Message
from p2pnode.wire.keys import PrivateKey

PEER = PrivateKey.from_seed(bytes(32)).peer_id
OTHER = PrivateKey.from_seed(bytes([1]) * 32).peer_id


def put(cache, name, topic="t", size=10):
    cache.put(name, Message(topic=topic, data=name), bytes(size))


def test_an_id_is_seen_for_its_time():
    seen = SeenCache(10.0, 100)
    seen.add(b"a", 0.0)
    seen.add(b"b", 5.0)
    seen.expire(9.9)
    assert b"a" in seen
    seen.expire(10.0)
    assert b"a" not in seen
    assert b"b" in seen


def test_a_full_cache_forgets_the_oldest():
    seen = SeenCache(10.0, 2)
    for name in (b"a", b"b", b"c"):
        seen.add(name, 0.0)
    assert [name in seen for name in (b"a", b"b", b"c")] == [False, True, True]
    assert len(seen) == 2


def test_messages_are_told_of_for_fewer_windows_than_they_are_kept():
    cache = MessageCache(windows=3, gossiped=2, max_bytes=1000)
    put(cache, b"a")
    put(cache, b"x", topic="other")
    cache.shift()
    put(cache, b"b")
    assert cache.ids("t") == [b"b", b"a"]
    assert list(cache.topics()) == ["t", "other"]
    cache.shift()
    assert cache.ids("t") == [b"b"]
    assert cache.get_for(b"a", PEER) is not None
    cache.shift()
    assert cache.get_for(b"a", PEER) is None
    assert cache.get_for(b"b", PEER) is not None
    assert len(cache) == 1


def test_what_was_sent_is_counted_by_peer():
    cache = MessageCache(3, 2, 1000)
    put(cache, b"a")
    counts = [cache.get_for(b"a", peer)[2] for peer in (PEER, PEER, OTHER)]
    assert counts == [1, 2, 1]
    assert cache.get_for(b"a", PEER)[:2] == (Message(topic="t", data=b"a"), bytes(10))


def test_the_oldest_leave_when_there_are_too_many_bytes():
    cache = MessageCache(3, 3, 25)
    for name in (b"a", b"b", b"c"):
        put(cache, name)
    assert cache.ids("t") == [b"b", b"c"]
    put(cache, b"huge", size=100)
    assert cache.ids("t") == [b"huge"]  # the newest is kept whatever it takes
    cache.shift()
    put(cache, b"d")
    assert cache.ids("t") == [b"d"]


def test_a_message_is_kept_once():
    cache = MessageCache(3, 3, 1000)
    put(cache, b"a")
    cache.shift()
    put(cache, b"a")
    assert cache.ids("t") == [b"a"]
