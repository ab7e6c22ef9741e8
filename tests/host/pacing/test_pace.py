from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.host.pacing.core import LEAD, Pace


@settings(deadline=None)
@given(
    rate=st.integers(1, 10**9),
    sizes=st.lists(st.integers(1, 65536), min_size=1, max_size=50),
    gaps=st.lists(st.floats(0, 1), min_size=50, max_size=50),
)
def test_a_pace_never_lets_more_through_than_its_rate_and_one_chunk(rate, sizes, gaps):
    pace, now, sent = Pace(rate), 0.0, []
    for size, gap in zip(sizes, gaps, strict=False):
        now += gap
        at = pace.reserve(size, now)
        assert at >= now
        assert not sent or at >= sent[-1][0]  # first come, first served
        sent.append((at, size))
    for first, (began, _) in enumerate(sent):
        for last in range(first, len(sent)):
            passed = sum(size for _, size in sent[first:last])
            assert passed <= rate * (sent[last][0] - began) * (1 + 1e-9) + 1e-3


def test_without_a_rate_nothing_waits():
    pace = Pace(0)
    assert pace.reserve(1 << 40, 5.0) == 5.0
    assert pace.reserve(1, 5.0) == 5.0
    assert pace.chunk(65536) == 65536
    assert Pace(20_000).chunk(65536) == 1000
    assert Pace(1).chunk(65536) == 1


def test_what_is_urgent_passes_a_queue_and_is_paid_for_by_those_behind_it():
    pace = Pace(1000)
    assert pace.reserve(500, 0.0) == 0.0
    assert pace.reserve(500, 0.0) == 0.5
    assert pace.reserve(200, 0.1, urgent=True) == 0.1
    assert pace.reserve(100, 0.1) == 1.2


@given(st.lists(st.integers(1, 4096), min_size=10, max_size=100))
def test_what_is_urgent_is_never_further_ahead_of_the_rate_than_its_lead(sizes):
    rate = 10_000
    pace, passed = Pace(rate), 0
    for size in sizes:
        at = pace.reserve(size, 0.0, urgent=True)
        assert passed <= rate * (at + LEAD) + 1e-6
        passed += size


def test_what_is_given_back_may_pass_for_others():
    pace = Pace(1000)
    pace.reserve(500, 0.0)
    pace.reserve(500, 0.0)
    pace.give_back(500)
    assert pace.reserve(1, 0.0) == 0.5
    unlimited = Pace(0)
    unlimited.give_back(5)
    assert unlimited.reserve(1, 3.0) == 3.0
