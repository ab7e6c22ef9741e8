"""Hosting within a daemon: experts, the tensor server, and their announcement in the DHT.

This is where a node imports torch. People name runs; everything below knows them by id, and the
names are put back in what is shown.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
import trio

from p2pnode.clock import wall_time
from p2pnode.config import HostingSettings, Settings
from p2pnode.daemon.owner.limits import DeviceLimits
from p2pnode.errors import (
    CallError,
    ConfigError,
    InvalidUidError,
    P2PNodeError,
    PermissionDeniedError,
    TokenExpiredError,
)
from p2pnode.experts.backend import build_backend
from p2pnode.experts.devices import free_memory
from p2pnode.experts.events import BatchComputed, ExpertRestarted, ExpertStopped
from p2pnode.experts.service import ExpertHost
from p2pnode.experts.sessions.service import SessionServer
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import CallServed, TensorServer
from p2pnode.rpc.tensors import dtype_of
from p2pnode.security.tokens import Membership
from p2pnode.swarm.announce import Announcer, Proof
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.swarm.network import Network
from p2pnode.swarm.placement.meter import Meter
from p2pnode.swarm.splitting.service import SplitServer
from p2pnode.swarm.splitting.weights import TransferredWeights
from p2pnode.swarm.weights.exchange import WeightsExchange
from p2pnode.swarm.weights.gate import Gate
from p2pnode.swarm.weights.replication import Replication
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

SHARE_OF_MEMORY: Final = 0.5  # of what is free, for experts; the rest is for batches, and others
MEASURED_ROWS: Final = 256
MEASURING_TIMEOUT: Final = 30.0


class Hosting:
    """The experts of one daemon, served and announced while `run` runs.

    Attributes:
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
        self._settings = settings
        self._memberships: dict[str, Membership] = {}  # by run id
        self._calls: Counter[str] = Counter()
        self._is_aside = False
        self._adding = trio.Lock()
        self._loading = 0  # experts that will be hosted soon
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
        self, membership: Membership, uids: Sequence[Uid], settings: HostingSettings
    ) -> list[Uid]:
        """Host more experts of one run; returns those that were not hosted before.

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
        async with self._adding:  # so that what one has been promised is not promised again
            hosted = set(self._experts.uids)
            await self._limits.admit(by_id, settings, hosted)
            fresh = [uid for uid in by_id if uid not in hosted]
            self._gate.close(fresh)  # until others have been asked what they know of them
            try:
                added = await self._experts.add(by_id, settings)
            except BaseException:
                self._gate.open(fresh)
                raise
        if settings.standby:
            for status in added:
                self._replication.stand_by(status.uid, has_state=status.restored)
        elif not self._is_aside:  # else they are served when the node comes back
            await self._replication.serve([status.uid for status in added])
        if self._is_aside:
            await self._experts.free_device(self._settings.owner.finish_timeout)
        return [status.uid.in_run(membership.name) for status in added]

    async def exchange(
        self,
        membership: Membership,
        settings: HostingSettings,
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
        self._loading = len(add)
        self._announcer.set_loading(add)
        try:
            if remove:  # first, since there may be no room for both
                await self._remove(remove)
            await self.add(membership, add, settings)
        finally:
            self._loading = 0
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
        speed = self._meter.speed / max(len(self._experts.uids) + self._loading, 1)
        return min(speed, self._meter.carried(limits.max_download, limits.max_upload))

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

    async def capacity(self, uid: Uid, settings: HostingSettings) -> int:
        """Return how many experts like this one fit into the memory that this node may use.

        Raises:
            ConfigError: not even one, or it cannot be built.
        """
        owner = self._settings.owner

        def count() -> int:
            size = max(1, build_backend(uid, replace(settings, device="cpu")).size)
            found = 0
            for name in dict.fromkeys(each.strip() for each in settings.device.split(",")):
                on_gpu = torch.device(name).type == "cuda"
                room = int(free_memory(name) * SHARE_OF_MEMORY)
                allowed = owner.max_vram if on_gpu else owner.max_memory
                found += (min(room, allowed) if allowed else room) // size
            return found

        found = await trio.to_thread.run_sync(count)
        if not found:
            raise ConfigError(
                f"there is no memory for even one expert such as {uid.name}; free some, or say how"
                " many to host with --max-layers"
            )
        return min(found, self._settings.hosting.max_experts)

    async def measure(self, own: PeerId) -> None:
        """See how fast the device is, with zeros, so that others know before calls come."""
        rows = 1
        while rows <= MEASURED_ROWS and self.uids and not self._is_aside:
            uid = self.uids[0]
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
                "stopped": status.stopped or None,
                "standby": self._replication.stands_by(status.uid),
            }
            for status in self._experts.status()
        ]

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
