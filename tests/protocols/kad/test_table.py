import itertools

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.kad.keys import common_prefix, point
from p2pnode.protocols.kad.table import RoutingTable
from p2pnode.wire.peer_id import PeerId


def _by_distance(target, peers):
    return sorted(peers, key=lambda peer: point(peer) ^ target)


def _peer(number: int) -> PeerId:
    return PeerId(b"\x12\x20" + number.to_bytes(32, "big"))


OWN = _peer(2**32)
FAR = [peer for peer in map(_peer, range(200)) if common_prefix(point(OWN), point(peer)) == 0]


def _table(size: int = 3, trust: float = 60.0) -> RoutingTable:
    return RoutingTable(OWN, bucket_size=size, trust=trust)


def test_own_id_never_enters():
    table = _table()
    assert table.receive_alive(OWN, 0.0) is None
    assert len(table) == 0
    assert OWN not in table


def test_a_newcomer_to_a_full_bucket_waits_and_the_stalest_is_doubted():
    table = _table(trust=60.0)
    for now, peer in enumerate(FAR[:3]):
        table.receive_alive(peer, float(now))
    table.receive_alive(FAR[0], 10.0)  # now FAR[1] is the stalest, heard of at 1
    assert table.receive_alive(FAR[3], 60.0) is None
    assert table.receive_alive(FAR[3], 61.0) == FAR[1]
    assert FAR[3] not in table
    assert len(table) == 3


def test_the_freshest_in_waiting_replaces_a_peer_that_failed():
    table = _table()
    for now, peer in enumerate(FAR[:6]):
        table.receive_alive(peer, float(now))
    table.receive_alive(FAR[4], 9.0)
    assert table.remove(FAR[1]) == [FAR[4]]
    assert FAR[4] in table
    assert FAR[1] not in table
    assert len(table) == 3
    assert table.remove(FAR[1]) is None


def test_one_in_waiting_that_fails_is_forgotten():
    table = _table()
    for now, peer in enumerate(FAR[:4]):
        table.receive_alive(peer, float(now))
    assert table.remove(FAR[3]) is None
    assert table.remove(FAR[0]) == []
    assert FAR[3] not in table
    assert len(table) == 2


def test_those_in_waiting_are_bounded():
    table = _table(size=2)
    for now, peer in enumerate(FAR[:20]):
        table.receive_alive(peer, float(now))
    removed = []
    while len(table):
        removed.append(next(iter(table)))
        table.remove(removed[-1])
    assert set(removed) == {*FAR[:2], *FAR[18:20]}


def test_the_last_sign_of_life_of_each_peer_is_told():
    table = _table(size=20)
    for now, peer in enumerate(FAR[:3]):
        table.receive_alive(peer, float(now))
    table.receive_alive(FAR[0], 9.0)
    assert dict(table.heard()) == {FAR[0]: 9.0, FAR[1]: 1.0, FAR[2]: 2.0}


def test_all_peers_are_listed_by_distance_with_when_they_were_heard_of():
    table = _table(size=20)
    heard = {peer: float(now) for now, peer in enumerate(FAR[:10])}
    for peer, now in heard.items():
        table.receive_alive(peer, now)
    expected = [(peer, heard[peer]) for peer in _by_distance(table.own, FAR[:10])]
    listed = [each for near in table.by_distance(table.own) for each in near]
    assert [(peer, now) for _, peer, now in listed] == expected
    assert all(distance == point(peer) ^ table.own for distance, peer, _ in listed)


def test_one_network_gets_no_more_places_than_it_may_have():
    table = RoutingTable(OWN, bucket_size=5, trust=60.0, max_per_group=3, max_per_group_in_bucket=2)
    near = [peer for peer in map(_peer, range(400)) if common_prefix(table.own, point(peer)) == 1]
    for now, peer in enumerate((*FAR[:4], *near[:4])):
        table.receive_alive(peer, float(now), b"net")
    assert list(table) == [*FAR[:2], near[0]]
    table.receive_alive(FAR[4], 9.0, b"other")
    table.receive_alive(FAR[5], 9.0)
    assert len(table) == 5
    table.remove(FAR[0])  # the freshest in waiting may take its place now
    assert set(table) == {FAR[1], FAR[3], FAR[4], FAR[5], near[0]}


def test_a_crowded_network_makes_only_its_own_stale_peers_doubtful():
    table = RoutingTable(OWN, bucket_size=5, trust=60.0, max_per_group_in_bucket=1)
    table.receive_alive(FAR[0], 0.0, b"other")
    table.receive_alive(FAR[1], 1.0, b"net")
    assert table.receive_alive(FAR[2], 60.0, b"net") is None
    assert table.receive_alive(FAR[2], 61.0, b"net") == FAR[1]


def test_a_full_bucket_is_told():
    table = _table(size=3)
    for peer in FAR[:3]:
        assert not table.is_full(0)
        table.receive_alive(peer, 0.0)
    assert table.is_full(0)
    assert not table.is_full(1)


@given(st.lists(st.integers(0, 60)), st.integers(0, 100))
def test_being_the_closest_is_told_as_comparing_all_would(numbers, target):
    table = _table(size=4)
    for number in numbers:
        table.receive_alive(_peer(number), 0.0)
    where = point(_peer(target))
    expected = all(point(peer) ^ where > table.own ^ where for peer in table)
    assert table.is_closest(where) is expected
    assert table.is_closest(where, without=set(table))


def test_ranges_are_due_for_refresh_until_a_lookup_went_through():
    table = _table(size=20)
    assert table.due_for_refresh(0.0, 600.0) == []
    deep = max(map(_peer, range(200)), key=lambda peer: common_prefix(table.own, point(peer)))
    bits = common_prefix(table.own, point(deep))
    assert bits >= 4
    table.receive_alive(deep, 0.0)
    assert table.due_for_refresh(0.0, 600.0) == list(range(bits + 1))
    table.receive_lookup(point(deep), 100.0)
    table.receive_lookup(table.own, 100.0)  # our own id lies beyond all ranges, and harms none
    assert table.due_for_refresh(699.0, 600.0) == list(range(bits))
    assert table.due_for_refresh(700.0, 600.0) == list(range(bits + 1))


@given(
    st.lists(st.tuples(st.integers(0, 60), st.booleans())),
    st.integers(0, 100),
    st.integers(1, 8),
)
def test_the_table_stays_bounded_and_finds_the_closest(steps, target, count):
    table = _table(size=4)
    for now, (number, alive) in enumerate(steps):
        if alive:
            table.receive_alive(_peer(number), float(now))
        else:
            table.remove(_peer(number))
    inside = list(table)
    assert len(inside) == len(set(inside)) == len(table)
    assert all(peer in table for peer in inside)
    key = lambda peer: common_prefix(table.own, point(peer))  # noqa: E731
    buckets = itertools.groupby(sorted(inside, key=key), key=key)
    assert all(len(list(bucket)) <= 4 for _, bucket in buckets)
    expected = _by_distance(point(_peer(target)), set(inside))[:count]
    assert table.closest(point(_peer(target)), count) == expected
