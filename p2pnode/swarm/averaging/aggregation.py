"""What a member makes of the contributions to its part."""

from collections.abc import Sequence

import torch

from p2pnode.swarm.averaging.group import Aggregator, Mean, Sum


def aggregate(
    aggregator: Aggregator, contributions: Sequence[torch.Tensor], weights: Sequence[float]
) -> torch.Tensor:
    """Reduce equal spans of all contributions.

    Args:
        aggregator: how.
        contributions: one of each member, in the group's order, so that the result is the same to
            the last bit whenever it is computed.
        weights: of the same members.
    """
    match aggregator:
        case Sum():
            return _weighted(contributions, weights)
        case Mean():
            return _weighted(contributions, weights).div_(sum(weights))


def _weighted(contributions: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    first, *others = zip(contributions, weights, strict=True)
    total = first[0] * first[1]
    for contribution, weight in others:
        total.add_(contribution, alpha=weight)
    return total
