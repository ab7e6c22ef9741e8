"""Rounds of reducing over a memory network, and who is refused."""

import contextlib
import dataclasses

import pytest
import torch
import trio
from multiaddr import Multiaddr

from p2pnode.config import RpcSettings
from p2pnode.errors import (
    AveragingError,
    BadRequestError,
    ConfigError,
    NonFiniteError,
    NotAMemberError,
    OverloadedError,
    PermissionDeniedError,
    RoundError,
    SchemaError,
)
from p2pnode.rpc.codecs.names import BLOCK
from p2pnode.security.tokens import Membership, RunKey, issue_invite
from p2pnode.swarm.averaging import elements, parts
from p2pnode.swarm.averaging.group import CenteredClipping, Mean, Sum, TrimmedMean
from p2pnode.swarm.averaging.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    Join,
    Moved,
    Refusal,
    decode_answer,
    encode_join,
)
from p2pnode.swarm.averaging.service import ReducingEnded
from p2pnode.wire.keys import PrivateKey

EPOCH = 1.8e9


def expected(tensors, weights=None, *, mean=True):
    """The weighted sum of what each peer gave, in double precision."""
    weights = weights or [1.0] * len(tensors)
    scale = sum(weights) if mean else 1.0
    return [
        (sum(w * each.double() for w, each in zip(weights, given, strict=True)) / scale).float()
        for given in zip(*tensors, strict=True)
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
        found = await world.reduce(world.group(aggregator=aggregator), tensors)
        assert_same(found.values())
        assert_close(found[0].tensors, expected(tensors, mean=aggregator == Mean()))
        assert found[0].contributors == tuple(sorted(peer.peer_id for peer in world.peers))
        assert found[0].weight == count
        assert set(world.held()) == {(0, 0)}
    assert trio.current_time() < 1  # nobody waited for a timeout


async def test_contributions_weigh_as_their_members_say(peers, draw, autojump_clock):
    async with peers() as world:
        await world.add(3)
        tensors, weights = draw(3), [1.0, 2.5, 0.25]
        found = await world.reduce(world.group(), tensors, weights=weights)
        assert_close(found[1].tensors, expected(tensors, weights))
        assert found[1].weight == 3.75


# Errors of one element, relative to the largest magnitude: a contribution is encoded once, and the
# result once more; see p2pnode.rpc.codecs.names.
BOUNDS = {"float16": 2 * 2**-11, "bfloat16": 2 * 2**-8, "blockwise-int8": 2 / 254}


@pytest.mark.parametrize("codec", BOUNDS)
async def test_codecs_err_within_their_bounds_and_alike_everywhere(
    peers, draw, codec, autojump_clock, monkeypatch
):
    monkeypatch.setattr(parts, "CHUNK", 2 * BLOCK)
    async with peers() as world:
        await world.add(4)
        tensors = draw(4, elements=50_000)
        found = await world.reduce(world.group(codec=codec), tensors)
        assert_same(found.values())
        largest = max(each.abs().max().item() for given in tensors for each in given)
        bound = BOUNDS[codec] * largest + 1e-6
        assert_close(found[0].tensors, expected(tensors), rtol=0, atol=bound)
        errors = [
            (one - two).abs().max().item()
            for one, two in zip(found[0].tensors, expected(tensors), strict=True)
        ]
        assert max(errors) > 1e-5  # else nothing was encoded


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
async def test_results_have_the_dtypes_of_what_was_given(peers, draw, dtype, autojump_clock):
    async with peers() as world:
        await world.add(3)
        tensors = draw(3, dtype=dtype)
        found = await world.reduce(world.group(), tensors)
        assert_same(found.values())
        wanted = [each.to(dtype) for each in expected(tensors)]
        if dtype is torch.float64:
            wanted = [sum(given) / 3 for given in zip(*tensors, strict=True)]
        assert_close(found[0].tensors, wanted)


async def test_tensors_that_are_not_contiguous_are_reduced_as_they_look(peers, autojump_clock):
    async with peers() as world:
        await world.add(2)
        tensors = [[torch.arange(12.0).view(3, 4).t() * scale] for scale in (1, 3)]
        found = await world.reduce(world.group(), tensors)
        assert_close(found[1].tensors, [torch.arange(12.0).view(3, 4).t() * 2])


async def test_members_whose_groups_differ_reduce_with_those_that_all_know(
    peers, draw, autojump_clock
):
    async with peers(delay=(0.01, 0.05)) as world:
        await world.add(4)
        tensors = draw(4)
        whole = world.group()
        known = dataclasses.replace(whole, members=whole.members[:3])
        slower = dataclasses.replace(
            whole, members=tuple(dataclasses.replace(m, bandwidth=0.5) for m in whole.members)
        )
        groups = [known, whole, slower, whole]
        outcomes = {}

        async def one(number):
            peer = world.peers[number]
            with contextlib.suppress(AveragingError):
                outcomes[number] = await peer.reducer.reduce(groups[number], tensors[number])

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(one, number)
        # The newcomer is known to too few; it may be given what the others come to.
        assert {0, 1, 2} <= outcomes.keys()
        assert_same(outcomes.values())
        assert world.peers[3].peer_id not in outcomes[0].contributors
        assert_close(outcomes[0].tensors, expected(tensors[:3]))
        assert trio.current_time() < 90


@pytest.mark.parametrize("aggregator", [TrimmedMean(0.3), CenteredClipping()])
async def test_liars_in_a_group_do_not_move_a_robust_mean(peers, aggregator, autojump_clock):
    async with peers() as world:
        await world.add(7)
        truth = torch.linspace(-1, 1, 3000)
        tensors = [[truth + 0.01 * torch.randn(3000)] for _ in range(5)]
        tensors += [[torch.full((3000,), 1e20)], [-100 * truth]]
        found = await world.reduce(world.group(aggregator=aggregator), tensors)
        assert_same(found.values())
        assert (found[0].tensors[0] - truth).abs().max() < 0.05


async def test_who_contributes_what_is_no_number_is_left_out(
    peers, draw, autojump_clock, monkeypatch
):
    async with peers() as world:
        await world.add(4)
        tensors = draw(4)
        tensors[2][0][7] = torch.nan
        monkeypatch.setattr(elements.Reducible, "check", lambda _self: None)  # it does not look
        found = await world.reduce(world.group(), tensors)
        honest = [tensors[number] for number in (0, 1, 3)]
        assert isinstance(found[2], AveragingError)
        for number in (0, 1, 3):
            assert world.peers[2].peer_id not in found[number].contributors
            assert_close(found[number].tensors, expected(honest))


async def test_what_becomes_of_a_round_is_told(peers, draw, autojump_clock):
    async with peers() as world:
        await world.add(2)
        with world.peers[0].host.events.subscribe(ReducingEnded) as ended:
            await world.reduce(world.group(), draw(2))
            await world.reduce(world.group(round_id=b"2"), draw(2), only=[0])
            one, other = await ended.get(), await ended.get()
        assert (one.error, one.attempts, len(one.contributors)) == (None, 1, 2)
        assert (other.error, other.contributors) == ("AveragingError", ())


async def test_members_that_train_anew_reduce_in_a_round_of_the_same_number(
    peers, draw, autojump_clock
):
    tensors = draw(3)
    async with peers() as world:
        await world.add(3)
        for training in (7, 8):
            group = world.group()
            members = [dataclasses.replace(each, training=training) for each in group.members]
            group = dataclasses.replace(group, members=tuple(members))
            found = await world.reduce(group, tensors)
            for each in found.values():
                assert_close(each.tensors, expected(tensors))
        assert all(
            isinstance(each, ConfigError) for each in (await world.reduce(group, tensors)).values()
        )


async def test_who_still_takes_a_member_to_be_in_its_last_training_does_not_disturb_the_next(
    peers, draw, autojump_clock
):
    tensors = draw(3)
    async with peers() as world:
        await world.add(3)
        group = world.group()

        def of(*trainings):
            pairs = zip(group.members, trainings, strict=True)
            members = [dataclasses.replace(each, training=number) for each, number in pairs]
            return dataclasses.replace(group, members=tuple(members))

        await world.reduce(of(1, 1, 1), tensors)
        outcomes = {}

        async def reduce(number, group):
            try:
                reducer = world.peers[number].reducer
                outcomes[number] = await reducer.reduce(group, tensors[number])
            except AveragingError as error:
                outcomes[number] = error

        async with trio.open_nursery() as nursery:
            for number, found in enumerate((of(2, 2, 2), of(2, 2, 2), of(1, 1, 2))):
                nursery.start_soon(reduce, number, found)
        assert isinstance(outcomes[2], AveragingError)
        for number in (0, 1):
            assert_close(outcomes[number].tensors, expected(tensors[:2]))


async def test_a_round_tells_how_fast_its_members_send(peers, draw, autojump_clock):
    async with peers(delay=(0.01, 0.05)) as world:
        one, other = await world.add(2, least_measured=1000)
        assert one.reducer.upload == 0
        await world.reduce(world.group(), draw(2))
        assert one.reducer.upload > 0
        assert other.reducer.upload.bit_count() == 1


async def test_who_is_known_behind_a_relay_only_reduces_nothing(peers, draw, autojump_clock):
    async with peers() as world:
        one, direct, _ = await world.add(3)
        stranger = PrivateKey.from_seed(b"s" * 32).peer_id
        relay = f"/ip4/1.2.3.4/tcp/4001/p2p/{direct.peer_id}/p2p-circuit"
        one.host.add_addresses(stranger, [Multiaddr(relay)], 1e6)
        asked = [one.peer_id, direct.peer_id, stranger]
        found = {each.peer_id: each.is_reachable for each in one.reducer.candidates(asked)}
        assert found == {one.peer_id: True, direct.peer_id: True, stranger: False}
        # One member knows it, and that is enough: the others take it over.
        tensors = draw(3)
        groups = [world.group(bandwidths=[1.0, 1.0, 0.0]), world.group(), world.group()]
        outcomes = {}

        async def reduce(number):
            outcomes[number] = await world.peers[number].reducer.reduce(
                groups[number], tensors[number]
            )

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(reduce, number)
        assert_same(outcomes.values())
        assert len(outcomes[0].contributors) == 3


# --- what this node is asked for ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ([], SchemaError),
        ([torch.zeros(3, dtype=torch.int64)], SchemaError),
        ([torch.zeros(0)], SchemaError),
        ([torch.zeros(300)], SchemaError),
        ([torch.tensor([1.0, torch.inf])], NonFiniteError),
        ([torch.tensor([torch.nan])], NonFiniteError),
    ],
)
async def test_what_cannot_be_reduced_is_not_begun(peers, tensors, error, autojump_clock):
    async with peers() as world:
        (peer,) = await world.add(1, max_bytes=1000)
        with pytest.raises(error):
            await peer.reducer.reduce(world.group(), tensors)


async def test_a_round_that_cannot_be_is_not_begun(peers, draw, autojump_clock):
    async with peers() as world:
        one, other = await world.add(2, rounds_at_once=1)
        group, (tensors, _) = world.group(), draw(2)
        alone = dataclasses.replace(group, members=group.members[:1], round_id=b"0")
        for wrong in ({"weight": 0}, {"weight": float("inf")}, {"quorum": 3}, {"quorum": 0}):
            with pytest.raises(ConfigError):
                await one.reducer.reduce(group, tensors, **wrong)
        with pytest.raises(ConfigError):
            await other.reducer.reduce(alone, tensors)
        await one.reducer.reduce(alone, tensors)
        with pytest.raises(ConfigError):
            await one.reducer.reduce(alone, tensors)  # once more
        with pytest.raises(NotAMemberError):
            await one.reducer.reduce(dataclasses.replace(group, run_id="ab" * 16), tensors)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.reducer.reduce, group, tensors)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ConfigError):
                await one.reducer.reduce(dataclasses.replace(group, round_id=b"2"), tensors)
            nursery.cancel_scope.cancel()


# --- what peers are refused ----------------------------------------------------------------------


class Stranger:
    """Speaks the protocol by hand."""

    def __init__(self, peer, server):
        self.peer = peer
        self.server = server

    async def ask(self, join, data=b""):
        connection = await self.peer.host.connect(self.server.peer_id)
        stream = await connection.open_stream([PROTOCOL])
        await stream.send_all(encode_join(join) if isinstance(join, Join) else join)
        await stream.send_all(data)
        return stream

    async def answer(self, join, data=b""):
        stream = await self.ask(join, data)
        return decode_answer(await stream.receive_prefixed(MAX_MESSAGE_BYTES))


@contextlib.asynccontextmanager
async def asked(peers, tensors, **rpc):
    """A world in which the first of two peers reduces, and the second is a `Stranger` to it."""
    async with peers() as world:
        one, other = await world.add(2, rpc=RpcSettings(codec_inline_bytes=2**40, **rpc))
        async with trio.open_nursery() as nursery:
            group = world.group()

            async def reduce():
                with contextlib.suppress(AveragingError):
                    await one.reducer.reduce(group, tensors)

            nursery.start_soon(reduce)
            await trio.testing.wait_all_tasks_blocked()
            metas = elements.Reducible(tensors, 2**40).metas
            join = Join(
                run_id=group.run_id,
                round_id=group.round_id,
                digest=group.digest(metas),
                members={m.peer_id: m.bandwidth for m in group.members},
                weight=1.0,
            )
            join = dataclasses.replace(join, members=dict(sorted(join.members.items())))
            yield world, Stranger(other, one), join
            nursery.cancel_scope.cancel()


async def test_other_shapes_are_refused_before_anything_is_allocated(peers, draw, autojump_clock):
    (tensors,) = draw(1)
    async with asked(peers, tensors) as (world, stranger, join):
        one = world.peers[0]
        for other in ([torch.zeros(4999), *tensors[1:]], [each.double() for each in tensors]):
            digest = world.group().digest(elements.Reducible(other, 2**40).metas)
            answer = await stranger.answer(dataclasses.replace(join, digest=digest))
            assert isinstance(answer, Refusal)
            assert isinstance(answer.error, RoundError)
            assert "shapes" in str(answer.error)
            assert one.budget.bytes_in_flight == 0
        await stranger.ask(join)
        await trio.testing.wait_all_tasks_blocked()
        assert one.budget.bytes_in_flight > 0  # so the digest was what it is about


async def test_a_contribution_that_comes_twice_is_refused(peers, draw, autojump_clock):
    (tensors,) = draw(1)
    async with asked(peers, tensors) as (_, stranger, join):
        await stranger.ask(join, b"part of it")
        await trio.testing.wait_all_tasks_blocked()
        answer = await stranger.answer(join)
        assert isinstance(answer.error, RoundError)
        assert "already" in str(answer.error)


async def test_a_contribution_to_a_round_that_is_over_or_never_begins_is_refused(
    peers, draw, autojump_clock
):
    tensors = draw(2)
    async with peers() as world:
        one, other = await world.add(2)
        group = world.group()
        await world.reduce(group, tensors)
        join = Join(
            run_id=group.run_id,
            round_id=group.round_id,
            digest=bytes(32),
            members={one.peer_id: 1.0},
            weight=1.0,
        )
        began = trio.current_time()
        answer = await Stranger(other, one).answer(join)
        assert "over here" in str(answer.error)
        assert trio.current_time() < began + 1
        unknown = dataclasses.replace(join, round_id=b"unknown")
        answer = await Stranger(other, one).answer(unknown)
        assert "not begun" in str(answer.error)
        assert isinstance(answer.error, RoundError)
        assert trio.current_time() == pytest.approx(began + 30, abs=1)


async def test_who_is_not_known_in_the_group_hears_who_is(peers, draw, autojump_clock):
    (tensors,) = draw(1)
    async with asked(peers, tensors) as (world, stranger, join):
        await world.add(1)
        answer = await Stranger(world.peers[2], stranger.server).answer(join)
        assert answer == Moved(members=join.members)


async def test_whose_view_is_larger_hears_ours(peers, draw, autojump_clock):
    (tensors,) = draw(1)
    async with asked(peers, tensors) as (world, stranger, join):
        await world.add(1)
        members = dict(sorted({**join.members, world.peers[2].peer_id: 1.0}.items()))
        answer = await stranger.answer(dataclasses.replace(join, members=members))
        assert answer == Moved(members=join.members)


async def test_what_is_malformed_or_slow_is_refused(peers, draw, autojump_clock):
    (tensors,) = draw(1)
    async with asked(peers, tensors) as (_, stranger, _join):
        answer = await stranger.answer(b"\x03abc")
        assert isinstance(answer.error, BadRequestError)
        answer = await stranger.answer(b"\x20")
        assert "too long" in str(answer.error)


async def test_what_does_not_fit_the_budget_is_refused(peers, draw, autojump_clock):
    (tensors,) = draw(1)
    async with asked(peers, tensors, max_bytes_in_flight_per_peer=1000) as (_, stranger, join):
        answer = await stranger.answer(join)
        assert isinstance(answer.error, OverloadedError)


async def test_a_contributor_that_sends_too_slowly_is_lost(peers, draw, autojump_clock):
    (tensors,) = draw(1)
    async with asked(peers, tensors) as (world, stranger, join):
        await stranger.ask(join, b"part of it")
        with world.peers[0].host.events.subscribe(ReducingEnded) as ended:
            event = await ended.get()
        assert event.error == "AveragingError"
        assert trio.current_time() < 60
        assert world.held()[0] == (0, 0)


async def test_in_a_closed_run_only_those_that_may_host_contribute(peers, draw, autojump_clock):
    key = RunKey.from_bytes(bytes(range(32)))

    def scoped(*scopes):
        def memberships(peer_id):
            invite = issue_invite(key, "run", scopes=scopes, expires_at=EPOCH + 1e6)
            return {"run": Membership.accept(invite, peer_id)}

        return memberships

    async with peers() as world:
        await world.add(2, memberships=scoped("host", "train"))
        tensors = draw(2)
        found = await world.reduce(world.group(run_id=key.run_id), tensors)
        assert_same(found.values())
        assert_close(found[0].tensors, expected(tensors))

        await world.add(1, memberships=scoped("train"))
        one, _, trainer = world.peers
        join = Join(
            run_id=key.run_id,
            round_id=b"2",
            digest=bytes(32),
            members={trainer.peer_id: 1.0},
            weight=1.0,
        )
        answer = await Stranger(trainer, one).answer(join)
        assert type(answer.error) is NotAMemberError  # it showed no token at all
        token = scoped("train")(trainer.peer_id)["run"].token
        answer = await Stranger(trainer, one).answer(dataclasses.replace(join, token=token))
        assert type(answer.error) is PermissionDeniedError
        borrowed = scoped("host")(one.peer_id)["run"].token
        answer = await Stranger(trainer, one).answer(dataclasses.replace(join, token=borrowed))
        assert isinstance(answer.error, NotAMemberError)
