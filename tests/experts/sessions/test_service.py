"""Sessions over a memory network: equal to the whole sequence, within their budget, and freed."""

import contextlib
import dataclasses
import math
from functools import partial

import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import HostingSettings, RpcSettings, SessionSettings
from p2pnode.errors import (
    DeadlineExceededError,
    ExpertFailedError,
    HostLostError,
    NonFiniteError,
    NotAMemberError,
    OverloadedError,
    PausedError,
    SchemaError,
    StreamResetError,
    TensorTooLargeError,
    TokenExpiredError,
    UnknownExpertError,
)
from p2pnode.experts.backend import build_backend
from p2pnode.experts.events import BatchComputed
from p2pnode.experts.passes import forward_through
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.experts.sessions.client import SessionClient
from p2pnode.experts.sessions.core import PROTOCOL, Open, Step, encode_open
from p2pnode.experts.sessions.service import SessionEnded, SessionServer
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.framing import IncomingMessage
from p2pnode.rpc.messages import decode_reply
from p2pnode.rpc.server import TensorServer
from p2pnode.rpc.tensors import meta_of
from p2pnode.security.tokens import Membership, RunKey, issue_invite
from p2pnode.testing.light import light_hosts
from p2pnode.wire.uids import Uid

EPOCH = 1_800_000_000.0
KEY = RunKey.from_bytes(bytes(range(32)))
SPAN = 3
UIDS = Uid("lm", "blocks.1").span(SPAN)
ROW_BYTES = 2 * 2 * 16 * 4 * SPAN  # keys and values, two heads of 16 float32, in each block


class Rig:
    """A host of three blocks, and a client."""

    def __init__(self, far, near, hosting, settings, *, rpc, compute):
        self.far, self.near = far, near
        self.experts = ExpertHost(hosting, None, far.events, compute=compute, disk=compute_inline)
        self.expires_at = EPOCH + 1000
        self.authority = Authority({"lm": self.member(far)}, rpc.token_cache_size)
        tensors = TensorServer(far, rpc, self.experts, self.authority)
        self.tensors = tensors.budget
        self.server = SessionServer(
            far,
            settings,
            rpc=rpc,
            handler=self.experts,
            experts=self.experts,
            authority=self.authority,
            tensors=tensors.budget,
            transcoder=tensors.transcoder,
        )
        self.local = [build_backend(uid, hosting) for uid in UIDS]
        self.memberships = {"lm": self.member(near)}
        access = TensorClient(near, rpc, self.memberships).access
        self.client = SessionClient(access, rpc)
        near.add_addresses(far.peer_id, far.addresses, math.inf)
        self.ended = []
        far.events.on(SessionEnded, self.ended.append)

    def member(self, host):
        invite = issue_invite(
            KEY, "lm", scopes=("host", "train"), expires_at=self.expires_at, peer=None
        )
        return Membership.accept(invite, host.peer_id)

    async def open(self, uid=UIDS[0], **options):
        options = {"span": SPAN, "rows": 2, "length": 20} | options
        return await self.client.open(self.far.peer_id, uid, **options)

    def whole(self, hidden):
        return forward_through(self.local, [hidden])[0]

    @property
    def held(self):
        return (self.server.budget.sessions, self.server.budget.cache_bytes)


@pytest.fixture
def hosting(settings):
    return dataclasses.replace(settings, model="tiny")


@pytest.fixture
def rig(hosting):
    @contextlib.asynccontextmanager
    async def make(settings=None, rpc=None, compute=compute_inline):
        settings, rpc = settings or SessionSettings(), rpc or RpcSettings()
        bind_wall_time_to_trio(EPOCH)
        async with light_hosts() as world, trio.open_nursery() as nursery:
            near, far = await world.add_host(), await world.add_host()
            made = Rig(far, near, hosting, settings, rpc=rpc, compute=compute)
            await made.experts.add([uid.in_run(KEY.run_id) for uid in UIDS])
            await nursery.start(made.experts.run)
            yield made
            await trio.testing.wait_all_tasks_blocked()
            assert made.held == (0, 0)
            assert (made.tensors.calls_in_flight, made.tensors.bytes_in_flight) == (0, 0)
            nursery.cancel_scope.cancel()

    return make


async def test_token_by_token_equals_the_whole_sequence(rig, autojump_clock):
    hidden = torch.randn(2, 12, 64)
    async with rig() as it, await it.open() as session:
        parts = [await session.step(hidden[:, :5])]
        for at in range(5, 12):
            assert session.position == at
            parts.append(await session.step(hidden[:, at : at + 1]))
        torch.testing.assert_close(torch.cat(parts, dim=1), it.whole(hidden))
        assert it.held == (1, 2 * 20 * ROW_BYTES)


async def test_large_steps_come_through(rig, autojump_clock):
    hidden = torch.randn(4, 500, 64)  # 512 KB: more than a stream's first window
    async with rig() as it, await it.open(rows=4, length=512) as session:
        answer = torch.cat(
            (await session.step(hidden[:, :400]), await session.step(hidden[:, 400:])), dim=1
        )
        torch.testing.assert_close(answer, it.whole(hidden))


async def test_a_session_goes_back_and_on_from_there(rig, autojump_clock):
    first, second = torch.randn(2, 10, 64), torch.randn(2, 3, 64)
    async with rig() as it, await it.open() as session:
        await session.step(first)
        again = await session.step(second, position=4)
        assert session.position == 7
        torch.testing.assert_close(again, it.whole(torch.cat((first[:, :4], second), 1))[:, 4:])


async def test_rows_go_on_from_other_rows(rig, autojump_clock):
    start, more = torch.randn(2, 4, 64), torch.randn(2, 2, 64)
    async with rig() as it, await it.open() as session:
        await session.step(start)
        answer = await session.step(more, order=[1, 1])
        whole = it.whole(torch.cat((start[[1, 1]], more), dim=1))
        torch.testing.assert_close(answer, whole[:, 4:])


async def test_two_sessions_do_not_mix(rig, autojump_clock):
    hidden = [torch.randn(2, 6, 64) for _ in range(2)]
    answers = [[], []]
    async with rig() as it:

        async def run(number):
            async with await it.open() as session:
                for at in range(6):
                    answers[number].append(await session.step(hidden[number][:, at : at + 1]))

        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(run, number)
        for states, parts in zip(hidden, answers, strict=True):
            torch.testing.assert_close(torch.cat(parts, dim=1), it.whole(states))


async def test_sessions_that_step_in_one_rhythm_are_computed_together(rig, autojump_clock):
    hidden = torch.randn(4, 2, 8, 64)
    batches, answers = [], [[] for _ in hidden]
    async with rig() as it:
        it.far.events.on(BatchComputed, lambda event: batches.append(event.calls))

        async def run(number):
            async with await it.open() as session:
                await trio.sleep(0.001 * number)  # they come one after the other
                for at in range(8):
                    answers[number].append(await session.step(hidden[number, :, at : at + 1]))
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(run, number)
        for states, parts in zip(hidden, answers, strict=True):
            torch.testing.assert_close(torch.cat(parts, dim=1), it.whole(states))
        assert batches[-4:] == [4] * 4
        await trio.sleep(0.1)
        assert not it.server._tables


async def test_steps_are_not_held_up_when_they_are_not_to_be_joined(rig, autojump_clock):
    async with rig(SessionSettings(join_window=0.0)) as it:

        async def run():
            async with await it.open() as session:
                for _ in range(5):
                    began = trio.current_time()
                    await session.step(torch.randn(2, 1, 64))
                    assert trio.current_time() - began < 0.001
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(run)


@pytest.mark.parametrize(
    ("codec", "tolerance"), [("float16", 5e-3), ("bfloat16", 5e-2), ("blockwise-int8", 5e-2)]
)
async def test_a_sessions_codec_is_that_of_all_its_tensors(rig, codec, tolerance, autojump_clock):
    hidden = torch.randn(2, 12, 64)
    async with rig() as it, await it.open(codec=codec) as session:
        parts = [await session.step(hidden[:, :5]), await session.step(hidden[:, 5:])]
        found, exact = torch.cat(parts, dim=1), it.whole(hidden)
        assert not torch.equal(found, exact)
        assert (found - exact).abs().max() < tolerance * exact.abs().max()
        with pytest.raises(SchemaError):
            session._state.check(Step(position=0, tensors=(meta_of(hidden[:, :1]),)))


async def test_a_codec_that_cannot_carry_a_step_says_so_and_the_session_goes_on(
    rig, autojump_clock
):
    async with rig() as it, await it.open(codec="blockwise-int8") as session:
        with pytest.raises(NonFiniteError):
            await session.step(torch.full((2, 1, 64), torch.nan))
        await session.step(torch.randn(2, 1, 64))
        assert session.position == 1


async def test_sessions_of_blocks_that_move_end_and_no_others(rig, autojump_clock):
    async with rig() as it:
        moved, other = await it.open(), await it.open(span=1)
        it.server.end([UIDS[2].in_run(KEY.run_id)])
        await trio.sleep(0.1)
        assert it.held[0] == 1
        with pytest.raises(HostLostError):
            await moved.step(torch.randn(2, 1, 64))
        await other.step(torch.randn(2, 1, 64))
        await other.aclose()


async def test_training_goes_on_between_steps(rig, autojump_clock):
    hidden = torch.randn(2, 6, 64)
    async with rig() as it, await it.open() as session:
        before = await session.step(hidden)
        await it.experts.backward(
            UIDS[0].in_run(KEY.run_id),
            [hidden],
            [torch.randn(2, 6, 64)],
            span=SPAN,
            caller=it.near.peer_id,
            call_id=bytes(16),
            deadline=math.inf,
        )
        after = await session.step(hidden, position=0)
        assert not torch.allclose(before, after)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_sessions_per_peer": 1}, "1 sessions of yours"),
        ({"max_sessions": 1}, "as many sessions"),
        ({"max_cache_bytes_per_peer": 60 * ROW_BYTES}, "than the 46080 that one peer"),
        ({"max_cache_bytes": 60 * ROW_BYTES}, "no 30720 bytes left"),
    ],
)
async def test_a_session_beyond_the_budget_is_refused_until_another_ends(
    rig, limits, sentence, autojump_clock
):
    async with rig(settings=SessionSettings(**limits)) as it:
        first = await it.open()
        with pytest.raises(OverloadedError, match=sentence):
            await it.open()
        assert it.held[0] == 1
        await first.aclose()
        await trio.testing.wait_all_tasks_blocked()
        await (await it.open()).aclose()


@pytest.mark.parametrize("end", ["reset", "connection", "close", "idle", "host"])
async def test_the_cache_is_freed_however_a_session_ends(rig, end, autojump_clock):
    async with rig(settings=SessionSettings(idle_timeout=5.0)) as it:
        session = await it.open()
        await session.step(torch.randn(2, 3, 64))
        assert it.held[0] == 1
        if end == "reset":
            session._stream.reset()
        elif end == "connection":
            it.near.connection_to(it.far.peer_id).close("the cable was pulled")
        elif end == "close":
            await session.aclose()
        elif end == "host":
            it.server.end_all()
        else:
            await trio.sleep(6.0)
        await trio.sleep(0.1)
        assert it.held == (0, 0)
        with pytest.raises((HostLostError, DeadlineExceededError)):
            await session.step(torch.randn(2, 1, 64))
        assert session.is_over
        (told,) = it.ended
        assert (told.steps, told.positions, told.cache_bytes) == (1, 6, 2 * 20 * ROW_BYTES)
        await session.aclose()


async def test_a_step_waits_for_one_batch_and_not_for_all_that_are_queued(rig, autojump_clock):
    computed = []

    async def slow(work):
        await trio.sleep(1.0)
        return work()

    async with rig(compute=slow) as it:
        session = await it.open()
        it.far.events.on(BatchComputed, lambda event: computed.append(event.kind))
        async with trio.open_nursery() as nursery:
            for rows in range(1, 6):  # of other forms, so that they are not joined
                nursery.start_soon(
                    partial(
                        it.experts.forward,
                        UIDS[0].in_run(KEY.run_id),
                        [torch.randn(1, rows, 64)],
                        caller=it.far.peer_id,
                        deadline=math.inf,
                    )
                )
            await trio.testing.wait_all_tasks_blocked()
            await session.step(torch.randn(2, 3, 64))
            assert computed == ["forward", "step"]
        assert computed == ["forward", "step", "forward", "forward", "forward", "forward"]
        await session.aclose()


async def test_a_step_whose_caller_is_gone_is_not_computed(rig, autojump_clock):
    async with rig() as it:
        session = await it.open()
        async with it.experts._devices.between_batches(it.experts.uids):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.step, torch.randn(2, 3, 64))
                await trio.testing.wait_all_tasks_blocked()
                assert it.tensors.calls_in_flight == 1
                nursery.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert it.tensors.calls_in_flight == 0
        assert [each.steps for each in it.ended] == [0]
        assert session.is_over


async def test_a_step_that_takes_too_long_ends_the_session(rig, autojump_clock):
    async with rig() as it:
        session = await it.open()
        async with it.experts._devices.between_batches(it.experts.uids):
            with pytest.raises(DeadlineExceededError):
                await session.step(torch.randn(2, 3, 64), timeout=1.0)
        assert session.is_over


@pytest.mark.parametrize(
    ("hidden", "options", "sentence"),
    [
        (torch.randn(2, 21, 64), {}, "opened for 20 positions"),
        (torch.randn(3, 1, 64), {}, "has 2 rows, the step 3"),
        (torch.randn(2, 1, 63), {}, "must be float32 of shape"),
        (torch.randn(2, 1, 64).double(), {}, "not float64"),
        (torch.randn(2, 1, 64), {"position": 1}, "has come to 0"),
        (torch.randn(2, 1, 64), {"order": [0]}, "one of the 2 rows"),
        (torch.randn(2, 1, 64), {"order": [0, 2]}, "one of the 2 rows"),
    ],
)
async def test_a_step_that_does_not_fit_is_not_sent(rig, hidden, options, sentence, autojump_clock):
    async with rig() as it, await it.open() as session:
        with pytest.raises(SchemaError, match=sentence):
            await session.step(hidden, **options)
        await session.step(torch.randn(2, 1, 64))
        assert not session.is_over


async def test_the_host_checks_each_step_too(rig, autojump_clock):
    async with rig() as it, await it.open() as session:
        session._state.check = lambda step: 1
        with pytest.raises(SchemaError, match="has 2 rows, the step 3"):
            await session.step(torch.randn(3, 1, 64))
        assert session.is_over


async def test_a_step_larger_than_a_call_is_refused(rig, autojump_clock):
    async with rig(rpc=RpcSettings(max_call_bytes=1000)) as it, await it.open() as session:
        with pytest.raises(TensorTooLargeError, match="1024 bytes in one step"):
            await session.step(torch.randn(2, 2, 64))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"span": 4}, UnknownExpertError, r"does not serve blocks\.4"),
        ({"uid": Uid("lm", "blocks.0")}, UnknownExpertError, r"does not serve blocks\.0"),
        ({"length": 513}, SchemaError, "at most 512"),
    ],
)
async def test_a_session_that_is_not_possible_is_refused(
    rig, options, error, sentence, autojump_clock
):
    async with rig() as it:
        with pytest.raises(error, match=sentence):
            await it.open(**options)


async def test_experts_that_are_no_blocks_have_no_sessions(rig, autojump_clock):
    plain = HostingSettings(hidden_dim=8)
    async with rig() as it:
        uid = Uid("lm", "ffn.0")
        await it.experts.add([uid.in_run(KEY.run_id)], plain)
        with pytest.raises(SchemaError, match="no sessions"):
            await it.open(uid=uid, span=1)


async def test_only_members_open_sessions_and_their_tokens_expire(rig, autojump_clock):
    async with rig() as it:
        session = await it.open()
        await session.step(torch.randn(2, 1, 64))
        await trio.sleep(100)
        await session.step(torch.randn(2, 1, 64))
        for _ in range(10):
            await trio.sleep(100)
            if not session.is_over:
                with contextlib.suppress(TokenExpiredError):
                    await session.step(torch.randn(2, 1, 64))
        assert [each.error for each in it.ended] == ["TokenExpiredError"]
        it.memberships["lm"] = Membership.open("other")
        with pytest.raises(NotAMemberError):
            await it.open()


async def test_a_token_is_shown_again_when_the_host_has_forgotten_it(rig, autojump_clock):
    async with rig() as it:
        await (await it.open()).aclose()
        it.authority._grants.clear()
        await (await it.open()).aclose()


async def test_sessions_end_when_their_blocks_leave_or_the_host_shuts_down(rig, autojump_clock):
    async with rig() as it:
        session, other = await it.open(), await it.open(span=1)
        await it.experts.remove([UIDS[2].in_run(KEY.run_id)])
        with pytest.raises(UnknownExpertError):
            await session.step(torch.randn(2, 1, 64))
        await other.step(torch.randn(2, 1, 64))
        await it.experts.drain()
        with pytest.raises(PausedError, match="shutting down"):
            await other.step(torch.randn(2, 1, 64))
        it.server.close()
        with pytest.raises(UnknownExpertError):
            await it.open()


async def test_a_cache_is_not_used_with_a_block_that_was_built_anew(rig, autojump_clock):
    async with rig() as it:
        session = await it.open()
        await session.step(torch.randn(2, 1, 64))
        await it.experts.remove([UIDS[1].in_run(KEY.run_id)])
        await it.experts.add([UIDS[1].in_run(KEY.run_id)])
        with pytest.raises(UnknownExpertError, match="built anew"):
            await session.step(torch.randn(2, 1, 64))


async def test_a_step_that_is_not_finite_fails(rig, autojump_clock):
    async with rig() as it, await it.open() as session:
        with pytest.raises(ExpertFailedError, match="not finite"):
            await session.step(torch.full((2, 1, 64), math.inf))


@pytest.mark.parametrize("data", [b"\x00\x00\x00\x01x", b"\xff" * 8])
async def test_a_caller_that_breaks_the_rules_is_told(rig, data, autojump_clock):
    async with rig() as it:
        connection = await it.near.connect(it.far.peer_id)
        stream = await connection.open_stream([PROTOCOL])
        await stream.send_all(data)
        reply = decode_reply(await IncomingMessage(stream).header(1000))
        assert reply.error.code == 400
        await stream.aclose()


async def test_a_caller_that_sends_no_header_is_told(rig, autojump_clock):
    async with rig() as it:
        connection = await it.near.connect(it.far.peer_id)
        stream = await connection.open_stream([PROTOCOL])
        await stream.send_all(b"\x00")
        reply = decode_reply(await IncomingMessage(stream).header(1000))
        assert isinstance(reply.error, DeadlineExceededError)
        await stream.aclose()


async def test_a_caller_that_takes_no_answers_is_given_up(rig, autojump_clock):
    async with rig(settings=SessionSettings(idle_timeout=3.0)) as it:
        membership = it.memberships["lm"]
        connection = await it.near.connect(it.far.peer_id)
        stream = await connection.open_stream([PROTOCOL])
        opening = Open(
            uid=UIDS[0].in_run(KEY.run_id), span=3, rows=8, length=512, token=membership.token
        )
        await stream.send_all(encode_open(opening))
        assert decode_reply(await IncomingMessage(stream).header(10_000)).error is None
        session = it.server
        assert session.budget.sessions == 1
        await trio.sleep(4.0)
        assert session.budget.sessions == 0
        with contextlib.suppress(StreamResetError):
            await stream.aclose()
