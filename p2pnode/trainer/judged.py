"""One call of one host, bounded in time, by whose outcome the host is judged.

Whoever chooses hosts, an `ExpertCaller` one after the other or a chain of blocks by their route,
makes its calls here, and so all learn from each other's failures.
"""

import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import torch
import trio

from p2pnode.config import TrainerSettings
from p2pnode.errors import (
    AlreadyAppliedError,
    ExpertFailedError,
    HostLostError,
    NonFiniteError,
    OverloadedError,
    RemoteError,
    SchemaError,
    StaleUpdateError,
    TensorTooLargeError,
)
from p2pnode.experts.states import all_finite
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.messages import CALL_ID_BYTES, TRACE_BYTES
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.rpc.tensors import metas_of
from p2pnode.trainer.hosts import HostBook
from p2pnode.trainer.quorum import Attempt
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall, anomaly_in
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

T = TypeVar("T")

# Another host would not do: the step is taken already or too late, or the tensors do not fit.
FINAL: Final = (AlreadyAppliedError, SchemaError, StaleUpdateError, TensorTooLargeError)


class JudgedClient:
    """Makes calls, and tells the book of hosts how they end.

    Args:
        client: makes one call to one host.
        book: judges the hosts.
        run_id: the run whose experts are called.
        settings: limits.
        rng: makes call ids.
    """

    def __init__(
        self,
        client: TensorClient,
        book: HostBook,
        run_id: str,
        *,
        settings: TrainerSettings,
        rng: random.Random,
    ) -> None:
        self.book = book
        self.client = client
        self.run_id = run_id
        self._settings = settings
        self._rng = rng
        self._infos: OrderedDict[tuple[PeerId, Uid, int], ExpertInfo] = OrderedDict()

    def new_call_id(self) -> bytes:
        """Return an id for a backward call, by which it is applied at most once."""
        return self._rng.randbytes(CALL_ID_BYTES)

    def new_trace(self) -> bytes:
        """Return what logs tell a call by."""
        return self._rng.randbytes(TRACE_BYTES)

    async def info(
        self, peer_id: PeerId, uid: Uid, give_up: float, attempt: Attempt, *, span: int = 1
    ) -> ExpertInfo:
        """Return what an expert, or a span of layers, takes and gives; asked for once.

        Raises:
            RemoteError: what the host answered, or why it did not.
        """
        key = (peer_id, uid, span)
        if (info := self._infos.get(key)) is not None:
            self._infos.move_to_end(key)
            return info

        async def ask(limit: float) -> ExpertInfo:
            return await self.client.info(peer_id, uid, span=span, timeout=limit)

        info = self._infos[key] = await self.judge(
            peer_id, uid, give_up, attempt, ask, span=span, timed=False
        )
        if len(self._infos) > self._settings.max_cached_infos:
            self._infos.popitem(last=False)
        return info

    async def forward(
        self,
        peer_id: PeerId,
        call: ExpertCall,
        policy: CallPolicy,
        give_up: float,
        attempt: Attempt,
    ) -> Answer:
        """Compute an expert's outputs, or those of a span of layers.

        Args:
            peer_id: a host of all that is called.
            call: the expert and its inputs.
            policy: whether answers are searched for NaN, and the codec.
            give_up: until when to wait, on trio's clock.
            attempt: kept up to date with the host that is waited for.

        Raises:
            SchemaError, TensorTooLargeError: the inputs do not fit; they were not sent.
            NonFiniteError: the expert failed on inputs that are not finite, or the codec cannot
                carry them.
            RemoteError: what the host answered, or why it did not.
        """
        uid = Uid.parse(call.name, self.run_id)
        trace = call.trace or self.new_trace()
        info = await self.info(peer_id, uid, give_up, attempt, span=call.span)
        info.check_inputs(metas_of(call.inputs))

        async def ask(limit: float) -> list[torch.Tensor]:
            try:
                outputs = await self.client.forward(
                    peer_id,
                    uid,
                    call.inputs,
                    span=call.span,
                    timeout=limit,
                    info=info,
                    codec=policy.codec,
                    trace=trace,
                    age=call.age,
                )
            except ExpertFailedError as error:
                raise (anomaly_in(call) or error) from error
            return self._checked(peer_id, uid, outputs, policy)

        outputs = await self.judge(peer_id, uid, give_up, attempt, ask, span=call.span)
        return Answer(tensors=tuple(outputs), by=peer_id)

    async def backward(
        self,
        peer_id: PeerId,
        call: ExpertCall,
        policy: CallPolicy,
        give_up: float,
        attempt: Attempt,
        *,
        call_id: bytes,
    ) -> Answer:
        """Step the optimiser of an expert, or of a span of layers; give the inputs' gradients.

        When the host is lost, it is asked once more under the same id.

        Args:
            peer_id: a host of all that is called.
            call: the expert, its inputs, and the gradients of its outputs.
            policy: whether answers are searched for NaN, and the codec.
            give_up: until when to wait, on trio's clock.
            attempt: kept up to date with the host that is waited for.
            call_id: from `new_call_id`, the same wherever the call is tried.

        Raises:
            SchemaError, TensorTooLargeError: the tensors do not fit; they were not sent.
            NonFiniteError: the expert failed on tensors that are not finite, or the codec cannot
                carry them.
            AlreadyAppliedError: the step was taken, but the answer is lost for good.
            StaleUpdateError: `call.age` is beyond its bound; no step was taken.
            RemoteError: what the host answered, or why it did not.
        """
        uid = Uid.parse(call.name, self.run_id)
        trace = call.trace or self.new_trace()
        info = await self.info(peer_id, uid, give_up, attempt, span=call.span)
        info.check_gradients(metas_of(call.inputs), metas_of(call.gradients))

        async def ask(limit: float) -> list[torch.Tensor]:
            try:
                gradients = await self.client.backward(
                    peer_id,
                    uid,
                    call.inputs,
                    call.gradients,
                    call_id=call_id,
                    span=call.span,
                    timeout=limit,
                    info=info,
                    codec=policy.codec,
                    trace=trace,
                    age=call.age,
                    wants_gradients=call.wants_gradients,
                )
            except ExpertFailedError as error:
                raise (anomaly_in(call) or error) from error
            return self._checked(peer_id, uid, gradients, policy)

        try:
            gradients = await self.judge(peer_id, uid, give_up, attempt, ask, span=call.span)
        except HostLostError:
            gradients = await self.judge(peer_id, uid, give_up, attempt, ask, span=call.span)
        return Answer(tensors=tuple(gradients), by=peer_id)

    async def judge(
        self,
        peer_id: PeerId,
        uid: Uid,
        give_up: float,
        attempt: Attempt,
        ask: Callable[[float], Awaitable[T]],
        *,
        span: int = 1,
        timed: bool = True,
    ) -> T:
        """Make one call of one host, and judge the host by its outcome.

        Args:
            peer_id: the host.
            uid: the expert, or the first of the span.
            give_up: until when to wait, on trio's clock.
            attempt: kept up to date with the host that is waited for.
            ask: makes the call, within so many seconds.
            span: how many layers it runs.
            timed: whether its duration says how fast the host computes.
        """
        limiter = self.book.limiter(peer_id)
        if limiter.available_tokens:
            limiter.acquire_nowait()
        else:
            with trio.move_on_at(give_up) as scope:
                await limiter.acquire()
            if scope.cancelled_caught:
                raise OverloadedError(f"too many calls of {peer_id} are under way")
        try:
            attempt.peer_id = peer_id
            started = trio.current_time()
            self.book.recorder.started(peer_id)
            try:
                answer = await ask(give_up - started)
            except (NonFiniteError, TensorTooLargeError):
                self.book.recorder.failed(peer_id)
                raise
            except SchemaError as error:
                # What was sent fits the schema the host has told: it contradicts itself.
                self._infos.pop((peer_id, uid, span), None)
                failure = ExpertFailedError(f"{peer_id} has changed {uid.name}: {error}")
                self.book.receive_failure(peer_id, uid, failure, span=span)
                raise failure from error
            except RemoteError as error:
                self.book.receive_failure(peer_id, uid, error, span=span)
                raise
            self.book.receive_success(
                peer_id, uid, trio.current_time() - started if timed else None
            )
            return answer
        finally:
            limiter.release()

    def _checked(
        self, peer_id: PeerId, uid: Uid, tensors: list[torch.Tensor], policy: CallPolicy
    ) -> list[torch.Tensor]:
        if policy.detect_anomalies and not all_finite(tensors):
            self.book.recorder.add("anomalies")
            raise ExpertFailedError(f"{uid.name} on {peer_id} answered NaN or infinite values")
        return tensors
