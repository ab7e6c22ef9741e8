import math

import pytest
import torch
import trio
from torch import nn

from p2pnode.errors import CheckpointError, ConfigError, NoLiveExpertError
from p2pnode.experts.backend import build_backend
from p2pnode.experts.events import ExpertFailed
from p2pnode.trainer.layerwise.data import Batches
from p2pnode.trainer.layerwise.network import SwarmNetwork
from p2pnode.trainer.layerwise.tally import SamplesTrained


class Slow:
    """A device that takes a virtual moment for each batch."""

    def __init__(self, seconds):
        self.seconds = seconds

    async def __call__(self, work):
        with trio.CancelScope(shield=True):
            await trio.sleep(self.seconds)
        return work()


def twins(participants):
    return [build_backend(each.uid, each.hosting) for each in participants]


def train_alone(backends, batch):
    kept = [batch.inputs]
    for backend in backends:
        kept += backend.forward([kept[-1]])
    leaf = kept[-1].requires_grad_()
    gradients = torch.autograd.grad(nn.functional.cross_entropy(leaf, batch.targets), [leaf])
    for backend, given in zip(reversed(backends), reversed(kept[:-1]), strict=True):
        gradients = backend.backward([given], gradients)


async def weights_of(participant):
    return (await participant.experts.snapshot(participant.uid)).state.tensors


@pytest.mark.parametrize("learning", [0, 1])
async def test_a_pass_through_the_swarms_equals_one_process(autojump_clock, swarms, learning):
    """One micro-batch at a time, one host for each layer: nothing may differ but the machine."""
    async with swarms() as world:
        both = [await world.add(number, in_flight=1) for number in (0, 1)]
        await trio.sleep(3)
        alone = twins(both)
        me = both[learning]
        batches = Batches(me.learner._part.train, learning)
        for _ in range(4):
            train_alone(alone, batches.draw(8))
        await me.learner.train(32)
        for participant, backend in zip(both, alone, strict=True):
            expected = backend.state().tensors
            for name, tensor in (await weights_of(participant)).items():
                torch.testing.assert_close(tensor, expected[name])
        (told,) = me.of(SamplesTrained)
        assert (told.samples, told.stale, told.lost, told.updates) == (32, 0, 0, 8)
        assert told.staleness == told.max_staleness == 0


async def test_the_scores_of_all_participants_rise(autojump_clock, swarms):
    async with swarms() as world:
        everybody = [await world.add(number) for number in (0, 1, 0, 1)]
        await trio.sleep(3)
        for each in everybody:
            assert await each.learner.score(None) < 0.6
        async with trio.open_nursery() as nursery:
            for each in everybody:
                nursery.start_soon(each.learner.train, 200)
        for each in everybody:
            assert await each.learner.score(None) > 0.8


async def test_micro_batches_overlap_and_their_staleness_is_told(autojump_clock, swarms):
    async def seconds(in_flight):
        async with swarms() as world:
            slow = [Slow(0.1) for _ in range(2)]
            both = [
                await world.add(number, compute=slow[number], in_flight=in_flight)
                for number in (0, 1)
            ]
            await trio.sleep(3)
            await both[0].learner.train(160)
            (told,) = both[0].of(SamplesTrained)
            assert told.samples == 160
            return told

    alone, overlapping = await seconds(1), await seconds(4)
    assert alone.max_staleness == 0
    assert 0 < overlapping.staleness <= overlapping.max_staleness <= 3
    assert overlapping.seconds < 0.6 * alone.seconds


async def test_an_update_beyond_the_bound_is_dropped_and_counted(autojump_clock, swarms):
    async with swarms() as world:
        both = [
            await world.add(number, compute=Slow(0.1), in_flight=6, max_staleness=1)
            for number in (0, 1)
        ]
        await trio.sleep(3)
        await both[0].learner.train(160)
        (told,) = both[0].of(SamplesTrained)
        assert told.stale > 0
        assert told.samples + told.stale == 160
        assert told.max_staleness <= 1
        assert both[1].steps >= both[0].steps  # the last layer stepped before the first refused


async def test_a_host_that_dies_costs_no_example(autojump_clock, swarms):
    async with swarms() as world:
        me = await world.add(0, compute=Slow(0.05))
        others = [await world.add(1, compute=Slow(0.05)) for _ in range(2)]
        await trio.sleep(3)
        lane = await me.network.lane()
        victim = next(each for each in others if each.host.peer_id == lane.host(1, 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(me.learner.train, 160)
            await trio.sleep(0.5)
            victim.crash()
        (told,) = me.of(SamplesTrained)
        assert (told.samples, told.lost) == (160, 0)
        assert told.rerouted > 0
        await trio.sleep(4)  # until the index has forgotten it
        assert victim.host.peer_id not in (await me.network.lane()).hosts[1]


async def test_a_host_whose_outputs_do_not_fit_fails_no_layer_and_is_left_alone(
    autojump_clock, swarms
):
    async with swarms() as world:
        me = await world.add(1, in_flight=1)
        honest, other = await world.add(0), await world.add(0, hidden_dim=8)
        await trio.sleep(3)
        assert set((await me.network.lane()).hosts[0]) == {honest.host.peer_id, other.host.peer_id}
        await me.learner.train(64)
        assert (await me.network.lane()).hosts[0] == (honest.host.peer_id,)
        assert 0 <= await me.learner.score(None) <= 1
        await me.learner.train(64)
        first, then = me.of(SamplesTrained)
        assert first.samples + first.lost == 64
        assert first.lost > 0
        assert (then.samples, then.lost) == (64, 0)
        assert me.of(ExpertFailed) == []


async def test_training_fails_when_a_layer_has_no_host(autojump_clock, swarms):
    async with swarms() as world:
        me = await world.add(0)
        await trio.sleep(3)
        with pytest.raises(NoLiveExpertError, match=r"layers\.1"):
            await me.learner.train(16)
        (told,) = me.of(SamplesTrained)
        assert (told.samples, told.lost) == (0, 16)
        with pytest.raises(NoLiveExpertError):
            await me.learner.score(None)


@pytest.mark.parametrize("number", [0, 1])
async def test_other_weights_are_scored_and_ones_own_stay(autojump_clock, swarms, number):
    async with swarms() as world:
        both = [await world.add(each) for each in (0, 1)]
        await trio.sleep(3)
        me = both[number]
        before = await me.learner.score(None)
        fresh = await me.experts.snapshot(me.uid)
        await me.learner.train(400)
        after = await me.learner.score(None)
        trained = await me.experts.snapshot(me.uid)
        assert after > before
        assert await me.learner.score(trained) == after
        assert await me.learner.score(fresh) <= after
        assert me.steps == trained.state.steps


async def test_weights_of_another_kind_are_refused(autojump_clock, swarms):
    async with swarms() as world:
        both = [await world.add(each) for each in (0, 1)]
        await trio.sleep(3)
        other = await both[1].experts.snapshot(both[1].uid)
        with pytest.raises(CheckpointError):
            await both[0].learner.score(other)
        assert math.isfinite(await both[0].learner.score(None))


async def test_a_layer_outside_the_network_is_refused(autojump_clock, swarms):
    async with swarms() as world:
        me = await world.add(1)
        with pytest.raises(ConfigError, match="numbered from 0"):
            SwarmNetwork(
                me.caller,
                me.experts,
                me.uid,
                peer_id=me.host.peer_id,
                layers=1,
                settings=world.settings.layerwise,
            )
