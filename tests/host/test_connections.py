from types import SimpleNamespace

import pytest

from p2pnode.config import NetworkSettings
from p2pnode.host.connections import ConnectionTable
from p2pnode.wire.keys import PrivateKey

SETTINGS = NetworkSettings(dial_timeout=10.0, idle_timeout=300.0, duplicate_linger=5.0)
SMALL, LARGE = sorted(PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in (1, 2))


def connection(peer_id, direction, opened_at=0.0, streams=0, *, is_relayed=False, is_limited=False):
    return SimpleNamespace(
        peer_id=peer_id,
        direction=direction,
        opened_at=opened_at,
        last_used=opened_at,
        streams=streams,
        is_closed=False,
        leaving=None,
        is_relayed=is_relayed,
        is_limited=is_limited,
    )


def table(own_id, *connections):
    found = ConnectionTable(own_id, SETTINGS)
    for each in connections:
        found.add(each)
    return found


@pytest.mark.parametrize("first", [0, 1])
def test_of_simultaneous_dials_both_sides_choose_the_one_of_the_smaller_id(first):
    times = [0.0, 0.3] if first == 0 else [0.3, 0.0]
    small_dials, large_dials = times
    at_small = [
        connection(LARGE, "outbound", small_dials),
        connection(LARGE, "inbound", large_dials),
    ]
    at_large = [
        connection(SMALL, "inbound", small_dials),
        connection(SMALL, "outbound", large_dials),
    ]
    assert table(SMALL, *at_small).best(LARGE) is at_small[0]
    assert table(LARGE, *at_large).best(SMALL) is at_large[0]


def test_of_two_from_one_dialer_the_newer_one_counts():
    old, new = connection(LARGE, "inbound", 0.0), connection(LARGE, "inbound", 1.0)
    assert table(SMALL, old, new).best(LARGE) is new
    assert table(SMALL, new, old).best(LARGE) is new


def test_who_dials_much_later_has_lost_the_earlier_connection():
    old, new = connection(LARGE, "outbound", 0.0), connection(LARGE, "inbound", 60.0)
    assert table(SMALL, old, new).best(LARGE) is new


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_a_direct_connection_is_better_than_a_newer_relayed_one(direction):
    direct = connection(LARGE, direction, 0.0)
    relayed = connection(LARGE, "outbound", 60.0, is_relayed=True)
    found = table(SMALL, direct, relayed)
    assert found.best(LARGE) is direct
    direct.is_closed = True
    assert found.best(LARGE) is relayed
    assert found.best(LARGE, direct=True) is None


def test_a_relay_without_limits_is_better_than_a_newer_one_with_limits():
    free = connection(LARGE, "inbound", 0.0, is_relayed=True)
    limited = connection(LARGE, "outbound", 60.0, is_relayed=True, is_limited=True)
    assert table(SMALL, free, limited).best(LARGE) is free


def test_an_idle_relayed_connection_is_closed_soon_once_there_is_a_direct_one():
    relayed = connection(LARGE, "inbound", 0.0, is_relayed=True)
    busy = connection(LARGE, "inbound", 0.0, streams=1, is_relayed=True)
    direct = connection(LARGE, "outbound", 1.0)
    found = table(SMALL, relayed, busy, direct)
    assert found.to_close(4.0) == []
    assert found.to_close(6.0) == [relayed]


def test_of_a_peer_that_is_kept_one_idle_connection_stays():
    spare, best = connection(LARGE, "inbound", 0.0), connection(LARGE, "inbound", 1.0)
    found = table(SMALL, spare, best)
    assert found.to_close(500.0, kept=[LARGE]) == [spare]
    assert found.to_close(500.0) == [spare, best]


def test_a_closed_connection_is_never_the_best():
    one, other = connection(LARGE, "outbound"), connection(LARGE, "inbound")
    both = table(SMALL, one, other)
    one.is_closed = True
    assert both.best(LARGE) is other
    other.is_closed = True
    assert both.best(LARGE) is None
    assert both.best(SMALL) is None


def test_removing_one_of_two_leaves_the_other():
    one, other = connection(LARGE, "outbound"), connection(LARGE, "inbound")
    both = table(SMALL, one, other)
    both.remove(one)
    assert list(both) == [other]
    both.remove(other)
    assert LARGE not in both


def test_a_second_connection_goes_soon_and_the_first_when_it_is_long_unused():
    best, second = connection(LARGE, "outbound"), connection(LARGE, "inbound")
    both = table(SMALL, best, second)
    assert both.to_close(4.9) == []
    assert both.to_close(5.0) == [second]
    assert both.to_close(300.0) == [best, second]


def test_a_connection_with_streams_stays_and_is_fresh_when_they_end():
    busy = connection(LARGE, "outbound", streams=1)
    found = table(SMALL, busy)
    assert found.to_close(1000.0) == []
    busy.streams = 0
    assert found.to_close(1299.0) == []
    assert found.to_close(1300.0) == [busy]
