"""Whether a score that somebody claims can be true, given another one on other examples: pure.

A score is the part of a hold-out that is classified right, so it is the mean of as many draws of a
coin as there are examples. Two honest peers who score the same weights on hold-outs of n and m
examples of the same kind get different numbers by chance alone. How different they may be is bound
by Chernoff's inequality in its exact form for coins (Hoeffding 1963, theorem 1): a mean of n draws
strays from the true value p to q or beyond, on either side, with at most the probability

    exp(-n KL(q, p)),  KL(q, p) = q ln(q/p) + (1-q) ln((1-q)/(1-p)).

Each score so bounds the true value from both sides. A claim is a lie if its lower bound is above
the upper bound of what was found, each with half of the probability of a false alarm, and more
than a slack apart that accounts for hold-outs of different difficulty. Other than by the normal
approximation, this holds for small hold-outs and for scores close to 0 and 1, too.
"""

import math
from typing import Final

_HALVINGS: Final = 40  # of the interval in which a bound lies


def is_lie(
    claimed: float,
    claimed_on: int,
    found: float,
    found_on: int,
    *,
    false_alarm: float,
    slack: float,
) -> bool:
    """Tell whether a claim cannot be true, but with the probability of a false alarm.

    Args:
        claimed: somebody's score of some weights, from 0 to 1.
        claimed_on: the examples of his hold-out.
        found: our score of the same weights.
        found_on: the examples of ours.
        false_alarm: how probable it may be that an honest claim is taken for a lie.
        slack: by how much the difficulty of two hold-outs may differ.
    """
    least = lower_bound(claimed, claimed_on, false_alarm / 2)
    return least > upper_bound(found, found_on, false_alarm / 2) + slack


def upper_bound(score: float, examples: int, probability: float) -> float:
    """Return what the true value exceeds with at most a probability."""
    return 1 - lower_bound(1 - score, examples, probability)


def lower_bound(score: float, examples: int, probability: float) -> float:
    """Return what the true value falls below with at most a probability."""
    budget = math.log(1 / probability) / examples
    low, high = 0.0, score
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _divergence(score, middle) > budget else (low, middle)
    return low


def _divergence(q: float, p: float) -> float:
    """Return KL(q, p) of two coins, in nats; infinite where p excludes what q has seen."""
    return _term(q, p) + _term(1 - q, 1 - p)


def _term(q: float, p: float) -> float:
    if q == 0:
        return 0.0
    return q * math.log(q / p) if p > 0 else math.inf
