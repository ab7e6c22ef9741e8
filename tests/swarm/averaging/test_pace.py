import math

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.swarm.averaging.pace import LATE, Pace


def test_until_half_are_done_all_have_the_most():
    pace = Pace(4, 100.0, least=10.0, most=30.0)
    pace.receive_done(101.0)
    assert pace.limit == 130.0
    pace.receive_done(102.0)
    assert pace.limit == 100.0 + LATE * 2.0 + 10.0


def test_the_rest_has_a_few_times_as_long_as_half_took_and_the_least_besides():
    pace = Pace(3, 100.0, least=10.0, most=40.0)
    pace.receive_done(101.0)
    pace.receive_done(105.0)
    assert pace.limit == 100.0 + LATE * 5.0 + 10.0
    pace.receive_done(129.0)  # who comes late hurries nobody
    assert pace.limit == 100.0 + LATE * 5.0 + 10.0


def test_nobody_has_more_than_the_most():
    pace = Pace(1, 0.0, least=10.0, most=30.0)
    pace.receive_done(29.0)
    assert pace.limit == 30.0


@given(
    st.integers(1, 63), st.lists(st.floats(0, 1e3), max_size=63), st.floats(1, 99), st.floats(1, 99)
)
def test_the_limit_is_between_the_least_and_the_most(others, times, least, most):
    pace = Pace(others, 0.0, least=least, most=most)
    for each in sorted(times):
        pace.receive_done(each)
        assert min(least, most) <= pace.limit <= most
        assert math.isfinite(pace.limit)
