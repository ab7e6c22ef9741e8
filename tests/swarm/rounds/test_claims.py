"""When a claimed score is a lie."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.swarm.rounds.claims import is_lie, lower_bound, upper_bound

SCORES = st.floats(0, 1)
EXAMPLES = st.integers(1, 10_000)


def _binomial_tail(successes, examples, p):
    """Return the probability of at least so many successes, summed up term by term."""
    return sum(
        math.comb(examples, k) * p**k * (1 - p) ** (examples - k)
        for k in range(successes, examples + 1)
    )


@pytest.mark.parametrize("examples", [10, 100, 360])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("probability", [0.05, 1e-4])
def test_a_true_value_below_the_bound_gives_such_a_score_too_rarely(examples, part, probability):
    successes = round(part * examples)
    bound = lower_bound(successes / examples, examples, probability)
    assert 0 < bound < part
    assert _binomial_tail(successes, examples, bound) <= probability
    # Nor is it far from what the exact tail would allow.
    assert _binomial_tail(successes, examples, min(1.0, bound + 0.25)) > probability


@given(SCORES, EXAMPLES, st.floats(1e-9, 0.5))
def test_a_score_lies_between_its_bounds(score, examples, probability):
    low, high = (bound(score, examples, probability) for bound in (lower_bound, upper_bound))
    assert 0 <= low <= score <= high <= 1


@given(SCORES, EXAMPLES, SCORES, EXAMPLES)
def test_nobody_lies_who_claims_no_more_than_was_found(found, found_on, part, claimed_on):
    claimed = found * part
    assert not is_lie(claimed, claimed_on, found, found_on, false_alarm=1e-4, slack=0)


def test_random_weights_claimed_to_be_perfect_are_a_lie_on_small_hold_outs_too():
    assert is_lie(1.0, 100, 0.1, 100, false_alarm=1e-4, slack=0.02)
    assert is_lie(1.0, 20, 0.1, 20, false_alarm=1e-4, slack=0.02)
    assert not is_lie(1.0, 5, 0.1, 5, false_alarm=1e-4, slack=0.02)  # five tell too little


def test_the_slack_forgives_hold_outs_of_different_difficulty():
    apart = {"claimed": 0.95, "claimed_on": 4000, "found": 0.9, "found_on": 4000}
    assert is_lie(**apart, false_alarm=1e-4, slack=0.0)
    assert not is_lie(**apart, false_alarm=1e-4, slack=0.03)


def test_honest_claims_are_taken_for_lies_no_more_often_than_allowed():
    rng = random.Random(7)
    trials, false_alarm, alarms = 20_000, 0.05, 0
    for _ in range(trials):
        p, examples = rng.choice([0.1, 0.5, 0.9, 0.97]), rng.choice([30, 100])
        claimed, found = (
            sum(rng.random() < p for _ in range(examples)) / examples for _ in range(2)
        )
        alarms += is_lie(claimed, examples, found, examples, false_alarm=false_alarm, slack=0)
    assert alarms / trials <= false_alarm
