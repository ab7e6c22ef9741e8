"""Runs in which this node chooses by itself what it hosts: `p2pnode host --run lm --auto`.

What there is to host says the run's owner, in the run's description; in a run without one, whoever
starts the node says it, by flags.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from p2pnode.config import HostingSettings, PlacementSettings
from p2pnode.daemon.descriptions import Descriptions
from p2pnode.errors import ConfigError
from p2pnode.security.tokens import Membership
from p2pnode.swarm.description import Kind, RunDescription, agreed
from p2pnode.swarm.network import Network
from p2pnode.swarm.placement.service import PlacedHost, Placement
from p2pnode.wire.uids import Uid

if TYPE_CHECKING:
    from p2pnode.daemon.hosting import Hosting


class _HostedRun(PlacedHost):
    """What a daemon hosts of one run."""

    def __init__(
        self,
        hosting: "Hosting",
        membership: Membership,
        settings: HostingSettings,
        description: RunDescription | None,
    ) -> None:
        self._hosting = hosting
        self._membership = membership
        self._settings = replace(settings, standby=False)  # it is needed where it goes
        self._description = description
        self._weights: dict[str, int] = {}  # of one unit, by block

    def describe_anew(self, description: RunDescription) -> None:
        """Build what is added as the run's owner says now.

        Raises:
            ConfigError: that does not fit here; then it is built as before.
        """
        agreed(self._settings, description)
        self._description = description

    async def sizes(self, units: Sequence[Uid]) -> Sequence[int]:
        kinds = await self._hosting.kinds.find(units, self._settings, self._description)
        self._weights = {uid.block: kinds[uid.block].weights for uid in units}
        return [kinds[uid.block].size for uid in units]

    async def room(self, units: Sequence[Uid], most: int) -> int:
        """Return the room for such units, of which `most` are wanted at once, or 0 for any number.

        Raises:
            ConfigError: one of them cannot be built.
        """
        return await self._hosting.room(self._settings, await self.sizes(units), most)

    def costs(self, units: Sequence[Uid]) -> Sequence[float]:
        return [self._hosting.cost(uid, self._weights[uid.block]) for uid in units]

    @property
    def uids(self) -> Sequence[Uid]:
        return [uid for uid in self._hosting.uids if uid.run == self._membership.run_id]

    @property
    def throughput(self) -> float:
        return self._hosting.throughput

    async def kept(self, units: Sequence[Uid]) -> list[Uid]:
        return await self._hosting.kept(units)

    @property
    def is_movable(self) -> bool:
        return not self._hosting.is_aside

    async def place(self, add: Sequence[Uid], remove: Sequence[Uid]) -> None:
        await self._hosting.exchange(
            self._membership, self._settings, self._description, add=add, remove=remove
        )


class Placing:
    """Keeps this node where its runs need it, while `run` runs.

    Args:
        network: the index, and who this node is.
        descriptions: what the runs' owners say there is.
        rng: the source of chance.
    """

    def __init__(self, network: Network, descriptions: Descriptions, rng: random.Random) -> None:
        self._network = network
        self._descriptions = descriptions
        self._rng = rng
        self._placements: dict[str, Placement] = {}  # by the run's name
        self._hosted: dict[str, _HostedRun] = {}  # of those whose units their owner says
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Choose in the runs that `begin` names, until cancelled or `stop`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(trio.sleep_forever)
            task_status.started()

    async def begin(
        self,
        hosting: "Hosting",
        membership: Membership,
        *,
        experts: Sequence[Uid],
        layers: Sequence[Uid],
        settings: HostingSettings,
        placement: PlacementSettings,
    ) -> None:
        """Choose what to host of a run, host it, and go on choosing.

        Args:
            hosting: serves what is chosen.
            membership: of the run.
            experts: all there are, where the owner does not say it.
            layers: the same of a pipeline.
            settings: how they are built.
            placement: when to look, how many to host, and what a move is worth.

        Raises:
            ConfigError: this node chooses in this run already, or nobody says what there is, or not
                even one unit fits here.
            P2PNodeError: what was chosen cannot be hosted.
        """
        if membership.name in self._placements:
            raise ConfigError(
                f"this node chooses already what it hosts of {membership.name}; stop it with"
                " `p2pnode stop` to start it with other settings"
            )
        description = await self._descriptions.find(membership)
        kind, members = units_of(membership, description, experts=experts, layers=layers)
        by_id = [uid.in_run(membership.run_id) for uid in members]
        host = _HostedRun(hosting, membership, settings, description)
        placed = Placement(
            self._network.directory,
            self._network.peer_id,
            by_id,
            is_pipeline=kind is Kind.LAYERS,
            room=await host.room(by_id, placement.max_layers),
            settings=placement,
            host=host,
            events=self._network.host.events,
            rng=self._rng,
        )

        assert self._nursery is not None, "it runs as long as the node's services"
        self._placements[membership.name] = placed
        if not experts and not layers:
            self._hosted[membership.name] = host
        try:
            await self._nursery.start(placed.run)
        except BaseException:  # whatever kept it from starting, it may be asked for again
            del self._placements[membership.name]
            self._hosted.pop(membership.name, None)
            raise
        self._nursery.start_soon(hosting.measure, self._network.peer_id)

    def renew(self, membership: Membership, description: RunDescription) -> bool:
        """Choose among what a run's owner says anew, from the next look on.

        Returns:
            Whether there are other units now. There are never, where flags have named them.

        Raises:
            ConfigError: the units are of another kind now, or their settings do not fit here.
        """
        host = self._hosted.get(membership.name)
        if host is None:
            return False
        kind, members = units_of(membership, description, experts=(), layers=())
        host.describe_anew(description)
        return self._placements[membership.name].renew(
            [uid.in_run(membership.run_id) for uid in members], is_pipeline=kind is Kind.LAYERS
        )

    def stop(self) -> None:
        """Choose no more; what is hosted stays."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def describe(self) -> list[dict[str, Any]]:
        """Tell for each run what is hosted and why, ready for JSON."""
        return [{"run": name, **each.describe()} for name, each in self._placements.items()]


def units_of(
    membership: Membership,
    description: RunDescription | None,
    *,
    experts: Sequence[Uid],
    layers: Sequence[Uid],
) -> tuple[Kind, Sequence[Uid]]:
    """Return what there is to host of a run: what the flags say, or else its owner.

    Raises:
        ConfigError: nobody says anything, or both kinds were named.
    """
    if experts and layers:
        raise ConfigError("with --auto, name the run's --experts or its --layers, and not both")
    if experts or layers:
        return (Kind.EXPERTS, experts) if experts else (Kind.LAYERS, layers)
    if description is not None and description.patterns:
        return description.kind, [uid.in_run(membership.name) for uid in description.units()]
    if membership.is_open:
        raise ConfigError(
            f"the open run {membership.name} has no owner who could say what there is to host;"
            " name all of it, as in --layers 'blocks.[0:12]' --model tiny"
        )
    raise ConfigError(
        f"the owner of the run {membership.name} has not said yet what it consists of; ask for"
        f" `p2pnode run describe {membership.name}`, or name all of it with --layers or --experts"
    )
