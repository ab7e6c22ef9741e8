"""Rounds of reducing over a memory network."""

import pytest
import torch
import trio

from p2pnode.swarm.averaging.group import Mean, Sum


def expected(tensors, weights=None, *, mean=True):
    """The weighted sum of what each peer gave, in double precision."""
    weights = weights or [1.0] * len(tensors)
    return [
        (
            sum(w * each.double() for w, each in zip(weights, tuples, strict=True))
            / (sum(weights) if mean else 1.0)
        ).float()
        for tuples in zip(*tensors, strict=True)
    ]


def assert_close(found, wanted, **tolerance):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def assert_same(reduced):
    first, *others = reduced
    for other in others:
        assert other.contributors == first.contributors
        for one, two in zip(first.tensors, other.tensors, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("aggregator", [Sum(), Mean()])
@pytest.mark.parametrize("count", [1, 2, 5])
async def test_all_members_get_the_same_sum_or_mean(peers, draw, aggregator, count, autojump_clock):
    async with peers() as world:
        await world.add(count)
        tensors = draw(count)
        group = world.group(aggregator=aggregator)
        found = await world.reduce(group, tensors)
        assert_same(found.values())
        assert_close(found[0].tensors, expected(tensors, mean=aggregator == Mean()))
        assert found[0].contributors == tuple(sorted(peer.peer_id for peer in world.peers))
        assert found[0].weight == count
        assert set(world.held()) == {(0, 0)}
    assert trio.current_time() < 1  # nobody waited for a timeout
