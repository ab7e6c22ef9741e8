"""The host's side of split calls: `/p2pnode/splitting/1.0.0`.

Forward parts need nothing but weights. A step has its turn at the expert from its first word to its
commit, so that the steps of several callers follow each other, in one order at all peers; see
`p2pnode.swarm.splitting.core`. As in tensor calls, each check refuses as much as it can before the
next one costs more.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import trio

from p2pnode.clock import wall_time
from p2pnode.config import RpcSettings
from p2pnode.config.splitting import SplittingSettings
from p2pnode.errors import (
    ConnectionClosedError,
    DeadlineExceededError,
    ExpertFailedError,
    NonFiniteError,
    OverloadedError,
    P2PNodeError,
    StreamResetError,
    TensorTooLargeError,
)
from p2pnode.experts.replay import replay_key
from p2pnode.experts.service import ExpertHost
from p2pnode.host import Host, Stream
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Charge
from p2pnode.rpc.codecs.names import held_bytes, travelling
from p2pnode.rpc.framing import IncomingMessage, send_message
from p2pnode.rpc.schema import TensorMeta
from p2pnode.rpc.server import CallHandler, TensorServer, send_refusal
from p2pnode.rpc.tensors import metas_of
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.swarm.splitting.client import SplitClient
from p2pnode.swarm.splitting.core import Turn
from p2pnode.swarm.splitting.experts import SplitExperts
from p2pnode.swarm.splitting.messages import (
    AMONG_PEERS,
    PROTOCOL,
    SplitReply,
    SplitRequest,
    decode_request,
    encode_reply,
)
from p2pnode.swarm.splitting.settling import Settling
from p2pnode.swarm.splitting.steps import Steps
from p2pnode.swarm.splitting.weights import SwarmWeights
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_Answer = tuple[SplitReply, Sequence[torch.Tensor]]


class SplitServer:
    """Serves split calls on a host, from its construction until `close`.

    Args:
        host: the network.
        settings: leases, limits and times.
        rpc: limits of messages.
        handler: knows which experts others may call now.
        experts: what is hosted here.
        authority: decides who may call.
        access: the way to other peers of the swarm.
        tensors: the server of tensor calls, whose budget and codecs are shared.
        reducer: adds up gradients with the other peers of a group.
        weights: gives and takes the states of experts.
        rng: the source of chance.
    """

    def __init__(
        self,
        host: Host,
        settings: SplittingSettings,
        *,
        rpc: RpcSettings,
        handler: CallHandler,
        experts: ExpertHost,
        authority: Authority,
        access: Access,
        tensors: TensorServer,
        reducer: AllReduce,
        weights: SwarmWeights,
        rng: random.Random,
    ) -> None:
        self._host = host
        self._rpc = rpc
        self._handler = handler
        self._authority = authority
        self._tensors = tensors
        self._weights = weights
        self._experts = SplitExperts(experts, host.events)
        self.steps = Steps(host.peer_id, settings, self._experts, reducer, host.events)
        self._settling = Settling(
            host.peer_id,
            settings,
            experts=self._experts,
            steps=self.steps,
            client=SplitClient(access, rpc, tensors.transcoder),
            weights=weights,
            events=host.events,
            rng=rng,
        )
        host.set_handler(PROTOCOL, self._serve)

    def close(self) -> None:
        """Take no more calls; those under way go on."""
        self._host.remove_handler(PROTOCOL)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End steps whose callers are lost, and catch up where need be, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.steps.run)
            await nursery.start(self._settling.run)
            task_status.started()

    async def _serve(self, stream: Stream) -> None:
        try:
            with self._tensors.budget.call(stream.peer_id) as charge:
                await self._answer_in_time(stream, charge)
        except (StreamResetError, ConnectionClosedError):
            raise
        except P2PNodeError as error:
            await send_refusal(stream, error, self._rpc.header_timeout)

    async def _answer_in_time(self, stream: Stream, charge: Charge) -> None:
        with trio.move_on_after(self._rpc.header_timeout) as patience:
            stream.cancel_when_lost(patience)
            incoming = IncomingMessage(stream)
            request = decode_request(await incoming.header(self._rpc.max_header_bytes))
            self._authority.authorise(
                stream.peer_id,
                request.uid.run,
                request.token,
                "host" if request.operation in AMONG_PEERS else "train",
                wall_time(),
            )
            remaining = min(request.milliseconds / 1000, self._rpc.max_deadline)
            patience.deadline = trio.current_time() + remaining
            call = _Call(stream.peer_id, request, incoming, charge, patience.deadline)
            reply, tensors = await self._answer(call)
            reply = replace(reply, microseconds=call.microseconds)
            await self._send(stream, request, reply, tensors)
            return
        if trio.current_time() < patience.deadline:
            raise StreamResetError("the caller has given the call up")
        raise DeadlineExceededError("a split call missed its deadline at the host")

    async def _answer(self, call: "_Call") -> _Answer:
        request, uid = call.request, call.request.uid
        self._handler.info(uid)  # or it is not served here now
        match request.operation:
            case "forward":
                return await self._forward(call)
            case "backward":
                return await self._backward(call)
            case _:
                with call.no_rows():
                    return await self._answer_without_rows(call), ()

    async def _answer_without_rows(self, call: "_Call") -> SplitReply:
        request, uid = call.request, call.request.uid
        match request.operation:
            case "join":
                turn = await self._join(call)
                return SplitReply(version=turn.at)
            case "prepare":
                assert request.plan is not None, "as the decoder has seen"
                version, digest = await self.steps.prepare(
                    uid, call.key, request.plan, deadline=call.deadline
                )
                return SplitReply(version=version, digest=digest)
            case "commit":
                return SplitReply(version=await self.steps.commit(uid, call.key))
            case "abort":
                self.steps.abort(uid, call.key)
            case "behind":
                self._settling.suspect(uid)
            case _:
                return await self._answer_peer(call)
        return SplitReply()

    async def _join(self, call: "_Call") -> Turn:
        request = call.request
        turn = await self.steps.join(request.uid, call.key, call.peer_id, now=request.now)
        if request.plan is not None:
            self.steps.plan(turn, request.plan)
        return turn

    async def _answer_peer(self, call: "_Call") -> SplitReply:
        request, uid = call.request, call.request.uid
        match request.operation:
            case "pause":
                lease = call.deadline - trio.current_time()
                turn = await self.steps.join(uid, call.key, call.peer_id, lease=lease)
                return SplitReply(version=turn.at)
            case "resume":
                self.steps.abort(uid, call.key)
                return SplitReply()
            case "outcome":
                outcome, digest = self.steps.outcome(uid, request.step_id, call.peer_id)
                return SplitReply(outcome=outcome, digest=digest)
            case "state":
                return await self._state(uid)
        return SplitReply(version=await self._experts.version(uid))

    async def _forward(self, call: "_Call") -> _Answer:
        uid, info = call.request.uid, self._handler.info(call.request.uid)
        _, outputs = info.check_forward(call.request.tensors)
        self.steps.check_ready(uid)
        inputs = await self._receive(call, outputs)
        if call.request.after:
            with call.no_rows():
                await self.steps.wait_for(uid, replay_key(call.peer_id, call.request.after))
        answer, version = await self._experts.forward(
            uid, inputs, caller=call.peer_id, deadline=call.deadline
        )
        return SplitReply(version=version), answer

    async def _backward(self, call: "_Call") -> _Answer:
        request = call.request
        count = len(request.tensors) - request.gradients
        inputs, gradients = request.tensors[:count], request.tensors[count:]
        self._handler.info(request.uid).check_gradients(inputs, gradients)
        turn = await self._join(call) if request.now else self.steps.find(request.uid, call.key)
        received = await self._receive(call, inputs)
        answer = await self.steps.backward(
            turn, request.part, received[:count], received[count:], deadline=call.deadline
        )
        return SplitReply(version=turn.at), answer

    async def _state(self, uid: Uid) -> SplitReply:
        manifest = await self._weights.newest(uid)
        version = await self._experts.version(uid)
        if version.steps != manifest.steps:
            raise OverloadedError(f"{uid.name} has just taken a step here; ask again")
        return SplitReply(version=version, state=manifest.name)

    async def _receive(self, call: "_Call", answer: Sequence[TensorMeta]) -> list[torch.Tensor]:
        """Receive a request's tensors, after they and the answer's are charged."""
        metas = call.request.tensors
        size = sum(meta.nbytes for meta in metas)
        if size > self._rpc.max_call_bytes:
            raise TensorTooLargeError(
                f"{size} bytes of tensors in one call; this host takes at most"
                f" {self._rpc.max_call_bytes}, so send fewer rows at once"
            )
        self._handler.check(call.request.uid, caller=call.peer_id)
        sent = [travelling(meta, call.request.reply) for meta in answer]
        call.charge.add(sum(map(held_bytes, (*metas, *sent))))
        received = await call.incoming.tensors(metas, patience=self._rpc.payload_patience)
        return await self._tensors.transcoder.decode(received, metas)

    async def _send(
        self,
        stream: Stream,
        request: SplitRequest,
        reply: SplitReply,
        tensors: Sequence[torch.Tensor],
    ) -> None:
        metas = tuple(travelling(meta, request.reply) for meta in metas_of(tensors))
        try:
            buffers = await self._tensors.transcoder.encode(tensors, metas)
        except NonFiniteError as error:
            raise ExpertFailedError(
                f"{request.uid.name} answers NaN or infinite values, which {request.reply} cannot"
                " carry"
            ) from error
        await send_message(stream, encode_reply(reply, metas), buffers)


class _Call:
    """One stream being served, after its header has come."""

    def __init__(
        self,
        peer_id: PeerId,
        request: SplitRequest,
        incoming: IncomingMessage,
        charge: Charge,
        deadline: float,
    ) -> None:
        self.peer_id = peer_id
        self.request = request
        self.incoming = incoming
        self.charge = charge
        self.deadline = deadline
        self.key = replay_key(peer_id, request.step_id)
        self.microseconds = 0  # of what is not the work on the call's rows

    @contextmanager
    def no_rows(self) -> Iterator[None]:
        """Count the time of the block as one without work on the call's rows."""
        began = trio.current_time()
        yield
        self.microseconds += int(1e6 * (trio.current_time() - began))
