from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.pubsub.pace import Pace


def test_a_burst_goes_at_once_and_the_rest_at_the_rate():
    pace = Pace(10.0, 3)
    assert [round(pace.take(0.0), 9) for _ in range(5)] == [0.0, 0.0, 0.0, 0.1, 0.2]


def test_a_quiet_time_brings_the_burst_back_and_no_more():
    pace = Pace(10.0, 3)
    for _ in range(4):
        pace.take(0.0)
    assert [round(pace.take(1000.0), 9) for _ in range(4)] == [0.0, 0.0, 0.0, 0.1]


@given(st.lists(st.floats(0.0, 0.5), max_size=200), st.integers(1, 20))
def test_who_waits_as_told_never_exceeds_the_rate(pauses, burst):
    pace, now, taken = Pace(10.0, burst), 0.0, []
    for pause in pauses:
        now += pause
        taken.append(now)
        now += pace.take(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            count = last - first + 1
            assert count <= burst + 1 + (taken[last] - taken[first]) * 10.0 + 1e-6
