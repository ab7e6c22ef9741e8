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
            return _trimmed(torch.stack(list(contributions)), aggregator.left_out(len(weights)))
        case CenteredClipping():
            radius = aggregator.radius * math.sqrt(share)
            return _clipped(contributions, radius, aggregator.iterations)


def _weighted(contributions: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    first, *others = zip(contributions, weights, strict=True)
    total = first[0] * first[1]
    for contribution, weight in others:
        total.add_(contribution, alpha=weight)
    return total


def _trimmed(stacked: torch.Tensor, left_out: int) -> torch.Tensor:
    # Infinite values, and NaN as larger ones, are among those left out.
    ordered = stacked.sort(dim=0).values
    return ordered[left_out : len(ordered) - left_out].mean(dim=0)


def _clipped(contributions: Sequence[torch.Tensor], radius: float, iterations: int) -> torch.Tensor:
    """Clip around an estimate, again and again; what is not finite counts as the estimate."""
    stacked = torch.stack(list(contributions))
    center = _trimmed(stacked, (len(stacked) - 1) // 2)
    for _ in range(iterations):
        distances = stacked - center
        norms = torch.linalg.vector_norm(distances, dim=1)
        within = norms.sort().values[(len(norms) - 1) // 2] if radius == 0 else radius
        scales = torch.where(norms > within, within / norms, 1.0)
        scales = torch.where(norms.isfinite(), scales, 0.0)
        moved = torch.where(scales[:, None] > 0, distances * scales[:, None], 0.0)
        center = center + moved.mean(dim=0)
    return center
