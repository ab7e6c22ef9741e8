"""What a member makes of the contributions to its part; `group` says what each aggregator is."""

import math
from collections.abc import Sequence

import torch

from p2pnode.swarm.averaging.group import Aggregator, CenteredClipping, Mean, Sum, TrimmedMean


def needs_whole_part(aggregator: Aggregator) -> bool:
    """Whether what becomes of an element depends on the rest of its part."""
    return isinstance(aggregator, CenteredClipping)


def is_quick(aggregator: Aggregator) -> bool:
    """Whether to reduce a chunk takes less than it takes to hand it to a thread."""
    return isinstance(aggregator, Sum | Mean)


def aggregate(
    aggregator: Aggregator,
    contributions: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    share: float = 1.0,
) -> torch.Tensor:
    """Reduce equal spans of all contributions.

    Args:
        aggregator: how.
        contributions: one of each member, of one dimension, in an order that does not depend on
            when they came: so the result is the same to the last bit whoever computes it.
        weights: of the same members.
        share: of all elements that the contributions' spans are.
    """
    match aggregator:
        case Sum():
            return _weighted(contributions, weights)
        case Mean():
            return _weighted(contributions, weights).div_(math.fsum(weights))
        case TrimmedMean():
            return _trimmed(contributions, aggregator.left_out(len(weights)))
        case CenteredClipping():
            radius = aggregator.radius * math.sqrt(share)
            return _clipped(contributions, radius, aggregator.iterations)


def _weighted(contributions: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    first, *others = zip(contributions, weights, strict=True)
    total = first[0] * first[1]
    for contribution, weight in others:
        total.add_(contribution, alpha=weight)
    return total


def _trimmed(contributions: Sequence[torch.Tensor], left_out: int) -> torch.Tensor:
    """Return the mean of those in the middle; NaN counts as infinite, and is sorted to the end."""
    ordered = [
        each.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf) for each in contributions
    ]
    # Odd-even transposition sort of whole tensors: few members, and 7 times faster than sorting
    # the members' values of each element by itself.
    for turn in range(len(ordered)):
        for low in range(turn % 2, len(ordered) - 1, 2):
            one, other = ordered[low : low + 2]
            ordered[low : low + 2] = torch.minimum(one, other), torch.maximum(one, other)
    kept = ordered[left_out : len(ordered) - left_out]
    return _weighted(kept, [1.0] * len(kept)).div_(len(kept))


def _clipped(contributions: Sequence[torch.Tensor], radius: float, iterations: int) -> torch.Tensor:
    """Clip around an estimate, again and again; what is not finite counts as the estimate."""
    center = _trimmed(contributions, (len(contributions) - 1) // 2)
    stacked = torch.stack(list(contributions))
    for _ in range(iterations):
        distances = stacked - center
        norms = torch.linalg.vector_norm(distances, dim=1)
        within = norms.sort().values[(len(norms) - 1) // 2] if radius == 0 else radius
        scales = torch.where(norms > within, within / norms, 1.0)
        scales = torch.where(norms.isfinite(), scales, 0.0)
        moved = torch.where(scales[:, None] > 0, distances * scales[:, None], 0.0)
        center = center + moved.mean(dim=0)
    return center
