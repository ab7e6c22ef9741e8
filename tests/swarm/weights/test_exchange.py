"""Members of a swarm publish, fetch and adopt weights, with real experts on a light world."""

import dataclasses

import pytest
import torch

from p2pnode.errors import (
    CheckpointError,
    NonFiniteError,
    StorageError,
    TransferError,
    UnknownExpertError,
)
from p2pnode.rpc.codecs.names import BLOCK
from p2pnode.security.tokens import Membership
from p2pnode.swarm.weights.local import StateAdopted
from p2pnode.wire.uids import Uid

UID = Uid(Membership.open("test").run_id, "ffn.0")
MATRIX = "module.{}.weight"


def part(tensors, prefix):
    return {name: each for name, each in tensors.items() if name.startswith(prefix)}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, each in one.items():
        assert torch.equal(each, other[name]), name


async def two(net, **hosting):
    """A trained member, and one with other weights that has taken other steps."""
    one, other = await net.member(seed=1, **hosting), await net.member(seed=2, **hosting)
    for number in (1, 2, 3):
        await one.step(number)
    await other.step(9)
    return one, other


async def test_adopted_weights_are_the_published_ones_and_the_own_optimiser_goes_on(
    holders, autojump_clock
):
    async with holders() as net:
        one, other = await two(net)
        before = await other.tensors()
        manifest = await one.exchange.publish(UID)
        checkpoint = await other.exchange.fetch(UID, manifest.name, [one.peer_id])
        assert_same(await other.tensors(), before)  # fetched, but not adopted
        with other.host.events.subscribe(StateAdopted) as adopted:
            await other.exchange.adopt(UID, checkpoint, source=one.peer_id)
            event = await adopted.get()
        after = await other.tensors()
        assert_same(part(after, "module."), part(await one.tensors(), "module."))
        assert_same(part(after, "optimizer."), part(before, "optimizer."))
        assert (event.source, event.steps_before, event.steps) == (one.peer_id, 1, 3)
        assert other.experts.steps(UID) == 3
        assert not manifest.complete
        await other.step(10)  # it can be trained on


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
async def test_the_optimiser_is_begun_anew_where_that_is_declared(
    holders, autojump_clock, optimizer
):
    async with holders() as net:
        one, other = await two(net, optimizer_policy="reset", optimizer=optimizer)
        manifest = await one.exchange.publish(UID)
        checkpoint = await other.exchange.fetch(UID, manifest.name, [one.peer_id])
        await other.exchange.adopt(UID, checkpoint, source=one.peer_id)
        after = await other.tensors()
        assert all(not each.any() for each in part(after, "optimizer.").values())
        assert_same(part(after, "module."), part(await one.tensors(), "module."))
        await other.step(10)
        assert all(
            float(each) == 1.0
            for name, each in (await other.tensors()).items()
            if name.endswith(".step")
        )


async def test_the_others_optimiser_is_adopted_where_that_is_declared(holders, autojump_clock):
    async with holders() as net:
        one, other = await two(net, optimizer_policy="adopt")
        manifest = await one.exchange.publish(UID)
        assert manifest.complete
        checkpoint = await other.exchange.fetch(UID, manifest.name, [one.peer_id])
        await other.exchange.adopt(UID, checkpoint, source=one.peer_id)
        assert_same(await other.tensors(), await one.tensors())
        for member in (one, other):
            await member.step(20)
        assert_same(await other.tensors(), await one.tensors())


async def test_an_optimiser_that_did_not_come_is_not_adopted_and_nothing_changes(
    holders, autojump_clock
):
    async with holders() as net:
        one, other = await two(net)
        manifest = await one.exchange.publish(UID)
        checkpoint = await other.exchange.fetch(UID, manifest.name, [one.peer_id])
        before = await other.tensors()
        with pytest.raises(CheckpointError, match="without their optimiser's state"):
            await other.exchange.adopt(UID, checkpoint, source=one.peer_id, optimizer="adopt")
        assert_same(await other.tensors(), before)


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "blockwise-int8"])
async def test_weights_in_a_codec_are_smaller_and_off_by_no_more_than_its_bound(
    holders, autojump_clock, codec
):
    async with holders() as net:
        one, other = await two(net, weights_codec=codec)
        exact = await one.exchange.publish(UID, "none")
        manifest = await one.exchange.publish(UID)
        assert manifest.codec == codec
        assert manifest.size < 0.55 * exact.size
        checkpoint = await other.exchange.fetch(UID, manifest.name, [one.peer_id])
        await other.exchange.adopt(UID, checkpoint, source=one.peer_id)
        mine = part(await one.tensors(), "module.")
        theirs = part(await other.tensors(), "module.")
        for name, each in mine.items():
            if each.ndim < 2:
                assert torch.equal(each, theirs[name]), name
                continue
            assert not torch.equal(each, theirs[name])
            error = (each - theirs[name]).abs().flatten()
            assert bool((error <= bound(codec, each.flatten())).all()), name


def bound(codec, x):
    """The bounds that `p2pnode.rpc.codecs.names` states."""
    if codec == "float16":
        return (x.abs() * 2**-11).clamp(min=2**-25)
    if codec == "bfloat16":
        return x.abs() * 2**-8
    blocks = [piece.abs().max().expand(len(piece)) for piece in x.split(BLOCK)]
    return torch.cat(blocks) * (1 / 254 + 2**-22)


async def test_the_state_that_is_given_is_published_not_the_one_in_use(holders, autojump_clock):
    async with holders() as net:
        one, other = await two(net)
        scored = await one.experts.snapshot(UID, complete=False)
        await one.step(4)
        manifest = await one.exchange.publish(UID, checkpoint=scored)
        checkpoint = await other.exchange.fetch(UID, manifest.name, [one.peer_id])
        assert_same(checkpoint.state.tensors, scored.state.tensors)
        assert checkpoint.state.steps == 3


async def test_an_announced_state_stays_whatever_else_is_made_or_fetched(holders, autojump_clock):
    async with holders() as net:
        one, other = await two(net, weights={"versions_kept": 1, "snapshot_interval": 0.01})
        announced = await one.exchange.publish(UID)
        for number in range(20, 24):
            await one.step(number)
            await other.client.head(one.peer_id, UID, complete=False)
            await other.step(number)
            theirs = await other.exchange.publish(UID)
            await one.exchange.fetch(UID, theirs.name, [other.peer_id])
        await other.exchange.fetch(UID, announced.name, [one.peer_id])
        assert len(list(one.directory.glob("*.state"))) == 3  # one of each origin
        await one.step(30)
        await one.exchange.publish(UID)
        with pytest.raises(TransferError, match="no such state"):
            await (await net.member()).exchange.fetch(UID, announced.name, [one.peer_id])


async def test_a_call_from_before_weights_were_adopted_is_not_applied_again(
    holders, autojump_clock
):
    async with holders() as net:
        one, other = await two(net)
        answer = await other.step(40)
        manifest = await one.exchange.publish(UID)
        checkpoint = await other.exchange.fetch(UID, manifest.name, [one.peer_id])
        await other.exchange.adopt(UID, checkpoint, source=one.peer_id)
        before = await other.tensors()
        assert torch.equal(await other.step(40), answer)
        assert_same(await other.tensors(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_weights_that_are_not_finite_come_but_are_not_adopted(holders, autojump_clock, value):
    async with holders() as net:
        one, other = await two(net)
        poisoned = await one.experts.snapshot(UID, complete=False)
        next(iter(poisoned.state.tensors.values())).view(-1)[5] = value
        manifest = await one.exchange.publish(UID, checkpoint=poisoned)
        checkpoint = await other.exchange.fetch(UID, manifest.name, [one.peer_id])
        before = await other.tensors()
        with pytest.raises(CheckpointError, match="not finite"):
            await other.exchange.adopt(UID, checkpoint, source=one.peer_id)
        assert_same(await other.tensors(), before)
        assert other.experts.steps(UID) == 1
        matrix = next(each for each in poisoned.state.tensors.values() if each.ndim == 2)
        matrix[0, 0] = value
        with pytest.raises(NonFiniteError):
            await one.exchange.publish(UID, "blockwise-int8", checkpoint=poisoned)
        assert not list(one.directory.glob(".*"))  # nor is half of it left


async def test_weights_of_another_form_are_not_adopted(holders, autojump_clock):
    async with holders() as net:
        one, other = await two(net)
        narrow = await net.member(hidden_dim=32)
        manifest = await narrow.exchange.publish(UID)
        checkpoint = await other.exchange.fetch(UID, manifest.name, [narrow.peer_id])
        before = await other.tensors()
        with pytest.raises(CheckpointError, match="other names or shapes"):
            await other.exchange.adopt(UID, checkpoint, source=narrow.peer_id)
        assert_same(await other.tensors(), before)
        with pytest.raises(UnknownExpertError):
            await one.exchange.publish(dataclasses.replace(UID, name="ffn.1"))


async def test_a_disk_that_is_full_while_publishing_leaves_nothing_and_the_old_version(
    holders, autojump_clock, monkeypatch
):
    async with holders() as net:
        one, other = await two(net)
        old = await one.exchange.publish(UID)
        await one.step(50)
        left = iter(range(1))

        class Full:
            def __init__(self, file):
                self._file = file

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self._file.close()

            def write(self, piece):
                if next(left, None) is None:
                    raise OSError(28, "No space left on device")
                return self._file.write(piece)

        opened = type(one.directory).open
        monkeypatch.setattr(
            type(one.directory), "open", lambda path, *mode: Full(opened(path, *mode))
        )
        with pytest.raises(StorageError, match="No space left"):
            await one.exchange.publish(UID)
        monkeypatch.undo()
        assert [path.stem for path in one.directory.iterdir()] == [old.name.hex()]
        await other.exchange.fetch(UID, old.name, [one.peer_id])
        await one.exchange.publish(UID)
