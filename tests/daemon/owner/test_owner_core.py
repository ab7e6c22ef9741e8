import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import OwnerSettings
from p2pnode.daemon.owner.core import RUN, Cause, Hysteresis, OwnerPolicy, Sample
from p2pnode.daemon.owner.quiet_hours import QuietHours
from p2pnode.errors import ConfigError

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC).timestamp()
HOUR = 3600.0


def make_policy(*spans, **settings):
    return OwnerPolicy(OwnerSettings(**settings), QuietHours(spans, dt.UTC))


def watch(policy, values, *, begin=0.0, step=5.0, **others):
    """Feed a series of CPU shares; returns whether the policy wants a pause after each."""
    decisions = []
    for number, value in enumerate(values):
        policy.receive_sample(Sample(at=begin + number * step, cpu=value, **others))
        decisions.append(policy.decide(NOON).paused)
    return decisions


def test_a_node_runs_unless_something_pauses_it():
    policy = make_policy()
    assert policy.decide(NOON) == RUN
    assert policy.next_change(NOON) is None


def test_the_owner_pauses_until_the_owner_resumes():
    policy = make_policy()
    policy.pause()
    decision = policy.decide(NOON)
    assert (decision.cause, decision.until) == (Cause.OWNER, None)
    policy.resume(NOON)
    assert policy.decide(NOON) == RUN


def test_a_pause_with_an_end_ends_by_itself():
    policy = make_policy()
    policy.pause(NOON + 2 * HOUR)
    assert policy.decide(NOON).until == policy.next_change(NOON) == NOON + 2 * HOUR
    assert policy.decide(NOON + 2 * HOUR - 1).paused
    assert policy.decide(NOON + 2 * HOUR) == RUN


def test_quiet_hours_pause_and_say_until_when():
    policy = make_policy("11:00-13:00")
    decision = policy.decide(NOON)
    assert (decision.cause, decision.until) == (Cause.QUIET_HOURS, NOON + HOUR)
    assert policy.decide(NOON + HOUR) == RUN
    assert policy.next_change(NOON + HOUR) == NOON + 23 * HOUR


def test_resume_overrides_these_quiet_hours_but_not_the_next_ones():
    policy = make_policy("11:00-13:00")
    policy.resume(NOON)
    assert policy.decide(NOON) == RUN
    assert policy.decide(NOON + 0.99 * HOUR) == RUN
    assert policy.decide(NOON + 23 * HOUR).cause is Cause.QUIET_HOURS


def test_resume_overrides_quiet_hours_that_never_end():
    policy = make_policy("00:00-24:00")
    policy.resume(NOON)
    assert policy.decide(NOON + 1000 * HOUR) == RUN


def test_the_owners_word_is_the_reason_also_in_quiet_hours():
    policy = make_policy("11:00-13:00")
    policy.pause(NOON + 60)
    assert policy.decide(NOON).cause is Cause.OWNER
    assert policy.decide(NOON + 60).cause is Cause.QUIET_HOURS


def test_others_must_need_the_device_for_a_while():
    policy = make_policy(pause_after=10.0, resume_after=20.0)
    assert watch(policy, [0.9, 0.9, 0.9]) == [False, False, True]
    assert policy.decide(NOON).reason == "other programs use 90% of the processor"


def test_a_short_burst_pauses_nothing():
    policy = make_policy(pause_after=10.0)
    assert not any(watch(policy, [0.9, 0.9, 0.1, 0.9, 0.9, 0.4, 0.9]))


def test_between_the_marks_nothing_changes():
    policy = make_policy(pause_after=10.0, resume_after=20.0)
    watch(policy, [0.9] * 3)
    assert all(watch(policy, [0.4] * 20, begin=15.0))
    assert watch(policy, [0.1] * 5, begin=115.0) == [True, True, True, True, False]


def test_it_goes_on_when_others_have_been_quiet_for_long_enough():
    policy = make_policy(pause_after=10.0, resume_after=20.0)
    watch(policy, [0.9] * 3)
    calm = [0.1, 0.1, 0.1, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert watch(policy, calm, begin=15.0) == [True] * 8 + [False]


def test_resume_overrides_the_others_until_they_are_done():
    policy = make_policy(pause_after=10.0, resume_after=20.0)
    watch(policy, [0.9] * 3)
    policy.resume(NOON)
    assert not any(watch(policy, [0.9] * 5, begin=15.0))
    assert not any(watch(policy, [0.1] * 5, begin=40.0))
    assert watch(policy, [0.9] * 3, begin=65.0) == [False, False, True]


@given(
    st.lists(st.tuples(st.floats(0.1, 20), st.sampled_from([0.1, 0.4, 0.9])), max_size=80),
    st.floats(1, 30),
    st.floats(1, 60),
)
def test_each_pause_and_each_return_is_preceded_by_what_it_takes(steps, rise, fall):
    policy = make_policy(pause_after=rise, resume_after=fall)
    now, seen, paused = 0.0, [], False
    for pause, share in steps:
        now += pause
        policy.receive_sample(Sample(at=now, cpu=share))
        seen.append((now, share))
        was, paused = paused, policy.decide(NOON).paused
        if paused != was:
            wanted, lasted = (0.9, rise) if paused else (0.1, fall)
            began = now
            for at, each in reversed(seen):
                if each != wanted:
                    break
                began = at
            assert now - began >= lasted


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"gpu": 0.3}, "other programs use 30% of the GPU's time"),
        ({"gpu_memory": 0.5}, "other programs hold 50% of the GPU's memory"),
        ({"memory": 100 * 2**20}, "only 100 MiB of memory are free"),
    ],
)
def test_each_need_of_others_is_named(sample, reason):
    policy = make_policy(pause_after=1.0)
    for at in (0.0, 1.0):
        policy.receive_sample(Sample(at=at, **sample))
    decision = policy.decide(NOON)
    assert (decision.cause, decision.reason) == (Cause.OTHERS, reason)


def test_what_is_not_known_pauses_nothing():
    policy = make_policy(pause_after=1.0)
    for at in range(5):
        policy.receive_sample(Sample(at=float(at)))
    assert policy.decide(NOON) == RUN


def test_a_condition_of_no_duration_counts_at_once():
    condition = Hysteresis(rise=0.0, fall=0.0)
    condition.update(holds=True, is_clear=False, now=1.0)
    assert condition.is_on
    condition.update(holds=False, is_clear=True, now=1.0)
    assert not condition.is_on


@pytest.mark.parametrize(
    ("text", "cores"),
    [("50%", 4.0), ("100%", 8.0), ("1.5", 1.5), ("12.5%", 1.0), ("64", 8.0), ("", None)],
)
def test_max_cpu_is_a_share_of_all_cores_or_a_number_of_them(text, cores):
    assert OwnerSettings(max_cpu=text).cores_of(8) == cores


@pytest.mark.parametrize("text", ["0%", "0", "101%", "-1", "half", "50 %", "1e3", "1.555"])
def test_what_is_no_share_of_the_processor_is_refused(text):
    with pytest.raises(ConfigError, match="such as 50%"):
        OwnerSettings(max_cpu=text)


@pytest.mark.parametrize(
    "marks", [{"gpu_busy": 0.01}, {"cpu_busy": 1.5}, {"memory_low": 2**40}, {"cpu_idle": 0.5}]
)
def test_marks_that_contradict_each_other_are_refused(marks):
    with pytest.raises(ConfigError, match="must be less"):
        OwnerSettings(**marks)
