"""The node: everything put together, opened in order and closed in reverse.

```
lock, identity -> host, listen -> identify, ping -> DHT -> bootstrap -> experts -> control socket
```

Two nurseries hold its tasks. The outer one carries the network, shielded, and outlives the inner
one of the services, so that these can still withdraw and say goodbye, whether the node is stopped,
cancelled or fails. Torch is imported only when the node hosts its first expert.
"""

import dataclasses
import importlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import trio

from p2pnode.config import (
    HostingSettings,
    NodeSettings,
    PlacementSettings,
    RoundsSettings,
    Settings,
)
from p2pnode.daemon.commands import NodeCommands
from p2pnode.daemon.control.service import ControlServer
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.descriptions import Descriptions
from p2pnode.daemon.dht import DhtCommands
from p2pnode.daemon.owner.commands import OwnerCommands
from p2pnode.daemon.owner.service import OwnerService
from p2pnode.daemon.placing import Placing
from p2pnode.daemon.renewing import Renewing
from p2pnode.daemon.runs import RunStore
from p2pnode.daemon.swarms import SwarmService
from p2pnode.errors import ConfigError, NoPeersError
from p2pnode.events import Event, EventBus
from p2pnode.security.tokens import Membership
from p2pnode.swarm.network import Network
from p2pnode.transport.base import Transport
from p2pnode.wire.uids import Uid, expand_all

if TYPE_CHECKING:
    from p2pnode.daemon.hosting import Hosting
    from p2pnode.daemon.metrics.page import MetricsPage
    from p2pnode.daemon.owner.sampling import Sampler


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapFailed(Event):
    """No bootstrap address answers; the node has joined by peers that it met before."""

    level = "warning"

    reason: str


class Node:
    """One volunteer's daemon.

    `await nursery.start(node.run)` returns when the node is ready to serve. It ends after
    `request_stop`, or when it is cancelled; both withdraw and save its experts, and a stop also
    lets the calls under way finish. To give up a start, cancel it.

    Attributes:
        settings: those it was made with.
        events: what happens in it, for its log.
        owner: whether the machine's owner lets it run.
    """

    def __init__(
        self,
        data_dir: DataDir,
        settings: Settings,
        *,
        transports: Sequence[Transport] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.events = EventBus()
        self._data_dir = data_dir
        self._runs = RunStore(data_dir)
        self._rng = rng or random.Random()
        self._transports = transports
        self._stop = trio.Event()
        self._started_at = 0.0
        self._network: Network | None = None
        self._descriptions: Descriptions | None = None
        self._placing: Placing | None = None
        self._hosting: Hosting | None = None
        self._hosting_lock = trio.Lock()
        self._swarms: SwarmService | None = None
        self._metrics: MetricsPage | None = None
        self.owner = OwnerService(
            settings.owner, self.events, lambda: self._hosting, sampler=_sampler(settings)
        )

    @property
    def network(self) -> Network:
        """The node's network side; only while the node runs."""
        assert self._network is not None, "the node is not running"
        return self._network

    @property
    def swarms(self) -> SwarmService:
        """The swarms of the layers hosted here; only while the node runs."""
        assert self._swarms is not None, "the node is not running"
        return self._swarms

    @property
    def hosting(self) -> "Hosting | None":
        """What is hosted here; None before anything is."""
        return self._hosting

    @property
    def placing(self) -> Placing:
        """What chooses where it helps most; only while the node runs."""
        assert self._placing is not None, "the node is not running"
        return self._placing

    @property
    def metrics_address(self) -> str | None:
        """Where Prometheus finds its page, if there is one."""
        return self._metrics.address if self._metrics else None

    @property
    def uptime(self) -> float:
        """Seconds since the node was ready to serve."""
        return trio.current_time() - self._started_at

    def request_stop(self) -> None:
        """Ask the node to withdraw its experts, finish running calls, save, and end."""
        self._stop.set()

    async def wait_stop(self) -> None:
        """Wait until somebody asks the node to end."""
        await self._stop.wait()

    async def drain(self) -> None:
        """Take on nothing more, withdraw what is hosted, and let running calls finish."""
        self.placing.stop()
        if self._hosting is not None:
            await self._hosting.drain(self.settings.node.shutdown_grace)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the node until it is stopped.

        Raises:
            DataDirInUseError: another daemon runs on the data directory.
            KeyFileError: the identity or a membership cannot be read.
            AddressInUseError: a listen address is taken.
            InvalidAddressError: an address cannot be read.
            NoPeersError: none of the bootstrap addresses answers.
            LocalError: the data directory cannot be written.
            InvalidUidError, InvalidTokenError, CheckpointError: an expert cannot be hosted.
        """
        with self._data_dir.lock():
            node = self.settings.node
            membership = self._accept_invite(node)
            self._runs.all()  # a corrupt one is said now, not by the command that meets it first
            run = membership.name if membership else node.run
            by_need = self.settings.placement.auto
            wanted = [] if by_need else self._wanted(node, run, self.settings.hosting)
            if wanted or by_need:
                await _load_hosting()  # before anything listens: importing torch takes seconds
            self._network = Network(
                self._data_dir.load_or_create_identity(),
                self.settings,
                transports=self._transports,
                rng=self._rng,
                events=self.events,
                peers_file=self._data_dir.peers_file,
                table_file=self._data_dir.table_file,
                reputation_file=self._data_dir.reputation_file,
            )
            async with trio.open_nursery() as nursery:
                carrying: trio.CancelScope = await nursery.start(_carry, self._network)
                try:
                    await self._network.listen(node.listen)
                    await self._join(node.bootstrap)
                    await self._serve(wanted, run, task_status)
                finally:
                    with trio.CancelScope(shield=True):  # bounded by dht.leave_timeout
                        await self._network.leave()
                    carrying.cancel()

    async def _join(self, bootstrap: Sequence[str]) -> None:
        """Join by the addresses given; where all are dead, peers met before may do."""
        try:
            await self.network.join(bootstrap)
        except NoPeersError as error:
            if not await self.network.rejoin():
                raise
            self.events.emit(BootstrapFailed(reason=str(error)))

    async def _serve(
        self,
        wanted: Sequence[tuple[Sequence[Uid], HostingSettings]],
        run: str,
        task_status: trio.TaskStatus[None],
    ) -> None:
        async with trio.open_nursery() as services:
            self._services = services
            self._descriptions = Descriptions(self._runs, self.network.dht)
            self._placing = Placing(self.network, self._descriptions, self._rng)
            await services.start(self._descriptions.run)
            await services.start(self._placing.run)
            renewing = Renewing(
                self._descriptions,
                self._placing,
                hosting=lambda: self._hosting,
                period=self.settings.placement.renewal_period,
                events=self.events,
            )
            await services.start(renewing.run)
            self._swarms = SwarmService(
                self.network,
                self.settings,
                membership_of=self.membership_of,
                hosting=lambda: self._hosting,
                rng=self._rng,
            )
            if self.settings.gossip.enabled:
                await services.start(self._swarms.swarms.run)
            await services.start(self.owner.run)
            if self.settings.metrics.listen:
                self._metrics = _metrics(self.settings, self.network, self.owner)
                await services.start(self._metrics.run)
            for uids, hosting in wanted:
                await self.host_experts(uids, hosting)
            if self.settings.placement.auto:
                node = dataclasses.replace(self.settings.node, run=run)
                await self.host_by_need(node, self.settings.hosting, self.settings.placement)
            control = ControlServer(
                self._data_dir.control_socket,
                {
                    **NodeCommands(self, self._data_dir, self._rng).methods(),
                    **self._descriptions.methods(),
                    **OwnerCommands(self.owner).methods(),
                    **DhtCommands(self.network).methods(),
                    **self._swarms.methods(),
                },
                request_limit=self.settings.node.control_request_limit,
            )
            await services.start(control.run)
            if not self.settings.node.bootstrap:
                services.start_soon(self.network.rejoin)
            self._started_at = trio.current_time()
            task_status.started()
            await self._stop.wait()
            await self.drain()
            services.cancel_scope.cancel()

    # --- runs and experts -----------------------------------------------------------------------

    def _accept_invite(self, node: NodeSettings) -> Membership | None:
        if not node.invite:
            return None
        membership = self._runs.accept(node.invite)
        if node.run and node.run != membership.name:
            raise ConfigError(f"the invite is for the run {membership.name}, not {node.run}")
        return membership

    def _expand(self, patterns: Sequence[str], run: str | None) -> list[Uid]:
        return expand_all(patterns, run or None, limit=self.settings.hosting.max_experts)

    def _wanted(
        self, node: NodeSettings, run: str | None, hosting: HostingSettings
    ) -> list[tuple[Sequence[Uid], HostingSettings]]:
        """Return what is to be hosted, experts and blocks of a model, and how each is built."""
        experts, layers = self._expand(node.experts, run), self._expand(node.layers, run)
        if layers and not hosting.model:
            raise ConfigError("say of which model the layers are, as in --model tiny")
        both = ((experts, dataclasses.replace(hosting, model="")), (layers, hosting))
        return [(uids, settings) for uids, settings in both if uids]

    def membership_of(self, run: str) -> Membership:
        """Return this node's membership of a run; a run without one is open."""
        return self._runs.get_or_open(run)

    async def agreed_rounds(self, run: str) -> RoundsSettings:
        """Return how the swarms of a run train: as its owner has said, or as this node's settings.

        Raises:
            ConfigError: what the owner has said does not fit here.
        """
        assert self._descriptions is not None, "the node is not running"
        return await self._descriptions.agreed_rounds(self.membership_of(run), self.settings.rounds)

    async def host_experts(self, uids: Sequence[Uid], settings: HostingSettings) -> list[Uid]:
        """Host more experts, restored from their checkpoints where there are any.

        Returns:
            Those that were not hosted before.

        Raises:
            PermissionDeniedError: our invite to a run does not allow hosting.
            CheckpointError: an expert has checkpoints, and none can be read.
            ConfigError: the layer or another setting does not fit.
        """
        assert self._descriptions is not None, "it is made before anything is hosted"
        hosting = await self._open_hosting()
        by_run: dict[str, list[Uid]] = {}
        for uid in uids:
            by_run.setdefault(uid.run, []).append(uid)
        added = []
        for run, members in by_run.items():
            membership = self.membership_of(run)
            description = await self._descriptions.find(membership)
            added += await hosting.add(membership, members, settings, description)
        self.swarms.swarms.survey()
        return added

    async def host_by_need(
        self, node: NodeSettings, settings: HostingSettings, placement: PlacementSettings
    ) -> None:
        """Host what a run needs most, and go on choosing.

        Raises:
            ConfigError: the run is not named, or nobody says what it consists of, or nothing fits.
            P2PNodeError: as `host_experts`.
        """
        experts, layers = self._expand(node.experts, node.run), self._expand(node.layers, node.run)
        runs = {uid.run for uid in (*experts, *layers)} | ({node.run} if node.run else set())
        if len(runs) != 1:
            raise ConfigError("say in which run to choose what to host, as in --run lm --auto")
        await self.placing.begin(
            await self._open_hosting(),
            self.membership_of(runs.pop()),
            experts=experts,
            layers=layers,
            settings=settings,
            placement=placement,
        )

    async def _open_hosting(self) -> "Hosting":
        async with self._hosting_lock:
            if self._hosting is None:
                await _load_hosting()
                from p2pnode.daemon.hosting import Hosting  # noqa: PLC0415  # imports torch

                hosting = Hosting(
                    self.network,
                    self._data_dir.experts,
                    self._data_dir.weights,
                    self.settings,
                    self._rng,
                )
                await self._services.start(hosting.run)
                self._hosting = hosting
                self.owner.begin(hosting)
                if self._metrics is not None:
                    self._metrics.begin_hosting(hosting.describe)
            return self._hosting

    async def take_on(
        self, node: NodeSettings, hosting: HostingSettings, placement: PlacementSettings
    ) -> None:
        """Host more while the node runs: what `node` names, or what its run needs most.

        Raises:
            InvalidTokenError, ConfigError: the invite cannot be read, or is for another run.
            NoPeersError: none of the bootstrap addresses answers.
            P2PNodeError: as `host_experts` and `host_by_need`.
        """
        membership = self._accept_invite(node)
        run = membership.name if membership else node.run or self.settings.node.run
        wanted = [] if placement.auto else self._wanted(node, run, hosting)
        await self.network.join(node.bootstrap)
        for uids, each in wanted:
            await self.host_experts(uids, each)
        if placement.auto:
            await self.host_by_need(dataclasses.replace(node, run=run), hosting, placement)

    def hosted(self) -> list[dict[str, Any]]:
        """Describe each hosted expert."""
        return self._hosting.describe() if self._hosting else []

    def memberships(self) -> list[Membership]:
        """Return each run that this node is a member of, or hosts experts of."""
        hosted = self._hosting.memberships() if self._hosting else []
        return list({each.run_id: each for each in (*self._runs.all(), *hosted)}.values())

    def open_runs(self) -> list[str]:
        """The names of the open runs in which this node hosts."""
        return [each.name for each in self.memberships() if each.is_open]


async def _carry(network: Network, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Run the network until the scope it starts with is cancelled, and not before."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            scope.shield = True
            task_status.started(scope)


async def _load_hosting() -> None:
    """Import torch without stalling the event loop."""
    await trio.to_thread.run_sync(importlib.import_module, "p2pnode.daemon.hosting")


def _sampler(settings: Settings) -> "Sampler | None":
    """Return what looks at other programs' use of the device, if anything is to."""
    if not settings.owner.yield_to_others:
        return None
    # What reads the system need not be loaded by nodes that give way to nobody.
    from p2pnode.daemon.owner.sampling import CpuSampler, GpuSampler  # noqa: PLC0415

    return GpuSampler() if "cuda" in settings.hosting.device else CpuSampler()


def _metrics(settings: Settings, network: Network, owner: OwnerService) -> "MetricsPage":
    # Prometheus's client takes a tenth of a second to import, which others need not wait for.
    from p2pnode.daemon.metrics.page import MetricsPage  # noqa: PLC0415

    return MetricsPage(settings.metrics, network, lambda: owner.decision)
