"""What a participant of layer-parallel training does between two rounds: it trains, and it scores.

Micro-batches of its own examples run forward through all layers, from swarm to swarm; the loss is
computed here, where the classes are known; its gradients are handed back from swarm to swarm, and
each layer steps as they pass. Several micro-batches are on their way at once, so that all layers
compute at the same time. What that costs is staleness, which is bounded and told.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import torch
import trio
from torch.nn import functional

from p2pnode.config import HostingSettings, LayerwiseSettings
from p2pnode.errors import P2PNodeError, StaleUpdateError
from p2pnode.events import EventBus
from p2pnode.experts.backend import ExpertBackend, build_backend
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.service import ExpertHost
from p2pnode.trainer.layerwise.data import Batches, Examples, Part
from p2pnode.trainer.layerwise.network import Lane, SwarmNetwork
from p2pnode.trainer.layerwise.tally import Tally

SLACK: Final = 0.5
"""By how much of a score honest claims may be above what one finds oneself; see `rounds.slack`.

Scores are of whole networks. The other layers of two participants differ, by much in the first
rounds, when honest claims were seen to be 0.3 too high. What is not better is not adopted anyway.
"""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes the last layer's outputs, (rows, …), and the classes, (rows,); gives the mean over rows."""


class LayerwiseLearner:
    """Trains and scores one layer on this participant's data; see `p2pnode.swarm.rounds.learner`.

    Args:
        network: the layers.
        experts: hosts the participant's own.
        part: the participant's data.
        hosting: how its layer is built, to score other weights of it.
        settings: sizes and bounds.
        events: told of `SamplesTrained`.
        seed: of the order of examples.
        loss: what is made smaller.
    """

    def __init__(
        self,
        network: SwarmNetwork,
        experts: ExpertHost,
        part: Part,
        *,
        hosting: HostingSettings,
        settings: LayerwiseSettings,
        events: EventBus,
        seed: int,
        loss: Loss = functional.cross_entropy,
    ) -> None:
        self._network = network
        self._experts = experts
        self._part = part
        self._hosting = hosting
        self._settings = settings
        self._events = events
        self._batches = Batches(part.train, seed)
        self._loss = loss
        self._digest = part.digest

    @property
    def held_out(self) -> int:
        """How many examples the hold-out has."""
        return len(self._part.held_out)

    @property
    def data_digest(self) -> bytes:
        """The SHA-256 of the hold-out."""
        return self._digest

    @property
    def is_lasting(self) -> bool:
        """Whether weights keep their score: not these, as the other layers learn meanwhile."""
        return False

    # --- training -------------------------------------------------------------------------------

    async def train(self, samples: int) -> None:
        """Send the next examples through all layers, and their gradients back.

        An example whose layer has no live host, or has moved on too far, is given up; the others
        go on.

        Args:
            samples: how many, of which the last micro-batch has the rest.

        Raises:
            P2PNodeError: none of them came through; the last failure.
        """
        began = trio.current_time()
        tally = Tally()
        lane = await self._network.lane()
        size = self._settings.batch
        sizes = [size] * (samples // size) + [samples % size] * (samples % size > 0)
        turns = enumerate(sizes)
        failures: list[P2PNodeError] = []

        async def work() -> None:
            for turn, rows in turns:
                try:
                    await self._pass(self._batches.draw(rows), turn, lane, tally)
                except StaleUpdateError:
                    tally.stale += rows
                except P2PNodeError as error:
                    tally.lost += rows
                    failures[:] = [error]
                else:
                    tally.samples += rows

        await self._at_once(work)
        self._events.emit(tally.event(self._network.own, trio.current_time() - began))
        if failures and not tally.samples:
            raise failures[0]

    async def _pass(self, batch: Examples, turn: int, lane: Lane, tally: Tally) -> None:
        """Run one micro-batch forward and backward through all layers."""
        network, visits, passing = self._network, [], batch.inputs
        for number in range(network.layers):
            first = lane.host(number, turn)
            passing, visit = await network.forward(number, passing, first)
            tally.rerouted += visit.by != first
            visits.append(visit)
        gradients = self._gradients(passing, batch.targets)
        for number in reversed(range(network.layers)):
            found, age = await network.backward(number, visits[number], gradients)
            tally.receive_update(age)
            if found is not None:
                gradients = found

    def _gradients(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self._loss(leaf, targets), [leaf])
        return found

    async def _at_once(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run as many workers as micro-batches may be on their way.

        Raises:
            P2PNodeError: as one of them; the others are given up.
        """
        failures: list[P2PNodeError] = []

        async def guarded() -> None:
            try:
                await work()
            except P2PNodeError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(self._settings.in_flight):
                nursery.start_soon(guarded)
        if failures:
            raise failures[0]

    # --- scoring --------------------------------------------------------------------------------

    async def score(self, checkpoint: Checkpoint | None) -> float:
        """Return the part of the hold-out that the whole network classifies right.

        The other layers are those of the lane as they are now.

        Args:
            checkpoint: weights in the place of this participant's own layer; None for those in use.

        Raises:
            CheckpointError: they do not fit the layer.
            P2PNodeError: another layer has no live host.
        """
        candidate = None if checkpoint is None else await self._build(checkpoint)
        lane = await self._network.lane()
        held_out = self._part.held_out
        pieces = enumerate(torch.split(torch.arange(len(held_out)), self._settings.score_batch))
        right = 0

        async def work() -> None:
            nonlocal right
            for turn, rows in pieces:
                examples = held_out.take(rows)
                outputs = await self._infer(examples.inputs, turn, lane, candidate)
                right += int((outputs.argmax(dim=1) == examples.targets).sum())

        await self._at_once(work)
        return right / len(held_out)

    async def _infer(
        self, inputs: torch.Tensor, turn: int, lane: Lane, candidate: ExpertBackend | None
    ) -> torch.Tensor:
        for number in range(self._network.layers):
            if candidate is not None and number == self._network.number:
                inputs = await self._run(candidate, inputs)
            else:
                inputs, _ = await self._network.forward(number, inputs, lane.host(number, turn))
        return inputs

    async def _build(self, checkpoint: Checkpoint) -> ExpertBackend:
        def build(_hosted: object) -> ExpertBackend:
            backend = build_backend(self._network.own, self._hosting)
            backend.load(checkpoint.state)
            return backend

        return await self._experts.compute(self._network.own, 1, build)

    async def _run(self, candidate: ExpertBackend, inputs: torch.Tensor) -> torch.Tensor:
        def run(_hosted: object) -> torch.Tensor:
            (outputs,) = candidate.forward([inputs])
            return outputs

        return await self._experts.compute(self._network.own, 1, run)
