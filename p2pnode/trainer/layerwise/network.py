"""A network whose layers are hosted by swarms, as one participant calls it.

The participant computes its own layer on its own device; for each other layer it calls the host in
its lane (`lanes`), and another one where that fails. Every call tells which steps its weights had
taken, so that the backward call of the same micro-batch can be dropped by a layer that has moved on
too far meanwhile (`p2pnode.rpc.age`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
import trio

from p2pnode.config import LayerwiseSettings
from p2pnode.errors import ConfigError, NoPeersError, SchemaError
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.age import Age
from p2pnode.rpc.codecs.names import find_codec
from p2pnode.rpc.tensors import metas_of
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.layerwise.lanes import partners
from p2pnode.trainer.sources import CallPolicy, ExpertCall
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_MIN_LAYERS: Final = 2


@dataclass(slots=True, eq=False)
class Visit:
    """One micro-batch at one layer: what its backward pass needs of the forward pass."""

    inputs: torch.Tensor
    age: Age
    by: PeerId


@dataclass(slots=True, eq=False)
class Lane:
    """Whom a participant works with, by the number of the layer; itself at its own."""

    hosts: dict[int, tuple[PeerId, ...]] = field(default_factory=dict)

    def host(self, layer: int, turn: int) -> PeerId | None:
        """Return whom the micro-batch of this number goes to, if anybody is known."""
        hosts = self.hosts.get(layer)
        return hosts[turn % len(hosts)] if hosts else None


class SwarmNetwork:
    """The layers `block.0` up to `block.<layers - 1>` of a run.

    Args:
        caller: calls the other layers.
        experts: hosts the participant's own.
        own: the participant's layer, its run named by id.
        peer_id: the participant.
        layers: how many the network has.
        settings: limits.

    Raises:
        ConfigError: `own` is no layer of such a network.
    """

    def __init__(
        self,
        caller: ExpertCaller,
        experts: ExpertHost,
        own: Uid,
        *,
        peer_id: PeerId,
        layers: int,
        settings: LayerwiseSettings,
    ) -> None:
        coordinates = own.coordinates
        if layers < _MIN_LAYERS or len(coordinates) != 1 or coordinates[0] >= layers:
            raise ConfigError(
                f"{own.name} is no layer of a network of {layers}; there are two or more, numbered"
                " from 0, as in layers.0"
            )
        self.layers = layers
        self.own = own
        self.number = coordinates[0]
        self.uids = Uid(own.run, f"{own.block}.0").span(layers)
        self._caller = caller
        self._experts = experts
        self._peer_id = peer_id
        self._settings = settings
        self._unfit: set[PeerId] = set()  # hosts whose outputs our layer does not take
        self._policy = CallPolicy(timeout=settings.call_timeout, codec=find_codec(settings.codec))

    async def missing(self) -> list[Uid]:
        """List the layers of which no live host is known."""
        others = [uid for uid in self.uids if uid != self.own]
        try:
            return [uid for uid in others if not await self._caller.book.candidates(uid)]
        except NoPeersError:  # nobody has come yet
            return others

    async def lane(self) -> Lane:
        """Find whom to work with for a while.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        swarms = [
            [entry.peer_id for entry in await self._caller.book.candidates(uid)]
            for uid in self.uids
        ]
        self._unfit &= {peer_id for swarm in swarms for peer_id in swarm}
        swarms = [[each for each in swarm if each not in self._unfit] for swarm in swarms]
        mates = swarms[self.number]
        lane = {n: partners(self._peer_id, mates, hosts) for n, hosts in enumerate(swarms)}
        return Lane({**lane, self.number: (self._peer_id,)})

    async def forward(
        self, number: int, inputs: torch.Tensor, first: PeerId | None
    ) -> tuple[torch.Tensor, Visit]:
        """Compute a layer's outputs.

        Args:
            number: of the layer.
            inputs: what it takes.
            first: which host is asked before others, as `Lane.host` says.

        Raises:
            SchemaError: what a host has answered is nothing that our layer takes; it is in no lane
                any more.
            P2PNodeError: nobody could.
        """
        age = Age()
        if number == self.number:
            (outputs,) = await self._experts.forward(
                self.own, [inputs], caller=self._peer_id, deadline=self._deadline(), age=age
            )
            return outputs, Visit(inputs, age, self._peer_id)
        call = ExpertCall(
            name=self.uids[number].name,
            inputs=(inputs,),
            answered_by=first,
            age=age,
        )
        answer = await self._caller.forward(call, self._policy)
        outputs = _only(answer.tensors)
        if number + 1 == self.number:
            self._check_fits(outputs, answer.by)
        return outputs, Visit(inputs, age, answer.by)

    async def backward(
        self, number: int, visit: Visit, gradients: torch.Tensor
    ) -> tuple[torch.Tensor | None, Age]:
        """Step a layer where it was run, or on another host, and give its inputs' gradients.

        Those of the first layer's inputs do not travel, as nobody needs them: then it is None.

        Raises:
            StaleUpdateError: it has taken too many steps since; it was not stepped.
            P2PNodeError: nobody could.
        """
        age = Age(since=visit.age.steps, bound=self._settings.max_staleness)
        if number == self.number:
            gradients_of_inputs = await self._experts.backward(
                self.own,
                [visit.inputs],
                [gradients],
                caller=self._peer_id,
                call_id=self._caller.client.new_call_id(),
                deadline=self._deadline(),
                age=age,
                wants_gradients=number > 0,
            )
            return _only(gradients_of_inputs) if number > 0 else None, age
        call = ExpertCall(
            name=self.uids[number].name,
            inputs=(visit.inputs,),
            gradients=(gradients,),
            answered_by=visit.by,
            age=age,
            wants_gradients=number > 0,
        )
        answer = await self._caller.backward(call, self._policy)
        return _only(answer.tensors) if number > 0 else None, age

    def _check_fits(self, outputs: torch.Tensor, by: PeerId) -> None:
        """Refuse what our layer would fail on, and leave its host alone."""
        try:
            self._experts.info(self.own).check_forward(metas_of([outputs]))
        except SchemaError as error:
            self._unfit.add(by)
            raise SchemaError(
                f"{by} hosts a layer of another kind before {self.own.name}: {error}"
            ) from error

    def _deadline(self) -> float:
        return trio.current_time() + self._settings.call_timeout


def _only(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if len(tensors) != 1:
        raise SchemaError("a layer of a network takes one tensor and gives one")
    return tensors[0]
