"""Passes through a chain of blocks that live on hosts which may die at any moment.

*Forward*: the hops of a route are called one after the other. When one fails, the rest of the chain
gets a new route from there, and the same inputs go to another host.

*Backward*: from the last stage to the first, each one's inputs and the gradients of its outputs go
to the host that ran it in forward, which steps its optimiser and gives the gradients of the inputs.
When that host fails, the stage goes to another one. When no other one hosts all of its blocks, the
stage is run forward once more over several hosts, which shows the tensors between them, and
backward goes through these one by one. A stage keeps its call id wherever it is tried, so no host
applies it twice. A lost host may have taken the step before it was lost: then a block's old and its
new host have taken it, each once.

A host that answers for one block and fails on a span of them may lack one that the index still
lists: for the rest of the pass it is asked for one block at a time, which shows the one to blame.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import torch
import trio

from p2pnode.config import Settings
from p2pnode.errors import P2PNodeError, RemoteError, SchemaError
from p2pnode.experts.sessions.client import SessionClient
from p2pnode.rpc.messages import MAX_SPAN
from p2pnode.trainer.judged import JudgedClient
from p2pnode.trainer.quorum import Attempt
from p2pnode.trainer.sequential.lines import Lines
from p2pnode.trainer.sequential.paces import Paces
from p2pnode.trainer.sequential.passage import Keeper, Passage, Stage
from p2pnode.trainer.sequential.planner import Pass, Planner
from p2pnode.trainer.sequential.routing import Hop, Route
from p2pnode.trainer.sequential.session import ChainSession
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall
from p2pnode.wire.uids import Uid

if TYPE_CHECKING:
    from p2pnode.wire.peer_id import PeerId

T = TypeVar("T")
_PassKind = tuple[str, int]  # forward or backward, and the rows of a micro-batch
_KINDS_REMEMBERED: Final = 16


class Chain:
    """The blocks from `start` up to, but not including, `stop`, wherever they are hosted.

    Attributes:
        name: the pattern of its blocks, `blocks.[0:6]`.

    Args:
        client: makes the calls.
        block: the blocks' name without their number.
        start: the first block.
        stop: the block behind the last one.
        settings: limits and intervals.

    Raises:
        InvalidUidError: no block can have such a name.
        ValueError: there is no block in the chain, or more than one call may run through.
    """

    def __init__(
        self, client: JudgedClient, block: str, start: int, stop: int, *, settings: Settings
    ) -> None:
        if not 0 <= start < stop <= start + MAX_SPAN:
            raise ValueError(
                f"a chain has 1 to {MAX_SPAN} blocks, not those from {start} to {stop}"
            )
        self.name = f"{Uid(client.run_id, f'{block}.{start}').prefix}.[{start}:{stop}]"
        self._start = start
        self._stop = stop
        self._client = client
        self._settings = settings.sequential
        served: set[int] = set()
        # Steps of a few positions take other times than passes of whole batches.
        self._planner, self._session_planner = (
            Planner(
                client,
                block,
                Paces(settings.trainer.latency_smoothing),
                settings,
                gain=gain,
                served=served,
            )
            for gain in (
                self._settings.training_reroute_gain,
                self._settings.session_reroute_gain,
            )
        )
        self._opener = SessionClient(client.client.access, settings.rpc)
        self._keeper = Keeper(settings.sequential.kept_bytes)
        self._computing: OrderedDict[_PassKind, dict[PeerId, float]] = OrderedDict()

    async def forward(
        self,
        batches: Sequence[torch.Tensor],
        policy: CallPolicy,
        keep: bool,  # calls through the portal are positional
    ) -> list[tuple[torch.Tensor, Passage]]:
        """Run micro-batches through the chain, several at the same time.

        Args:
            batches: each of shape (rows, …).
            policy: the timeout of each, and whether answers are searched for NaN.
            keep: whether stages' inputs are kept for backward.

        Returns:
            For each micro-batch its outputs, and what backward needs.

        Raises:
            SchemaError, TensorTooLargeError: the inputs do not fit; they were not sent.
            NonFiniteError: the blocks failed on inputs that are not finite.
            NoLiveExpertError: a block had no live host for longer than the settings' patience.
            NotAMemberError: the hosts refuse this trainer.
            NoPeersError: the node knows nobody to ask.
            RemoteError: what the last host tried answered, when the time was over.
        """
        kind = ("forward", len(batches[0]))
        lines = self._lines(kind)

        async def run(number: int) -> tuple[torch.Tensor, Passage]:
            return await self._forward(
                self._start,
                self._stop,
                batches[number],
                Pass.begin(policy, self._client.new_trace(), lines),
                self._keeper.keep if keep else Stage.release,
            )

        found = await self._pipelined(len(batches), run)
        self._remember(kind, lines)
        return found

    async def backward(
        self,
        passages: Sequence[Passage],
        batches: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        policy: CallPolicy,
    ) -> list[torch.Tensor]:
        """Step the optimisers of all blocks, for several micro-batches at the same time.

        Args:
            passages: from `forward`, one for each micro-batch.
            batches: the micro-batches.
            gradients: of their outputs.
            policy: the timeout of each, and whether answers are searched for NaN.

        Returns:
            The gradients of each micro-batch.

        Raises:
            AlreadyAppliedError: a host took a step, but its answer is lost for good.
            P2PNodeError: as for `forward`; some blocks may have stepped, the last ones first.
        """
        kind = ("backward", len(batches[0]))
        lines = self._lines(kind)

        async def run(number: int) -> torch.Tensor:
            return await self._backward(
                passages[number],
                batches[number],
                gradients[number],
                Pass.begin(policy, self._client.new_trace(), lines),
            )

        found = await self._pipelined(len(batches), run)
        self._remember(kind, lines)
        return found

    def session(self, length: int, policy: CallPolicy) -> ChainSession:
        """Begin sequences of up to `length` positions; hosts are called from the first step on."""
        return ChainSession(
            self._client,
            self._opener,
            self._session_planner,
            (self._start, self._stop),
            length=length,
            policy=policy,
            settings=self._settings,
        )

    # --- one micro-batch ------------------------------------------------------------------------

    async def _forward(
        self,
        start: int,
        stop: int,
        inputs: torch.Tensor,
        on_way: Pass,
        keep: Callable[[Stage], None],
    ) -> tuple[torch.Tensor, Passage]:
        passage = Passage()
        route: list[Hop] = []
        while start < stop:
            if not route:
                route = [*await self._planner.route(start, stop, on_way)]
            hop = route.pop(0)
            try:
                outputs = await self._ask(hop, inputs, on_way)
            except RemoteError as error:
                on_way.receive_failure(hop, error)
                route = []
                continue
            stage = Stage(hop, inputs)
            if passage.stages:
                keep(stage)
            else:
                stage.release()  # the caller has them
            passage.stages.append(stage)
            start, inputs = hop.stop, outputs
        return inputs, passage

    async def _backward(
        self, passage: Passage, inputs: torch.Tensor, gradients: torch.Tensor, on_way: Pass
    ) -> torch.Tensor:
        call_id = self._client.new_call_id()
        stages = passage.stages
        stages[0].inputs = inputs
        for number in reversed(range(len(stages))):
            stage = stages[number]
            given = stage.inputs
            if given is None:
                given = await self._recompute(stages[:number], on_way)
            gradients = await self._step(stage.hop, given, gradients, on_way, call_id)
            stage.release()
        return gradients

    async def _recompute(self, stages: Sequence[Stage], on_way: Pass) -> torch.Tensor:
        """Compute again what the last of these stages put out, from the last inputs kept."""
        start, inputs = next(
            (stage.hop.start, stage.inputs)
            for stage in reversed(stages)
            if stage.inputs is not None
        )
        outputs, _ = await self._forward(start, stages[-1].hop.stop, inputs, on_way, Stage.release)
        return outputs

    async def _step(
        self,
        hop: Hop,
        inputs: torch.Tensor,
        gradients: torch.Tensor,
        on_way: Pass,
        call_id: bytes,
    ) -> torch.Tensor:
        """Go backward through one stage, on its own host or on others."""
        stands, _ = await self._planner.standing(hop)
        route: Route = (hop,) if stands else ()
        while True:
            if not route:
                route = await self._planner.route(hop.start, hop.stop, on_way)
            if len(route) > 1:
                _, passage = await self._forward(hop.start, hop.stop, inputs, on_way, _keep_all)
                if len(passage.stages) > 1:
                    passage.stages[0].inputs = inputs
                    return await self._step_parts(passage, gradients, on_way, call_id)
                route = (passage.stages[0].hop,)
            try:
                return await self._ask_back(route[0], inputs, gradients, on_way, call_id)
            except RemoteError as error:
                on_way.receive_failure(route[0], error)
                route = ()

    async def _step_parts(
        self, passage: Passage, gradients: torch.Tensor, on_way: Pass, call_id: bytes
    ) -> torch.Tensor:
        for stage in reversed(passage.stages):
            assert stage.inputs is not None, "nothing of it was let go"
            gradients = await self._step(stage.hop, stage.inputs, gradients, on_way, call_id)
        return gradients

    # --- one call -------------------------------------------------------------------------------

    async def _ask(self, hop: Hop, inputs: torch.Tensor, on_way: Pass) -> torch.Tensor:
        uid, attempt = self._planner.uid(hop.start), Attempt()
        async with on_way.turn_at(hop.peer_id) as is_alone:
            give_up = await self._planner.limit(hop, on_way)
            await self._client.info(hop.peer_id, uid, give_up, attempt, span=hop.span)
            call = ExpertCall(name=uid.name, inputs=(inputs,), span=hop.span, trace=on_way.trace)
            started = trio.current_time()
            answer = await self._client.forward(hop.peer_id, call, on_way.policy, give_up, attempt)
        if is_alone:  # else it may have waited there for another one of ours
            seconds = trio.current_time() - started
            self._planner.paces.receive_answer(hop.peer_id, hop.span, seconds)
        return _only(answer, uid)

    async def _ask_back(
        self,
        hop: Hop,
        inputs: torch.Tensor,
        gradients: torch.Tensor,
        on_way: Pass,
        call_id: bytes,
    ) -> torch.Tensor:
        uid = self._planner.uid(hop.start)
        call = ExpertCall(
            name=uid.name,
            inputs=(inputs,),
            gradients=(gradients,),
            span=hop.span,
            trace=on_way.trace,
        )
        async with on_way.turn_at(hop.peer_id):
            give_up = await self._planner.limit(hop, on_way)
            answer = await self._client.backward(
                hop.peer_id, call, on_way.policy, give_up, Attempt(), call_id=call_id
            )
        return _only(answer, uid)

    # --- several micro-batches ------------------------------------------------------------------

    def _lines(self, kind: _PassKind) -> Lines:
        return Lines(
            self._settings.micro_batches_at_one_host,
            self._planner.paces.round_trip,
            self._computing.get(kind, {}),
        )

    def _remember(self, kind: _PassKind, lines: Lines) -> None:
        """Keep how fast hosts were, for the next pass with as many rows."""
        self._computing.pop(kind, None)
        self._computing[kind] = lines.computing()
        if len(self._computing) > _KINDS_REMEMBERED:
            self._computing.popitem(last=False)

    async def _pipelined(self, count: int, run: Callable[[int], Awaitable[T]]) -> list[T]:
        """Run micro-batches, a bounded number at once, in the order of their numbers.

        Raises:
            P2PNodeError: the first failure; the others are given up.
        """
        found: dict[int, T] = {}
        failures: list[P2PNodeError] = []
        numbers = iter(range(count))

        async def work() -> None:
            try:
                for number in numbers:
                    found[number] = await run(number)
            except P2PNodeError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(count, self._settings.micro_batches_at_once)):
                nursery.start_soon(work)
        if failures:
            raise failures[0]
        return [found[number] for number in range(count)]


def _keep_all(_stage: Stage) -> None:
    """Keep a stage's inputs, whatever their size: they are needed at once."""


def _only(answer: Answer, uid: Uid) -> torch.Tensor:
    if len(answer.tensors) != 1:
        raise SchemaError(f"{uid.name} has several tensors; blocks of a chain take and give one")
    return answer.tensors[0]
