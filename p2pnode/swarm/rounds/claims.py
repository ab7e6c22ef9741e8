"""Whether a score that somebody claims can be true, given another one on other examples: pure.

A score is the part of a hold-out that is classified right, so it is the mean of as many draws of a
coin as there are examples. Two honest peers who score the same weights on hold-outs of n and m
examples get different numbers by chance alone. How different they may be follows from Chernoff's
inequality in its exact form for coins (Hoeffding 1963, theorem 1): a mean of n draws of a coin that
shows p strays to q or beyond, on one side, with at most the probability

    exp(-n KL(q, p)),  KL(q, p) = q ln(q/p) + (1-q) ln((1-q)/(1-p)).

So n KL is at most exponentially distributed, and of two scores x and y of weights whose true value
is p the sum S(p) = n KL(x, p) + m KL(y, p) is at most gamma distributed: it exceeds s with at most
the probability (1 + s) exp(-s). The claim x is a lie if that is less than the probability that a
false alarm may have, whatever p is, and even if p is higher by a slack on the claimant's hold-out,
which may be of easier examples. Other than by the normal approximation, this holds for small
hold-outs and for scores close to 0 and 1, too.
"""

import math
from typing import Final

_THIRDS: Final = 40  # by which the interval shrinks in which the likeliest true value lies


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
        slack: by how much his hold-out may be easier than ours.
    """

    def surprise(true: float) -> float:
        ours = found_on * _divergence(found, true)
        return ours + claimed_on * _divergence(claimed, min(1.0, true + slack))

    low, high = found, claimed - slack
    if high <= low:
        return False
    for _ in range(_THIRDS):  # it is convex, and lowest between the two scores
        left, right = (2 * low + high) / 3, (low + 2 * high) / 3
        low, high = (low, right) if surprise(left) <= surprise(right) else (left, high)
    least = min(surprise(low), surprise(high))
    return (1 + least) * math.exp(-least) < false_alarm


def _divergence(q: float, p: float) -> float:
    """Return KL(q, p) of two coins, in nats; infinite where p excludes what q has seen."""
    return _term(q, p) + _term(1 - q, 1 - p)


def _term(q: float, p: float) -> float:
    if q == 0:
        return 0.0
    return q * math.log(q / p) if p > 0 else math.inf
