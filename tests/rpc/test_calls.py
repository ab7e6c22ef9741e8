"""Client and server over a memory network, around a handler that does as it is told."""

import contextlib
import functools
import math

import msgpack
import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import RpcSettings
from p2pnode.errors import (
    BadRequestError,
    ConnectionClosedError,
    DeadlineExceededError,
    ExpertFailedError,
    HostLostError,
    NonFiniteError,
    NotAMemberError,
    OverloadedError,
    PermissionDeniedError,
    SchemaError,
    StreamResetError,
    TensorTooLargeError,
    TokenExpiredError,
    UnknownExpertError,
    WrongRunError,
)
from p2pnode.rpc import authority as authority_module
from p2pnode.rpc import client as client_module
from p2pnode.rpc import framing
from p2pnode.rpc import server as server_module
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.client import CallMade, TensorClient
from p2pnode.rpc.messages import (
    PREFIX_BYTES,
    PROTOCOL,
    TRACE_BYTES,
    Reply,
    Request,
    decode_reply,
    encode_reply,
    encode_request,
)
from p2pnode.rpc.schema import ExpertInfo, TensorMeta, TensorSpec
from p2pnode.rpc.server import CallHandler, CallServed, TensorServer
from p2pnode.security.tokens import Membership, RunKey, issue_invite
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire.uids import Uid

EPOCH = 1_800_000_000.0
KEY = RunKey.from_bytes(bytes(range(32)))
UID = Uid("digits", "ffn.0.0")
WIDE = Uid("digits", "wide.0")
INFO = ExpertInfo(
    layer="double",
    inputs=(TensorSpec("float32", (None, 4)),),
    outputs=(TensorSpec("float32", (None, 4)),),
    max_rows=1024,
    max_bytes=2**24,
)
WIDE_INFO = ExpertInfo(
    layer="double",
    inputs=(TensorSpec("bfloat16", (None, 1024, 256)),),
    outputs=(TensorSpec("bfloat16", (None, 1024, 256)),),
    max_rows=1024,
    max_bytes=2**40,
)
X = torch.arange(8.0).reshape(2, 4)
ID = bytes(16)


class Doubler(CallHandler):
    """Doubles what it gets, or hangs, or raises `failure`."""

    def __init__(self):
        self.began = self.ended = 0
        self.cancelled = 0
        self.hangs = False
        self.full = False
        self.failure = None
        self.seen = []

    def info(self, uid, span=1):
        infos = {UID.name: INFO, WIDE.name: WIDE_INFO}
        if uid.name not in infos:
            raise UnknownExpertError(f"no {uid.name} here")
        return infos[uid.name]

    def check(self, uid, span=1, *, caller):
        if self.full:
            raise OverloadedError("no room")

    async def forward(self, uid, inputs, *, span=1, caller, deadline, age=None):
        self.seen.append(("forward", uid, deadline))
        return [2 * each for each in await self._work(inputs)]

    async def backward(
        self,
        uid,
        inputs,
        gradients,
        *,
        span=1,
        caller,
        call_id,
        deadline,
        age=None,
        wants_gradients=True,
    ):
        self.seen.append(("backward", uid, caller, call_id))
        return [2 * each for each in await self._work(gradients)]

    async def _work(self, tensors):
        self.began += 1
        try:
            if self.hangs:
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1
        if self.failure is not None:
            raise self.failure
        return tensors


class Rig:
    """A host, a trainer, and what passes between them."""

    def __init__(self, world, near, far, settings, cache_size=8):
        self.world = world
        self.near, self.far = near, far
        self.handler = Doubler()
        self.settings = settings
        self.authority = Authority({"digits": self.member(self.far)}, cache_size)
        self.server = TensorServer(self.far, settings, self.handler, self.authority)
        self.memberships = {"digits": self.member(self.near)}
        self.client = TensorClient(self.near, settings, self.memberships)
        self.near.add_addresses(self.far.peer_id, self.far.addresses, math.inf)
        self.served = []
        self.far.events.on(CallServed, self.served.append)

    def member(self, host, *, key=KEY, scopes=("host", "train"), lifetime=3600.0):
        invite = issue_invite(key, "digits", scopes=scopes, expires_at=EPOCH + lifetime)
        return Membership.accept(invite, host.peer_id)

    async def forward(self, *inputs, uid=UID, timeout=5.0, info=None):
        return await self.client.forward(self.far.peer_id, uid, inputs, timeout=timeout, info=info)

    async def backward(self, *inputs, uid=UID, timeout=5.0):
        return await self.client.backward(
            self.far.peer_id, uid, inputs, inputs, call_id=ID, timeout=timeout
        )

    async def raw(self):
        connection = await self.near.connect(self.far.peer_id)
        return await connection.open_stream([PROTOCOL])

    def request(self, **changes):
        fields = {
            "operation": "forward",
            "uid": UID.in_run(KEY.run_id),
            "milliseconds": 5000,
            "tensors": (TensorMeta("float32", (2, 4)),),
            "token": self.memberships["digits"].token,
        }
        return encode_request(Request(**(fields | changes)))

    def streams(self):
        return [
            stream
            for host in (self.near, self.far)
            for connection in host.connections()
            for stream in connection.streams
        ]

    async def assert_nothing_is_left(self):
        """Once the streams that were kept for another call are given up."""
        assert self.server.budget.bytes_in_flight == 0
        assert self.server.budget.calls_in_flight == 0
        assert self.handler.began == self.handler.ended
        await trio.sleep(2 * self.settings.keep_stream_for + 1)
        await trio.testing.wait_all_tasks_blocked()
        assert self.streams() == []


@contextlib.asynccontextmanager
async def rig(settings=RpcSettings(), delay=0.0, **options):  # noqa: B008  # frozen
    bind_wall_time_to_trio(EPOCH)
    async with light_hosts(VirtualNetwork(latency=Fixed(delay))) as world:
        made = Rig(world, await world.add_host(), await world.add_host(), settings, **options)
        yield made
        with trio.fail_after(60):  # virtual: all that is bounded ends within
            await trio.testing.wait_all_tasks_blocked()
        await made.assert_nothing_is_left()


async def reply_on(stream):
    size = int.from_bytes(await stream.receive_exactly(PREFIX_BYTES), "big")
    return decode_reply(await stream.receive_exactly(size))


@pytest.fixture
def allocated(monkeypatch):
    """Descriptions of all tensors that were allocated for what came from the wire."""
    metas = []
    allocate = framing.empty

    def count(meta):
        metas.append(meta)
        return allocate(meta)

    monkeypatch.setattr(framing, "empty", count)
    return metas


# --- calls that succeed ---------------------------------------------------------------------------


async def test_calls_are_answered(autojump_clock):
    async with rig() as it:
        assert await it.client.info(it.far.peer_id, UID) == INFO
        (y,) = await it.forward(X, info=INFO)
        assert torch.equal(y, 2 * X)
        (g,) = await it.backward(X)
        assert torch.equal(g, 2 * X)
        resolved = UID.in_run(KEY.run_id)
        assert it.handler.seen[1] == ("backward", resolved, it.near.peer_id, ID)
        assert [event.operation for event in it.served] == ["info", "forward", "backward"]
        assert [event.rows for event in it.served] == [0, 2, 2]
        assert {event.error for event in it.served} == {None}
        assert {event.uid for event in it.served} == {resolved}


async def test_a_call_takes_one_stream_and_one_round_trip(autojump_clock):
    async with rig(delay=1.0) as it:
        await it.near.connect(it.far.peer_id)
        began = trio.current_time()
        await it.forward(X)
        assert trio.current_time() - began == pytest.approx(2.0)
        assert it.world.streams_served == 1


async def test_large_tensors_cross_both_ways_unharmed(autojump_clock):
    x = torch.randn(4, 1024, 256).to(torch.bfloat16)  # 2 MiB, far above any window
    async with rig() as it:
        (y,) = await it.forward(x, uid=WIDE, info=WIDE_INFO)
        assert torch.equal(y, 2 * x)


async def test_the_deadline_reaches_the_handler(autojump_clock):
    async with rig(delay=0.5) as it:
        await it.near.connect(it.far.peer_id)
        now = trio.current_time()
        await it.forward(X, timeout=3.0)
        with trio.move_on_after(2.0):  # a bound around the call counts as well
            await it.forward(X, timeout=3.0)
        deadlines = [entry[2] for entry in it.handler.seen]
        assert deadlines == pytest.approx([now + 3.5, now + 1.0 + 2.5], abs=0.01)


async def test_an_uid_may_have_the_runs_id(autojump_clock):
    async with rig() as it:
        await it.forward(X, uid=UID.in_run(KEY.run_id))


async def test_many_calls_share_a_connection(autojump_clock):
    async with rig(delay=0.1) as it:
        answers = {}

        async def call(number):
            answers[number] = (await it.forward(X + number))[0]

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(call, number)
        assert all(torch.equal(y, 2 * (X + number)) for number, y in answers.items())
        assert len(it.near.connections()) == 1


# --- streams that are used again ------------------------------------------------------------------


async def test_small_calls_follow_one_another_on_one_stream(autojump_clock):
    async with rig() as it:
        await it.client.info(it.far.peer_id, UID)
        for number in range(5):
            (y,) = await it.forward(X + number, info=INFO)
            assert torch.equal(y, 2 * (X + number))
        await it.backward(X)
        assert it.world.streams_served == 1
        assert len(it.served) == 7
        assert it.server.budget.calls_in_flight == 0  # an idle stream is no call


async def test_each_call_has_its_own_deadline_on_a_stream(autojump_clock):
    async with rig() as it:
        await it.forward(X, timeout=5.0)
        await trio.sleep(20.0)  # longer than the first call's deadline, and than a header may take
        await it.forward(X, timeout=5.0)
        assert it.handler.seen[-1][2] == pytest.approx(trio.current_time() + 5.0)
        assert it.world.streams_served == 1
        assert it.served[-1].seconds < 1.0  # the wait for it is no part of a call


async def test_no_more_streams_are_kept_than_configured(autojump_clock):
    settings = RpcSettings(kept_streams=3)
    async with rig(settings) as it:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(it.forward, X)
        await trio.testing.wait_all_tasks_blocked()
        assert len(it.streams()) == 2 * 3


async def test_a_large_call_gives_its_stream_up(autojump_clock):
    x = torch.zeros(10, 1024, 256, dtype=torch.bfloat16)
    async with rig() as it:
        for _ in range(2):
            await it.forward(x, uid=WIDE, info=WIDE_INFO)
            await trio.testing.wait_all_tasks_blocked()
            assert it.streams() == []
        assert it.world.streams_served == 2


async def test_a_call_that_fails_gives_its_stream_up(autojump_clock):
    async with rig() as it:
        it.handler.failure = ExpertFailedError("it is broken")
        with pytest.raises(ExpertFailedError):
            await it.forward(X)
        it.handler.failure = None
        await trio.testing.wait_all_tasks_blocked()
        assert it.streams() == []
        await it.forward(X)
        assert it.world.streams_served == 2


async def test_an_idle_stream_is_given_up_by_caller_and_host(autojump_clock):
    async with rig() as it:
        await it.forward(X)
        await trio.sleep(it.settings.keep_stream_for)
        assert len(it.streams()) == 2
        await it.forward(X)  # on a new one, for the host may be about to end the other
        assert it.world.streams_served == 2
        await trio.sleep(2 * it.settings.keep_stream_for + 1)
        assert it.streams() == []
        assert len(it.served) == 2


async def test_a_call_that_meets_the_end_of_its_stream_is_sent_on_another(autojump_clock):
    async with rig(delay=0.2) as it:
        await it.forward(X)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.forward, X)
            await trio.sleep(0.1)
            it.server.close()  # while the request is on its way
            it.server = TensorServer(it.far, it.settings, it.handler, it.authority)
        assert it.world.streams_served == 2
        assert it.handler.began == 2


async def test_a_host_that_closes_ends_the_streams_that_are_idle(autojump_clock):
    async with rig() as it:
        await it.forward(X)
        it.server.close()
        with pytest.raises(UnknownExpertError):
            await it.forward(X)
        assert it.handler.began == 1


async def test_a_host_lost_while_its_streams_are_idle_is_called_over_another_connection(
    autojump_clock,
):
    async with rig() as it:
        await it.forward(X)
        await it.near.connections()[0].aclose()
        (y,) = await it.forward(X)
        assert torch.equal(y, 2 * X)


# --- how tensors travel -------------------------------------------------------------------------


@pytest.fixture
def codecs_seen(monkeypatch):
    """The codecs of the tensors in requests and replies, as they are read."""
    seen = []

    def watch(module, name):
        real = getattr(module, name)

        def record(data):
            message = real(data)
            seen.extend(meta.codec for meta in message.tensors)
            return message

        monkeypatch.setattr(module, name, record)

    watch(server_module, "decode_request")
    watch(client_module, "decode_reply")
    return seen


@pytest.mark.parametrize(
    ("codec", "error"),
    [("none", 0), ("bfloat16", 2**-8), ("float16", 2**-11), ("blockwise-int8", 1 / 254)],
)
async def test_a_call_travels_in_the_codec_it_names_there_and_back(
    codec, error, codecs_seen, autojump_clock
):
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    async with rig() as it:
        (y,) = await it.client.forward(it.far.peer_id, UID, [x], info=INFO, codec=codec)
        (g,) = await it.client.backward(
            it.far.peer_id, UID, [x], [x], call_id=ID, info=INFO, codec=codec
        )
    assert codecs_seen == [codec] * 5
    for answer in (y, g):
        assert (answer - 2 * x).abs().max() <= 2 * 2 * error * x.abs().max()
        assert torch.equal(answer, 2 * x) == (codec == "none")


async def test_tensors_no_codec_makes_smaller_travel_as_they_are(codecs_seen, autojump_clock):
    x = torch.randn(1, 1024, 256).to(torch.bfloat16)
    async with rig() as it:
        (y,) = await it.client.forward(it.far.peer_id, WIDE, [x], info=WIDE_INFO, codec="float16")
    assert torch.equal(y, 2 * x)
    assert codecs_seen == ["none", "none"]


@pytest.mark.parametrize(
    ("codec", "travels"), [("none", 0), ("float16", 32), ("blockwise-int8", 20)]
)
async def test_what_is_decoded_is_charged_beside_what_travels(codec, travels, autojump_clock):
    async with rig() as it, trio.open_nursery() as nursery:
        it.handler.hangs = True
        call = functools.partial(it.client.forward, codec=codec)
        nursery.start_soon(call, it.far.peer_id, UID, [torch.ones(4, 4)])
        await trio.testing.wait_all_tasks_blocked()
        assert it.server.budget.bytes_in_flight == 2 * (64 + travels)
        nursery.cancel_scope.cancel()


async def test_values_a_codec_cannot_carry_are_not_sent(autojump_clock):
    async with rig() as it:
        x = torch.full((2, 4), math.nan)
        with pytest.raises(NonFiniteError):
            await it.client.forward(it.far.peer_id, UID, [x], codec="blockwise-int8")
        assert it.served == []
        (y,) = await it.client.forward(it.far.peer_id, UID, [x], codec="bfloat16")
        assert y.isnan().all()
        x = torch.full((2, 4), 3e38)  # too large to be doubled
        with pytest.raises(ExpertFailedError, match="NaN or infinite"):
            await it.client.forward(it.far.peer_id, UID, [x], codec="blockwise-int8")


async def test_an_answer_in_another_codec_than_the_one_wanted_is_refused(autojump_clock):
    async with rig() as it:

        async def answer(stream):
            meta = TensorMeta("float32", (2, 4))
            await stream.send_all(encode_reply(Reply(tensors=(meta,))) + bytes(32))

        it.far.set_handler(PROTOCOL, answer)
        with pytest.raises(ExpertFailedError, match="not what the schema promises"):
            await it.client.forward(it.far.peer_id, UID, [X], info=INFO, codec="float16")


async def test_a_malformed_encoding_is_a_bad_request_and_a_bad_answer(autojump_clock):
    meta = TensorMeta("float32", (2, 4), "blockwise-int8")
    nonsense = b"\xff" * 12  # a scale that is NaN
    async with rig() as it:
        stream = await it.raw()
        await stream.send_all(it.request(tensors=(meta,)) + nonsense)
        error = (await reply_on(stream)).error
        assert type(error) is BadRequestError
        assert "scale" in str(error)
        await stream.aclose()

        async def answer(stream):
            await stream.send_all(encode_reply(Reply(tensors=(meta,))) + nonsense)

        it.far.set_handler(PROTOCOL, answer)
        with pytest.raises(ExpertFailedError, match="scale"):
            await it.client.forward(it.far.peer_id, UID, [X], info=INFO, codec="blockwise-int8")


async def test_both_sides_tell_of_a_call_by_the_same_trace(autojump_clock):
    async with rig() as it:
        made = []
        it.near.events.on(CallMade, made.append)
        trace = b"\x01" * TRACE_BYTES
        await it.client.forward(it.far.peer_id, UID, [X], trace=trace)
        await it.forward(X)
        it.handler.hangs = True
        with pytest.raises(DeadlineExceededError):
            await it.client.forward(it.far.peer_id, UID, [X], trace=trace, timeout=1.0)
        it.handler.hangs = False
        with pytest.raises(UnknownExpertError):
            await it.forward(X, uid=Uid("digits", "none.0"))
        await trio.testing.wait_all_tasks_blocked()
        assert [event.trace for event in made] == [trace, b"", trace, b""]
        assert [event.trace for event in it.served] == [trace, b"", trace, b""]
        errors = [None, None, "DeadlineExceededError", "UnknownExpertError"]
        assert [event.error for event in made] == errors
        assert made[2].seconds == pytest.approx(1.0)
        assert {event.operation for event in made} == {"forward"}


# --- who may call ---------------------------------------------------------------------------------


@pytest.fixture
def tokens_seen(monkeypatch):
    seen = []
    authorise = Authority.authorise

    def record(self, peer_id, run_id, token, *rest):
        seen.append(token)
        return authorise(self, peer_id, run_id, token, *rest)

    monkeypatch.setattr(Authority, "authorise", record)
    return seen


async def test_a_token_is_sent_in_the_first_call_of_a_connection_only(tokens_seen, autojump_clock):
    async with rig() as it:
        token = it.memberships["digits"].token
        for _ in range(3):
            await it.forward(X)
        assert tokens_seen == [token, None, None]
        await it.near.connection_to(it.far.peer_id).aclose()
        await it.forward(X)
        assert tokens_seen[3:] == [token]


async def test_a_token_the_host_forgot_is_shown_again(tokens_seen, autojump_clock):
    async with rig(cache_size=0) as it:
        token = it.memberships["digits"].token
        await it.forward(X)
        await it.forward(X)
        assert tokens_seen == [token, None, token]


async def test_a_renewed_token_is_shown_at_once(autojump_clock):
    async with rig() as it:
        it.memberships["digits"] = it.member(it.near, lifetime=10)
        await it.forward(X)
        await trio.sleep(10)
        with pytest.raises(TokenExpiredError, match="new invite"):
            await it.forward(X)
        it.memberships["digits"] = it.member(it.near)
        await it.forward(X)


@pytest.mark.parametrize("size", [2, 100_000])
async def test_nothing_is_allocated_for_a_caller_without_rights(size, allocated, autojump_clock):
    other = RunKey.generate()
    async with rig() as it:
        x = torch.zeros(size, 4)
        for membership, error in [
            (it.member(it.far), NotAMemberError),  # captured
            (it.member(it.near, scopes=("host",)), PermissionDeniedError),
            (it.member(it.near, lifetime=-1), TokenExpiredError),
            (it.member(it.near, key=other), WrongRunError),
            (Membership.open("digits"), WrongRunError),
        ]:
            it.memberships["digits"] = membership
            with pytest.raises(error) as caught:
                await it.forward(x)
            assert type(caught.value) is error
        assert allocated == []
        assert it.handler.began == 0
        assert all(event.error for event in it.served)


async def test_a_stranger_learns_nothing_about_experts(autojump_clock):
    async with rig() as it:
        it.memberships["digits"] = it.member(it.far)
        with pytest.raises(NotAMemberError):
            await it.client.info(it.far.peer_id, Uid("digits", "nothing.0"))


async def test_a_call_in_a_run_without_membership_is_not_sent(autojump_clock):
    async with rig() as it:
        with pytest.raises(NotAMemberError, match="not a member of the run games"):
            await it.forward(X, uid=Uid("games", "ffn.0"))
        assert it.world.streams_served == 0


async def test_tokens_are_verified_once_for_many_calls(monkeypatch, autojump_clock):
    verified = []
    verify = authority_module.verify_token

    def count(*arguments):
        verified.append(arguments)
        return verify(*arguments)

    monkeypatch.setattr(authority_module, "verify_token", count)
    async with rig() as it:
        for _ in range(10):
            await it.forward(X)
    assert len(verified) == 1


# --- what does not fit ----------------------------------------------------------------------------


async def test_an_unknown_expert_is_refused(allocated, autojump_clock):
    async with rig() as it:
        with pytest.raises(UnknownExpertError, match=r"no ffn\.9 here"):
            await it.forward(X, uid=Uid("digits", "ffn.9"))
        assert allocated == []


@pytest.mark.parametrize(
    "inputs",
    [(X.double(),), (X[:, :3].clone(),), (X, X), (X[:0],)],
    ids=["dtype", "shape", "count", "rows"],
)
async def test_a_wrong_tensor_is_refused_here_and_there(inputs, allocated, autojump_clock):
    async with rig() as it:
        with pytest.raises(SchemaError):
            await it.forward(*inputs, info=INFO)
        assert it.world.streams_served == 0
        with pytest.raises(SchemaError):
            await it.forward(*inputs)
        with pytest.raises(SchemaError):
            await it.backward(*inputs)
        assert allocated == []
        assert it.handler.began == 0


async def test_more_rows_than_the_host_takes_are_refused(autojump_clock):
    async with rig() as it:
        with pytest.raises(TensorTooLargeError, match="at most 1024"):
            await it.forward(torch.zeros(1025, 4))


async def test_an_oversized_call_is_refused_here_and_there(allocated, autojump_clock):
    async with rig(RpcSettings(max_call_bytes=1000)) as it:
        with pytest.raises(TensorTooLargeError, match="limit of 1000"):
            await it.forward(torch.zeros(100, 4))
        assert it.world.streams_served == 0
        generous = TensorClient(it.near, RpcSettings(), it.memberships)
        with pytest.raises(TensorTooLargeError, match="takes at most 1000"):
            await generous.forward(it.far.peer_id, UID, [torch.zeros(100, 4)])
        assert allocated == []


async def test_nothing_is_allocated_for_a_call_that_there_is_no_room_for(allocated, autojump_clock):
    async with rig() as it:
        it.handler.full = True
        for use in (it.forward, it.backward):
            with pytest.raises(OverloadedError, match="no room"):
                await use(X)
        assert allocated == []


async def test_a_large_request_that_is_refused_is_not_sent_to_its_end(autojump_clock):
    x = torch.zeros(64, 1024, 256, dtype=torch.bfloat16)  # 32 MiB
    async with rig() as it:

        async def refuse(stream):
            await stream.send_all(encode_reply(Reply(error=OverloadedError("no room"))))
            await trio.sleep(10)  # without reading

        it.far.set_handler(PROTOCOL, refuse)
        with pytest.raises(OverloadedError):
            await it.forward(x, uid=WIDE)
        assert trio.current_time() < 1
        await trio.sleep(10)


async def test_bytes_in_flight_are_held_to_the_budget(allocated, autojump_clock):
    settings = RpcSettings(max_bytes_in_flight_per_peer=100)  # a call here holds 32 + 32
    async with rig(settings) as it, trio.open_nursery() as nursery:
        it.handler.hangs = True
        nursery.start_soon(it.forward, X)
        await trio.testing.wait_all_tasks_blocked()
        assert it.server.budget.bytes_in_flight == 64
        it.handler.hangs = False
        with pytest.raises(OverloadedError, match="100 bytes"):
            await it.forward(X)
        assert len(allocated) == 1
        nursery.cancel_scope.cancel()


async def test_calls_in_flight_are_held_to_the_budget(autojump_clock):
    async with rig(RpcSettings(max_calls_per_peer=1)) as it, trio.open_nursery() as nursery:
        it.handler.hangs = True
        nursery.start_soon(it.forward, X)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OverloadedError, match="1 calls"):
            await it.forward(X)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "failure",
    [ExpertFailedError("it broke"), OverloadedError("no room"), UnknownExpertError("gone")],
)
async def test_a_failure_of_the_handler_crosses_the_wire_by_its_code(failure, autojump_clock):
    async with rig() as it:
        it.handler.failure = failure
        with pytest.raises(type(failure), match=str(failure)):
            await it.forward(X)
        assert it.served[-1].error == type(failure).__name__


# --- deadlines, cancellation, losses --------------------------------------------------------------


async def test_a_call_ends_at_its_deadline_and_so_does_its_work(autojump_clock):
    async with rig(delay=0.1) as it:
        it.handler.hangs = True
        await it.near.connect(it.far.peer_id)
        began = trio.current_time()
        with pytest.raises(DeadlineExceededError, match=r"within 2 s"):
            await it.forward(X, timeout=2.0)
        assert trio.current_time() - began == pytest.approx(2.0)
        await trio.sleep(0.3)
        assert it.handler.cancelled == 1


async def test_the_host_keeps_the_deadline_by_itself(autojump_clock):
    async with rig() as it:
        it.handler.hangs = True
        stream = await it.raw()
        began = trio.current_time()
        await stream.send_all(it.request(milliseconds=1500) + bytes(32))
        error = (await reply_on(stream)).error
        assert type(error) is DeadlineExceededError
        assert trio.current_time() - began == pytest.approx(1.5)
        await stream.aclose()


async def test_no_deadline_is_longer_than_the_hosts(autojump_clock):
    async with rig(RpcSettings(max_deadline=2.0)) as it:
        it.handler.hangs = True
        stream = await it.raw()
        began = trio.current_time()
        await stream.send_all(it.request(milliseconds=10**9) + bytes(32))
        assert type((await reply_on(stream)).error) is DeadlineExceededError
        assert trio.current_time() - began == pytest.approx(2.0)
        with pytest.raises(DeadlineExceededError):
            await it.forward(X, timeout=math.inf)
        await stream.aclose()


async def test_cancelling_a_call_cancels_its_work(autojump_clock):
    async with rig(delay=0.1) as it:
        it.handler.hangs = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.forward, X)
            await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
        assert it.handler.cancelled == 0
        await trio.sleep(0.11)
        assert it.handler.cancelled == 1
        assert it.served[-1].error == "StreamResetError"


@pytest.mark.parametrize("rows", [2, 1024])
@pytest.mark.parametrize("step", range(14))
async def test_cancelling_at_any_moment_leaves_nothing_behind(step, rows, autojump_clock):
    async with rig(delay=0.1) as it:
        with trio.move_on_after(0.05 + step * 0.1) as scope:
            for _ in range(3):
                await it.forward(torch.zeros(rows, 4))
        assert scope.cancelled_caught == (step < 12)
        await trio.sleep(1.0)
        await it.assert_nothing_is_left()
        await it.forward(X)


async def test_a_call_that_is_cancelled_before_it_begins_is_cancelled_and_nothing_else(
    autojump_clock,
):
    async with rig(delay=0.1) as it:
        await it.forward(X)  # the connection stands
        with trio.CancelScope() as scope:
            scope.cancel()
            await it.forward(X)
        assert scope.cancelled_caught
        await it.forward(X)


@pytest.mark.parametrize("moment", [0.25, 1.0])
async def test_a_host_lost_during_a_call_is_told(moment, autojump_clock):
    x = torch.zeros(4, 1024, 256, dtype=torch.bfloat16)
    async with rig(delay=0.1) as it, trio.open_nursery() as nursery:
        it.handler.hangs = True
        await it.near.connect(it.far.peer_id)

        async def crash():
            await trio.sleep(moment)
            it.world.kill(it.far)

        nursery.start_soon(crash)
        with pytest.raises(HostLostError, match="lost during a call"):
            await it.forward(x, uid=WIDE)


async def test_a_caller_lost_during_a_call_cancels_its_work(autojump_clock):
    async with rig() as it, trio.open_nursery() as nursery:
        it.handler.hangs = True

        async def call():
            with pytest.raises(HostLostError):
                await it.forward(X)

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        it.world.kill(it.near)
        await trio.testing.wait_all_tasks_blocked()
        assert it.handler.cancelled == 1
        assert it.served[-1].error == ConnectionClosedError.__name__


@pytest.mark.parametrize("rows", [2, 100_000])
async def test_a_peer_that_hosts_nothing_is_told(rows, autojump_clock):
    async with rig() as it:
        it.server.close()
        with pytest.raises(UnknownExpertError, match="hosts no experts"):
            await it.forward(torch.zeros(rows, 4))


# --- callers and hosts that break the rules -------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x00\x00\x00\x05hello", "not msgpack"),
        (b"\x7f\xff\xff\xff", "exceeds the limit"),
        (b"GET / HTTP/1.1\r\n\r\n", "exceeds the limit"),
        (b"\x00\x00\x00\x09", "ended inside a header"),
        (b"", "ended inside a header"),
    ],
)
async def test_a_bad_request_is_answered_with_the_reason(data, sentence, allocated, autojump_clock):
    async with rig() as it:
        stream = await it.raw()
        await stream.send_all(data)
        await stream.send_eof()
        error = (await reply_on(stream)).error
        assert type(error) is BadRequestError
        assert sentence in str(error)
        assert allocated == []
        await stream.aclose()


async def test_a_caller_that_says_nothing_is_let_go(autojump_clock):
    async with rig() as it:
        stream = await it.raw()
        await stream.send_all(b"\x00\x00")
        error = (await reply_on(stream)).error
        assert type(error) is DeadlineExceededError
        assert trio.current_time() == pytest.approx(it.settings.header_timeout, abs=0.1)
        await stream.aclose()


async def test_a_payload_that_never_comes_is_waited_for_until_the_deadline(autojump_clock):
    async with rig() as it:
        stream = await it.raw()
        await stream.send_all(it.request() + bytes(31))
        assert type((await reply_on(stream)).error) is DeadlineExceededError
        assert trio.current_time() == pytest.approx(5.0, abs=0.1)
        await stream.aclose()


@pytest.mark.parametrize("trickle", [0, 1000])
async def test_a_payload_that_trickles_does_not_hold_its_memory(trickle, autojump_clock):
    async with rig() as it:
        stream = await it.raw()
        meta = TensorMeta("bfloat16", (4, 1024, 256))
        request = it.request(uid=WIDE.in_run(KEY.run_id), tensors=(meta,), milliseconds=600_000)
        await stream.send_all(request)
        while (now := trio.current_time()) < 60:
            with contextlib.suppress(StreamResetError):
                await stream.send_all(bytes(trickle))
            await trio.sleep(1.0)
            if not it.server.budget.bytes_in_flight:
                break
        assert now == pytest.approx(it.settings.payload_patience, abs=1.1)
        error = (await reply_on(stream)).error
        assert type(error) is DeadlineExceededError
        assert "too slowly" in str(error)
        await stream.aclose()


async def test_a_payload_cut_short_is_a_bad_request(autojump_clock):
    async with rig() as it:
        stream = await it.raw()
        await stream.send_all(it.request() + bytes(31))
        await stream.send_eof()
        assert type((await reply_on(stream)).error) is BadRequestError
        await stream.aclose()


async def test_a_caller_that_has_ended_its_side_is_still_answered(autojump_clock):
    async with rig() as it:
        stream = await it.raw()
        await stream.send_all(it.request() + bytes(32))
        await stream.send_eof()
        reply = await reply_on(stream)
        assert reply == Reply(tensors=(TensorMeta("float32", (2, 4)),))
        await stream.receive_exactly(32)
        await stream.aclose()


async def test_a_request_with_bytes_behind_its_payload_is_refused(autojump_clock):
    async with rig() as it:
        it.handler.hangs = True
        stream = await it.raw()
        await stream.send_all(it.request() + bytes(32) + b"more")
        assert type((await reply_on(stream)).error) is BadRequestError
        await stream.aclose()


async def test_a_caller_that_does_not_read_its_answer_is_let_go(autojump_clock):
    x = torch.zeros(4, 1024, 256, dtype=torch.bfloat16)
    async with rig() as it:
        stream = await it.raw()
        request = it.request(
            uid=WIDE.in_run(KEY.run_id), tensors=(TensorMeta("bfloat16", (4, 1024, 256)),)
        )
        await stream.send_all(request + bytes(x.nbytes))
        await trio.sleep(6.0)
        assert it.server.budget.bytes_in_flight == 0
        with pytest.raises(StreamResetError):
            await stream.receive_exactly(x.nbytes)
        await stream.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\x00\x00\x04abcd",
        b"\xff\xff\xff\xff",
        encode_reply(Reply(tensors=(TensorMeta("float32", (3, 4)),))) + bytes(48),
        encode_reply(Reply(tensors=(TensorMeta("float64", (2, 4)),))) + bytes(64),
        encode_reply(Reply(tensors=())),
        encode_reply(Reply(info=INFO)),
        encode_reply(Reply(tensors=(TensorMeta("float32", (2, 4)),))) + bytes(31),
        msgpack.packb({"v": 1, "error": ["x", 2]}),
    ],
)
async def test_a_host_that_answers_badly_has_failed(answer, autojump_clock):
    async with rig() as it:

        async def lie(stream):
            await stream.send_all(answer)

        it.far.set_handler(PROTOCOL, lie)
        with pytest.raises(ExpertFailedError, match="badly"):
            await it.forward(X, info=INFO)
        with pytest.raises(ExpertFailedError):
            await it.backward(X)
        it.handler.began = it.handler.ended


async def test_a_host_cannot_make_a_caller_allocate_what_it_likes(allocated, autojump_clock):
    async with rig() as it:

        async def lie(stream):
            await stream.send_all(encode_reply(Reply(tensors=(TensorMeta("int8", (2**38,)),))))

        it.far.set_handler(PROTOCOL, lie)
        with pytest.raises(ExpertFailedError, match="limit of one call"):
            await it.forward(X)
        assert allocated == []


async def test_tensors_in_place_of_a_description_are_not_received(allocated, autojump_clock):
    async with rig() as it:

        async def lie(stream):
            await stream.send_all(encode_reply(Reply(tensors=(TensorMeta("int8", (2**20,)),))))

        it.far.set_handler(PROTOCOL, lie)
        with pytest.raises(ExpertFailedError, match="not what the schema promises"):
            await it.client.info(it.far.peer_id, UID)
        assert allocated == []


async def test_a_host_that_never_answers_is_given_up(autojump_clock):
    async with rig() as it:

        async def hang(stream):
            while await stream.receive_some():
                pass
            await trio.sleep_forever()

        it.far.set_handler(PROTOCOL, hang)
        for size in (2, 100_000):
            with pytest.raises(DeadlineExceededError):
                await it.forward(torch.zeros(size, 4), timeout=3.0)
