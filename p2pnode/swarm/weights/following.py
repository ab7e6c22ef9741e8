"""Replicas that stand by: kept at most one interval behind the hosts they follow, and ready.

A replica is a hosted expert that the gate keeps closed and that is not announced. It asks the hosts
of its expert for newer versions, and goes on from those with more steps; once no host is left, it
is opened and announced. When that is, `Standby` decides.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.config import HostingSettings
from p2pnode.errors import LocalError, P2PNodeError, RemoteError
from p2pnode.events import Event
from p2pnode.swarm.weights.local import LocalExperts
from p2pnode.swarm.weights.messages import Head
from p2pnode.swarm.weights.standby import Standby
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_AT_ONCE: Final = 8  # replicas that are looked after at the same time
# States below this come from one host faster than others could be asked for a part of them.
_SHARED_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTookOver(Event):
    """A replica serves its expert from now on, as its last host has gone."""

    level = "warning"

    uid: Uid
    steps: int
    hosts: tuple[PeerId, ...]  # those that served it last


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFailed(Event):
    """A replica could not be brought up to date; it is tried again."""

    level = "warning"

    uid: Uid
    reason: str


@dataclass(slots=True)
class _Replica:
    standby: Standby
    fetch_at: float = -math.inf  # when it asks for a newer version
    look_at: float = -math.inf  # when somebody looks who serves the expert
    is_busy: bool = False  # somebody is looking
    has_followed: bool = False  # what is here came from the hosts, and nothing is its own
    is_late: bool = False  # it is to be served as soon as it has a state


class Following:
    """The replicas of one node; they are looked after while `run` runs.

    Args:
        local: the node's experts.
        settings: intervals.
    """

    def __init__(self, local: LocalExperts, settings: HostingSettings) -> None:
        self._local = local
        self._settings = settings
        self._replicas: dict[Uid, _Replica] = {}
        self._stand_ins: set[Uid] = set()
        self._limiter = trio.CapacityLimiter(_AT_ONCE)
        self._changed = trio.Event()

    def __contains__(self, uid: Uid) -> bool:
        """Whether an expert is a replica that stands by."""
        return uid in self._replicas

    def hosts(self, uid: Uid) -> Sequence[PeerId]:
        """Return the hosts that a replica follows."""
        found = self._replicas.get(uid)
        return () if found is None else found.standby.hosts

    def stands_in(self, uid: Uid) -> bool:
        """Whether an expert was a replica, and is served now for a host that may come back."""
        return uid in self._stand_ins

    def add(self, uid: Uid, *, has_state: bool, is_late: bool = False) -> None:
        """Let a hosted expert stand by.

        Args:
            uid: the expert.
            has_state: whether it could serve as it is.
            is_late: whether it is to serve beside its hosts as soon as it has a state of theirs.
        """
        self._local.stand_aside([uid])
        self._stand_ins.discard(uid)
        standby = Standby(
            self._local.host.peer_id,
            uid,
            grace=self._settings.standby_grace,
            lifetime=self._local.announcer.lifetime,
            has_state=has_state,
        )
        self._replicas[uid] = _Replica(standby, is_late=is_late)
        self._changed.set()

    async def promote(self, uid: Uid) -> None:
        """Serve an expert from now on; returns when others can find it."""
        if self._replicas.pop(uid, None) is not None:
            self._stand_ins.add(uid)
        await self._local.serve(uid)

    def remove(self, uids: Iterable[Uid]) -> None:
        """Follow some experts no more; what becomes of them is up to the caller."""
        for uid in uids:
            self._replicas.pop(uid, None)
            self._stand_ins.discard(uid)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the replicas until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._changed = trio.Event()
                waiting = [each for each in self._replicas.values() if not each.is_busy]
                now = trio.current_time()
                for replica in waiting:
                    if replica.look_at <= now:
                        replica.is_busy = True
                        nursery.start_soon(self._look_after, replica)
                due = (each.look_at for each in waiting if not each.is_busy)
                with trio.move_on_at(min(due, default=math.inf)):
                    await self._changed.wait()

    async def _look_after(self, replica: _Replica) -> None:
        try:
            async with self._limiter:
                await self._look(replica)
        except RemoteError as error:
            self._tell(replica, error)
        now = trio.current_time()
        replica.look_at = now + min(self._settings.update_period, self._settings.standby_interval)
        if now < replica.standby.take_over_at < replica.look_at:
            replica.look_at = replica.standby.take_over_at
        replica.is_busy = False
        self._changed.set()

    async def _look(self, replica: _Replica) -> None:
        """See who serves the expert, and do what follows from it.

        Raises:
            RemoteError: the expert has just been removed here.
        """
        standby = replica.standby
        hosts = await self._local.hosts(standby.uid)
        if not hosts:
            hosts = await self._reachable(standby)
        if not self._is_current(replica):
            return
        if hosts:
            standby.receive_hosts(hosts)
            if trio.current_time() >= replica.fetch_at:
                await self._update(replica, hosts)
            return
        standby.receive_absence(trio.current_time())
        is_due = trio.current_time() >= standby.take_over_at
        if is_due and not self._local.announcer.is_suspended:  # a paused node serves nobody
            await self._take_over(replica)

    async def _reachable(self, standby: Standby) -> list[PeerId]:
        """Find out which of the hosts of before still serve the expert, though not announced."""
        found = []
        for peer_id in standby.hosts:
            with trio.move_on_after(self._settings.reach_timeout):
                try:
                    await self._ask(standby.uid, peer_id)
                    found.append(peer_id)
                except RemoteError:
                    continue
        return found

    async def _ask(self, uid: Uid, peer_id: PeerId) -> Head:
        return await self._local.client.head(peer_id, uid, follow=self._settings.standby_interval)

    async def _update(self, replica: _Replica, hosts: Sequence[PeerId]) -> None:
        """Go on from the newest state of the hosts, if it is newer than what is here."""
        standby = replica.standby
        replica.fetch_at = trio.current_time() + self._settings.standby_interval
        heads: dict[PeerId, Head] = {}
        failures: list[P2PNodeError] = []
        for peer_id in hosts:
            try:
                heads[peer_id] = await self._ask(standby.uid, peer_id)
            except RemoteError as error:
                failures.append(error)
                continue
            standby.receive_replicas(peer_id, heads[peer_id].followers)
        if not self._is_current(replica):
            return
        try:
            if not heads:
                raise failures[0]
            best = max(heads, key=lambda peer_id: heads[peer_id].steps)
            head = heads[best]
            others = standby.replicas if head.size >= _SHARED_BYTES else ()
            await self._local.adopt(
                standby.uid,
                head.name,
                head.steps,
                [best, *others],
                anyway=not standby.has_state,
                keep_own=not replica.has_followed,
            )
            standby.has_state = replica.has_followed = True
            if replica.is_late and self._is_current(replica):
                del self._replicas[standby.uid]
                await self._local.serve(standby.uid)
        except (RemoteError, LocalError) as error:
            self._tell(replica, error)

    async def _take_over(self, replica: _Replica) -> None:
        standby = replica.standby
        hosts = await self._local.hosts(standby.uid, anew=True)
        if not self._is_current(replica):
            return
        if hosts:  # another replica was first, or a host is back
            standby.receive_hosts(hosts)
            return
        self._local.host.events.emit(
            ReplicaTookOver(
                uid=standby.uid,
                steps=self._local.experts.steps(standby.uid),
                hosts=standby.hosts,
            )
        )
        await self.promote(standby.uid)

    def _tell(self, replica: _Replica, error: P2PNodeError) -> None:
        self._local.host.events.emit(ReplicaFailed(uid=replica.standby.uid, reason=str(error)))

    def _is_current(self, replica: _Replica) -> bool:
        return self._replicas.get(replica.standby.uid) is replica
