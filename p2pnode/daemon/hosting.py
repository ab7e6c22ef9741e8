"""Hosting within a daemon: experts, the tensor server, and their announcement in the DHT.

This is where a node imports torch. People name runs; everything below knows them by id, and the
names are put back in what is shown.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import trio

from p2pnode.clock import wall_time
from p2pnode.config import HostingSettings, Settings
from p2pnode.daemon.kinds import Kinds, allowed_on, by_block, find_room
from p2pnode.daemon.owner.limits import DeviceLimits
from p2pnode.errors import (
    CallError,
    InvalidUidError,
    P2PNodeError,
    PermissionDeniedError,
    TokenExpiredError,
    UnknownExpertError,
)
from p2pnode.experts.events import BatchComputed, ExpertRestarted, ExpertStopped
from p2pnode.experts.hosted import ExpertStatus
from p2pnode.experts.service import ExpertHost
from p2pnode.experts.sessions.service import SessionServer
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import CallServed, TensorServer
from p2pnode.rpc.tensors import dtype_of
from p2pnode.security.tokens import Membership
from p2pnode.swarm.announce import Announcer, Proof
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.swarm.description import RunDescription, agreed
from p2pnode.swarm.network import Network
from p2pnode.swarm.placement.meter import Meter
from p2pnode.swarm.splitting.service import SplitServer
from p2pnode.swarm.splitting.weights import TransferredWeights
from p2pnode.swarm.weights.exchange import WeightsExchange
from p2pnode.swarm.weights.gate import Gate
from p2pnode.swarm.weights.replication import Replication
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

MEASURED_ROWS: Final = 256
MEASURING_TIMEOUT: Final = 30.0


class Hosting:
    """The experts of one daemon, served and announced while `run` runs.

    Attributes:
        kinds: what units are like that are not hosted.
        reducer: adds up and averages tensors with other members of the runs.
    """

    def __init__(
        self,
        network: Network,
        checkpoints: Path,
        states: Path,
        settings: Settings,
        rng: random.Random,
    ) -> None:
        self.kinds = Kinds()
        self._settings = settings
        self._memberships: dict[str, Membership] = {}  # by run id
        self._calls: Counter[str] = Counter()
        self._is_aside = False
        self._adding = trio.Lock()
        # By block: one of its experts, its weights, and how many there are; and how many will be.
        self._hosted_kinds: list[tuple[Uid, int, int]] = []
        self._loading_kinds: list[tuple[Uid, int, int]] = []
        self._own: dict[Uid, HostingSettings] = {}  # this node's, before the run's owner chose
        self._meter = Meter()
        events = network.host.events
        events.on(BatchComputed, self._meter.receive)
        self._limits = DeviceLimits(settings.owner, settings.hosting)
        self._experts = ExpertHost(
            self._limits.hosting,
            checkpoints,
            events,
            rpc=settings.rpc,
            compute=self._limits.compute(),
        )
        authority = Authority(self._memberships, settings.rpc.token_cache_size)
        self._gate = Gate(self._experts)
        self._server = TensorServer(network.host, settings.rpc, self._gate, authority)
        self._sessions = SessionServer(
            network.host,
            settings.sessions,
            rpc=settings.rpc,
            handler=self._gate,
            experts=self._experts,
            authority=authority,
            tensors=self._server.budget,
            transcoder=self._server.transcoder,
        )
        self._announcer = Announcer(
            network.host,
            network.dht,
            network.key,
            settings.hosting,
            proof_of=self._proof_of,
            load=self._load,
            throughput=lambda: self.throughput,
            rng=rng,
        )
        access = Access(network.host, self._memberships)
        self._replication = Replication(
            network.host,
            directory=network.directory,
            announcer=self._announcer,
            experts=self._experts,
            gate=self._gate,
            authority=authority,
            budget=self._server.budget,
            access=access,
            states=states,
            settings=settings,
            rng=rng,
        )
        self.reducer = AllReduce(
            network.host,
            access,
            authority,
            settings.averaging,
            budget=self._server.budget,
            transcoder=self._server.transcoder,
        )
        self._splitting = SplitServer(
            network.host,
            settings.splitting,
            rpc=settings.rpc,
            handler=self._gate,
            experts=self._experts,
            authority=authority,
            access=access,
            tensors=self._server,
            reducer=self.reducer,
            weights=TransferredWeights(self._replication.local),
            rng=rng,
        )
        events.on(CallServed, self._count)
        events.on(ExpertStopped, lambda event: self._announcer.remove([event.uid]))
        events.on(ExpertRestarted, self._announce_again)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and announce until cancelled; ends with the experts withdrawn and saved.

        Raises:
            CheckpointError: experts could not be saved at the end.
        """
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._experts.run)
                await nursery.start(self._announcer.run)
                await nursery.start(self._replication.run)
                await nursery.start(self._splitting.run)
                task_status.started()
        finally:
            self._server.close()
            self._splitting.close()
            self.reducer.close()
            self._sessions.close()
            with trio.CancelScope(shield=True):
                await self.save()

    async def add(
        self,
        membership: Membership,
        uids: Sequence[Uid],
        settings: HostingSettings,
        description: RunDescription | None = None,
    ) -> list[Uid]:
        """Host more experts of one run; returns those that were not hosted before.

        Args:
            membership: of the run.
            uids: the experts.
            settings: this node's own.
            description: what the run's owner has chosen for all, which counts more.

        Raises:
            PermissionDeniedError, TokenExpiredError: we may not host in this run.
            InvalidUidError: they cannot be announced, being too many and too scattered.
            MemoryLimitError: the machine's owner allows no memory for all of them.
            ConfigError, CheckpointError: as `ExpertHost.add`.
        """
        self._check_may_host(membership)
        self._memberships[membership.run_id] = membership
        by_id = [uid.in_run(membership.run_id) for uid in uids]
        self._announcer.check(by_id)
        # All are settled before any is added: what the owner says of one may not fit here.
        settled = [
            (members, agreed(settings, description, block))
            for block, members in by_block(by_id).items()
        ]
        added = []
        for members, each in settled:
            added += await self._add(members, each, settings)
        return [status.uid.in_run(membership.name) for status in added]

    async def _add(
        self, by_id: Sequence[Uid], settings: HostingSettings, own: HostingSettings
    ) -> list[ExpertStatus]:
        """Host more experts that are built alike."""
        async with self._adding:  # so that what one has been promised is not promised again
            hosted = set(self._experts.uids)
            await self._limits.admit(by_id, settings, hosted)
            fresh = [uid for uid in by_id if uid not in hosted]
            self._gate.close(fresh)  # until others have been asked what they know of them
            try:
                added = await self._experts.add(by_id, settings)
            except BaseException:  # cancelled as well: what is not hosted must not stay shut
                self._gate.open(fresh)
                raise
        self._own |= dict.fromkeys(fresh, own)
        self._count_kinds()
        if settings.standby:
            for status in added:
                self._replication.stand_by(status.uid, has_state=status.restored)
        elif not self._is_aside:  # else they are served when the node comes back
            await self._replication.serve([status.uid for status in added])
        if self._is_aside:
            await self._experts.free_device(self._settings.owner.finish_timeout)
        return added

    async def retune(self, uid: Uid, settings: HostingSettings) -> None:
        """Let an expert learn with other options from the next batch on.

        Raises:
            MemoryLimitError: the machine's owner allows no memory for what they need.
            UnknownExpertError, ConfigError, ExpertFailedError: as `ExpertHost.retune`.
        """
        async with self._adding:
            size = self._experts.size_with(uid, settings)
            with self._limits.resized(uid, size, set(self._experts.uids)):
                await self._experts.retune(uid, settings)

    async def exchange(
        self,
        membership: Membership,
        settings: HostingSettings,
        description: RunDescription | None,
        *,
        add: Sequence[Uid],
        remove: Sequence[Uid],
    ) -> None:
        """Host some experts in place of others, runs named by id; the rest goes on meanwhile.

        Raises:
            P2PNodeError: as `add`, or an expert that is to go could not be saved.
        """
        self._check_may_host(membership)
        self._memberships[membership.run_id] = membership
        kinds = await self.kinds.find(add, settings, description)
        self._loading_kinds = [
            (members[0], kinds[block].weights, len(members))
            for block, members in by_block(add).items()
        ]
        self._announcer.set_loading(add)
        try:
            if remove:  # first, since there may be no room for both
                await self._remove(remove)
            await self.add(membership, add, settings, description)
        finally:
            self._loading_kinds = []
            self._announcer.set_loading(())

    async def _remove(self, uids: Sequence[Uid]) -> None:
        await self._replication.leave(uids)
        self._announcer.remove(uids)
        self._sessions.end(uids)
        try:
            await self._experts.remove(uids)
        except P2PNodeError:  # they stay: so they are served on
            await self._replication.serve(uids)
            raise
        await self._replication.forget(uids)
        for uid in uids:
            self._own.pop(uid, None)
        self._count_kinds()

    def _count_kinds(self) -> None:
        by_run: dict[str, list[Uid]] = {}
        for uid in self._experts.uids:
            by_run.setdefault(uid.run, []).append(uid)
        self._hosted_kinds = [
            (members[0], self._experts.weights(members[0]), len(members))
            for uids in by_run.values()
            for members in by_block(uids).values()
        ]

    def _check_may_host(self, membership: Membership) -> None:
        if "host" not in membership.scopes:
            raise PermissionDeniedError(
                f"your invite to the run {membership.name} does not allow hosting; ask its owner "
                "for one with the scope host"
            )
        if membership.expires_at <= wall_time():
            raise TokenExpiredError(
                f"your invite to the run {membership.name} has expired; ask its owner for a new one"
            )

    # --- what this node can do: for who decides where it is needed ------------------------------

    @property
    def uids(self) -> list[Uid]:
        """What is hosted, replicas that stand by aside."""
        return [uid for uid in self._experts.uids if not self._replication.stands_by(uid)]

    @property
    def throughput(self) -> float:
        """Rows a second through each expert when all are in use; 0 before it was measured.

        The line carries no more than its owner allows, however fast the device is.
        """
        limits = self._settings.limits
        taken = sum(
            count * self._meter.seconds(uid, weights)
            for uid, weights, count in (*self._hosted_kinds, *self._loading_kinds)
        )
        speed = 1 / taken if taken else 0.0
        return min(speed, self._meter.carried(limits.max_download, limits.max_upload))

    def cost(self, uid: Uid, weights: int) -> float:
        """Return the seconds of a row through an expert; its weights before any was measured."""
        return self._meter.seconds(uid, weights) or float(weights)

    def own_settings(self, uid: Uid) -> HostingSettings:
        """Return the settings of this node with which an expert was added.

        Raises:
            UnknownExpertError: it is not hosted.
        """
        if uid not in self._own:
            raise UnknownExpertError(f"{uid.name} is not hosted here")
        return self._own[uid]

    @property
    def experts(self) -> ExpertHost:
        """What computes and keeps them; their uids have their run's id."""
        return self._experts

    @property
    def weights(self) -> WeightsExchange:
        """What the rounds of a swarm do with the weights of the experts here."""
        return self._replication.exchange

    @property
    def is_aside(self) -> bool:
        """Whether nothing is served, as the machine's owner wants it."""
        return self._is_aside

    async def kept(self, uids: Sequence[Uid]) -> list[Uid]:
        """Return those of `uids`, named by id, whose states are on this disk.

        Raises:
            CheckpointError: they cannot be looked for.
        """
        return await self._experts.kept(uids)

    async def room(self, settings: HostingSettings, sizes: Sequence[int], most: int) -> int:
        """Return the bytes that experts may take here.

        Args:
            settings: how they are built.
            sizes: the bytes of each that could be hosted.
            most: how many the owner wants, for whom only the limit counts then, and not what is
                free; 0 where the owner does not say.
        """
        owner = self._settings.owner
        if most:
            names = settings.device.split(",")
            return allowed_on(names[0], owner) * len(names) or sum(sizes)
        return await find_room(owner, settings.device, max(sizes))

    async def measure(self, own: PeerId) -> None:
        """See how fast the device is, with zeros, so that others know before calls come."""
        for uid, _, _ in list(self._hosted_kinds):
            await self._measure(uid, own)

    async def _measure(self, uid: Uid, own: PeerId) -> None:
        rows = 1
        while rows <= MEASURED_ROWS and uid in self.uids and not self._is_aside:
            info = self._experts.info(uid)
            free = {at: 1 for spec in info.inputs for at in spec.free}
            metas = [spec.with_rows(min(rows, info.max_rows), free) for spec in info.inputs]
            inputs = [torch.zeros(meta.shape, dtype=dtype_of(meta.dtype)) for meta in metas]
            began = trio.current_time()
            try:
                await self._experts.forward(
                    uid, inputs, caller=own, deadline=began + MEASURING_TIMEOUT
                )
            except CallError:  # it has left, or the device is busy: then calls will tell
                return
            rows *= 4

    # --- the owner comes first: see `p2pnode.daemon.owner.service.Standby` -----------------------

    def stand_aside(self) -> None:
        """Withdraw the experts, and refuse new calls from now on."""
        self._is_aside = True
        self._experts.pause()
        self._sessions.end_all()
        self._announcer.suspend()

    async def free_device(self) -> None:
        """Hand experts over and let calls end, for a bounded time each, and free the device."""
        with trio.move_on_after(self._settings.owner.finish_timeout):
            await self._replication.leave(self.uids)
        await self._experts.free_device(self._settings.owner.finish_timeout)

    async def come_back(self) -> bool:
        """Take calls again, and announce the experts; False while the device has no room."""
        if self._is_aside:
            try:
                await self._experts.resume()
            except torch.OutOfMemoryError:
                return False
            served = self.uids
            self._gate.close(served)  # until others have been asked what they learnt meanwhile
            self._announcer.remove(served)
            self._announcer.go_on()
            await self._replication.serve(served)
            self._is_aside = False
        return True

    # --- the end --------------------------------------------------------------------------------

    async def drain(self, grace: float) -> None:
        """Hand the experts over, or withdraw them, and end the calls under way.

        All of it has `grace` seconds.
        """
        until = trio.current_time() + grace
        with trio.move_on_at(until):
            await self._replication.leave(sorted(self._announcer.uids))
        self._announcer.remove(self._announcer.uids)
        self._server.close()
        self._splitting.close()
        self._sessions.close()
        with trio.move_on_at(until):
            await self._experts.drain()

    async def save(self) -> None:
        """Save the experts now.

        Raises:
            CheckpointError: some could not be saved; all were tried.
        """
        await self._experts.save_all()

    def memberships(self) -> list[Membership]:
        """The runs in which something is hosted."""
        return list(self._memberships.values())

    def calls(self) -> dict[str, int]:
        """Count the calls served so far, by operation, and the failed ones."""
        return dict(self._calls)

    def describe(self) -> list[dict[str, Any]]:
        """Describe the experts, their runs by name."""
        return [
            {
                "uid": str(status.uid.in_run(self._memberships[status.uid.run].name)),
                "layer": status.layer,
                "steps": status.steps,
                "rows": status.rows,
                "queued": status.queued,
                "restored": status.restored,
                "saved_at": status.saved_at,
                "device": status.device,
                "state": self._state_of(status),
                "stopped": status.stopped or None,
                "standby": self._replication.stands_by(status.uid),
            }
            for status in self._experts.status()
        ]

    def _state_of(self, status: ExpertStatus) -> str:
        if status.stopped:
            return "stopped"
        if self._is_aside:
            return "paused"
        return "standby" if self._replication.stands_by(status.uid) else "serving"

    def _announce_again(self, event: ExpertRestarted) -> None:
        if event.uid in self.uids and self._gate.is_open(event.uid):
            # Others may have taken its place among the records; then it is served unannounced.
            with contextlib.suppress(InvalidUidError):
                self._announcer.add([event.uid])

    def _count(self, event: CallServed) -> None:
        self._calls["failed" if event.error else event.operation] += 1

    def _proof_of(self, run_id: str) -> Proof:
        membership = self._memberships[run_id]
        if membership.token is None:
            return Proof()
        return Proof(membership.token, membership.expires_at)

    def _load(self) -> int:
        return self._experts.queued
