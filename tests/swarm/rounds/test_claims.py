"""When a claimed score is a lie."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.swarm.rounds.claims import is_lie

SCORES = st.floats(0, 1)
EXAMPLES = st.integers(1, 10_000)


def _chances(examples, p):
    """Return the probability of each number of right answers."""
    return [math.comb(examples, k) * p**k * (1 - p) ** (examples - k) for k in range(examples + 1)]


@pytest.mark.parametrize(("claimed_on", "found_on"), [(20, 20), (10, 30), (30, 10)])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("slack", [0.0, 0.01])
def test_an_honest_claim_is_taken_for_a_lie_no_more_often_than_allowed(
    claimed_on, found_on, p, slack
):
    false_alarm = 0.05
    theirs, ours = _chances(claimed_on, p + slack), _chances(found_on, p)
    alarms = sum(
        theirs[right] * ours[found]
        for right in range(claimed_on + 1)
        for found in range(found_on + 1)
        if is_lie(
            right / claimed_on,
            claimed_on,
            found / found_on,
            found_on,
            false_alarm=false_alarm,
            slack=slack,
        )
    )
    assert alarms <= false_alarm


@given(SCORES, EXAMPLES, SCORES, EXAMPLES)
def test_nobody_lies_who_claims_no_more_than_was_found(found, found_on, part, claimed_on):
    assert not is_lie(found * part, claimed_on, found, found_on, false_alarm=1e-4, slack=0)


@given(SCORES, SCORES, EXAMPLES, EXAMPLES)
def test_what_is_a_lie_is_one_all_the_more_when_less_is_found(claimed, found, some, more):
    def lies(value):
        return is_lie(claimed, some, value, more, false_alarm=1e-4, slack=0.01)

    assert lies(found / 2) or not lies(found)


def test_random_weights_claimed_to_be_perfect_are_a_lie_on_small_hold_outs_too():
    assert is_lie(1.0, 100, 0.1, 100, false_alarm=1e-4, slack=0.02)
    assert is_lie(1.0, 20, 0.1, 20, false_alarm=1e-4, slack=0.02)
    assert not is_lie(1.0, 5, 0.1, 5, false_alarm=1e-4, slack=0.02)  # five tell too little


def test_of_a_hundred_examples_each_a_quarter_too_much_is_a_lie_and_a_tenth_is_not():
    assert is_lie(0.95, 100, 0.67, 100, false_alarm=1e-4, slack=0.02)
    assert not is_lie(0.95, 100, 0.85, 100, false_alarm=1e-4, slack=0.02)


def test_the_slack_forgives_hold_outs_of_different_difficulty():
    apart = {"claimed": 0.95, "claimed_on": 4000, "found": 0.9, "found_on": 4000}
    assert is_lie(**apart, false_alarm=1e-4, slack=0.0)
    assert not is_lie(**apart, false_alarm=1e-4, slack=0.03)


def test_half_of_all_honest_claims_are_higher_than_what_is_found_and_none_of_them_is_a_lie():
    rng = random.Random(7)
    for _ in range(300):
        p, examples = rng.choice([0.1, 0.5, 0.9, 0.97]), rng.choice([100, 300])
        claimed, found = (sum(rng.random() < p for _ in range(examples)) for _ in range(2))
        shares = claimed / examples, found / examples
        assert not is_lie(shares[0], examples, shares[1], examples, false_alarm=1e-4, slack=0.0)
