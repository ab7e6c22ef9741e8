import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.testing.network.lanes import Downlink, Uplink

RATE = 1000.0
SENDS = st.lists(
    st.tuples(st.integers(1, 3000), st.floats(0, 5), st.floats(0, 3)), min_size=1, max_size=40
)


@given(SENDS)
def test_an_uplink_never_carries_more_than_its_rate(sends):
    link, now, done = Uplink(RATE), 0.0, []
    for size, pause, _ in sends:
        now += pause
        end = link.pass_through(size, now)
        assert end >= now + size / RATE - 1e-9
        done.append((now, end, size))
    _assert_rate(done)
    assert [end for _, end, _ in done] == sorted(end for _, end, _ in done)


@given(SENDS)
def test_a_downlink_never_carries_more_than_its_rate(sends):
    link, now, done = Downlink(RATE), 0.0, []
    for size, pause, way in sends:
        now += pause
        end = link.pass_through(size, now + way, now)
        assert end >= now + way + size / RATE - 1e-9
        done.append((now + way, end, size))
    _assert_rate(done)


@given(SENDS)
def test_a_downlink_is_never_idle_while_something_waits(sends):
    link = Downlink(RATE)
    pieces = [(way, size) for size, _, way in sends]
    last = max(link.pass_through(size, way, 0.0) for way, size in pieces)
    expected = 0.0
    for arrival, size in sorted(pieces):  # in one queue, whatever the order of booking
        expected = max(expected, arrival) + size / RATE
    assert last == pytest.approx(expected)


def test_a_piece_from_afar_does_not_hold_up_one_from_nearby():
    link = Downlink(RATE)
    assert link.pass_through(500, 10.0, 0.0) == pytest.approx(10.5)
    assert link.pass_through(500, 1.0, 0.0) == pytest.approx(1.5)
    assert link.pass_through(1000, 9.5, 0.0) == pytest.approx(11.0)  # half before, half behind
    assert link.pass_through(100, 10.2, 0.0) == pytest.approx(11.1)


def test_no_limit_takes_no_time_and_no_memory():
    assert Uplink(math.inf).pass_through(10**9, 3.0) == 3.0
    link = Downlink(math.inf)
    assert link.pass_through(10**9, 3.0, 0.0) == 3.0
    assert link._starts == []


def test_what_is_over_is_forgotten():
    link = Downlink(RATE)
    for second in range(1000):
        link.pass_through(10, second + 0.5, float(second))
    assert len(link._starts) <= 2


def _assert_rate(done):
    """Whatever starts and ends within a stretch of time must fit into it."""
    for start, *_ in done:
        for _, end, _ in done:
            within = sum(size for begin, over, size in done if begin >= start and over <= end)
            assert within <= RATE * max(end - start, 0.0) + 1e-3
