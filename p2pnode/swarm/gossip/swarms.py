"""The swarms of all layers that a node hosts, or looks at.

A topic is joined only where there is somebody to talk to: of a layer whose swarm is in use here, or
which the index says others host, too. So a node with hundreds of experts that nobody shares joins
nothing. One that has joined says nothing either, until what it hosts is trained in a mode that
announces; then it says what has changed at once, and renews it slowly.

Connections to members are kept, since messages travel only between those who are connected: to so
many of each swarm as gossipsub needs, and to a bounded number of peers in all. When such a
connection ends, the member is dialled at once; if that fails it is gone, and nobody need wait for
what it would have said.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

import trio

from p2pnode.config.gossip import GossipSettings
from p2pnode.errors import P2PNodeError
from p2pnode.host import ConnectionEnded, ConnectionOpened, Host
from p2pnode.protocols.pubsub import PubSub, Subscription
from p2pnode.rpc.authority import Authority
from p2pnode.swarm.announce import Proof
from p2pnode.swarm.gossip.announcement import topic_of
from p2pnode.swarm.gossip.reputation import OffenceSeen, PeerBlacklisted, Reputation
from p2pnode.swarm.gossip.service import LayerSwarm
from p2pnode.swarm.lookup import ExpertDirectory, HostEntry
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_LOOKS_AT_ONCE: Final = 8
_DIALS_AT_ONCE: Final = 8
_REPLY_SPREAD: Final = 2.0  # seconds, over which members repeat themselves to a newcomer
_JITTER: Final = 0.2  # of an interval, by which it may be shorter; nodes drift apart


@dataclass(slots=True, eq=False)
class _Seat:
    """This node's place in one swarm; times are on trio's clock."""

    swarm: LayerSwarm
    subscription: Subscription
    is_used: bool = False  # until it is released
    used_until: float = -math.inf  # or by who only looks
    look_at: float = -math.inf
    is_busy: bool = False  # somebody is looking
    audience: dict[PeerId, None] = field(default_factory=dict)  # peers in the topic, as seen last
    links: dict[PeerId, None] = field(default_factory=dict)  # connections that are kept

    def is_in_use(self, now: float) -> bool:
        return self.is_used or now < self.used_until


class Swarms:
    """A node's places in swarms; they are kept while `run` runs.

    Args:
        host: the network.
        key: the node's identity.
        pubsub: where announcements travel.
        directory: says who hosts a layer.
        reputation: of other peers; the score of `pubsub` should heed it.
        authority: says who is a member of a closed run that this node takes part in.
        proof_of: this node's own proof of membership, by run id.
        hosted: lists what is hosted here, runs named by id.
        settings: limits and intervals.
        rng: the source of chance.
    """

    def __init__(
        self,
        host: Host,
        *,
        key: PrivateKey,
        pubsub: PubSub,
        directory: ExpertDirectory,
        reputation: Reputation,
        authority: Authority,
        proof_of: Callable[[str], Proof] = lambda _run_id: Proof(),
        hosted: Callable[[], Collection[Uid]] = lambda: (),
        settings: GossipSettings | None = None,
        rng: random.Random,
    ) -> None:
        self.reputation = reputation
        self._host = host
        self._key = key
        self._pubsub = pubsub
        self._directory = directory
        self._authority = authority
        self._proof_of = proof_of
        self._hosted = hosted
        self._settings = settings or GossipSettings()
        self._rng = rng
        self._seats: dict[Uid, _Seat] = {}
        self._dialling: set[PeerId] = set()  # asked for membership only
        self._lost: dict[PeerId, None] = {}  # members whose connection has just ended
        self._linked: Counter[PeerId] = Counter()  # in how many swarms
        self._survey_at = -math.inf
        self._listen_at = -math.inf
        self._heard: dict[Uid, float] = {}  # until when an audience is no news
        self._is_running = False
        self._looks = trio.CapacityLimiter(_LOOKS_AT_ONCE)
        self._dials = trio.CapacityLimiter(_DIALS_AT_ONCE)
        self._changed = trio.Event()
        host.events.on(OffenceSeen, self._receive_offence)
        host.events.on(ConnectionEnded, self._receive_ended)
        host.events.on(ConnectionOpened, self._receive_opened)

    def swarm(self, uid: Uid) -> LayerSwarm:
        """Return the swarm of a layer, and stay in it until it is released.

        Args:
            uid: the layer, its run named by id; it need not be hosted here.

        Raises:
            ResourceLimitError: the node is in as many swarms as it may be.
        """
        seat = self._sit_down(uid)
        if not seat.is_used:
            seat.is_used, seat.look_at = True, -math.inf
            self._wake()
        return seat.swarm

    def release(self, uid: Uid) -> None:
        """Use the swarm of a layer no more: what was announced there is withdrawn."""
        if (seat := self._seats.get(uid)) is not None:
            seat.is_used = False
            seat.look_at = -math.inf
            self._wake()

    def look_at(self, uid: Uid, *, within: float) -> LayerSwarm:
        """Return the swarm of a layer, and stay in it for some seconds at least.

        Raises:
            ResourceLimitError: the node is in as many swarms as it may be.
        """
        seat = self._sit_down(uid)
        now = trio.current_time()
        if not seat.is_in_use(now):
            seat.look_at = -math.inf
            self._wake()
        seat.used_until = max(seat.used_until, now + within)
        return seat.swarm

    async def refresh(self, uid: Uid) -> None:
        """Look in the index now who hosts a layer whose swarm this node is in."""
        others = await self._others(uid, anew=True)
        if others is not None and (seat := self._seats.get(uid)) is not None:
            seat.swarm.receive_listing(others)

    @property
    def joined(self) -> list[LayerSwarm]:
        """The swarms that this node is in, in the order in which it joined."""
        return [seat.swarm for seat in self._seats.values()]

    @property
    def links(self) -> list[PeerId]:
        """The peers whose connections are kept, since they are in swarms with this node."""
        return sorted(self._linked)

    def survey(self) -> None:
        """Look soon who shares what is hosted here, since that has changed."""
        self._survey_at = -math.inf
        self._wake()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay in the swarms until cancelled; then say so, where anything was announced."""
        self._is_running = True
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    self._changed = trio.Event()
                    self._begin_what_is_due(nursery)
                    with trio.move_on_at(self._next_due()):
                        await self._changed.wait()
        finally:
            self._is_running = False
            with trio.CancelScope(shield=True):  # what is said is only queued
                for seat in list(self._seats.values()):
                    await self._stand_up(seat)

    # --- what is due ----------------------------------------------------------------------------

    def _begin_what_is_due(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        if self._survey_at <= now:
            self._survey_at = math.inf  # until this one has ended
            nursery.start_soon(self._survey, nursery)
        if self._listen_at <= now:
            self._listen_at = now + self._drawn(self._settings.look_interval)
            self._listen(nursery)
        lost, self._lost = self._lost, {}
        for peer_id in lost:
            if peer_id not in self._dialling:
                self._dialling.add(peer_id)
                nursery.start_soon(self._dial, peer_id, True)
        for seat in self._seats.values():
            due = min(seat.look_at, seat.swarm.renew_at)
            if due <= now and not seat.is_busy:
                seat.is_busy = True
                nursery.start_soon(self._tend, seat, nursery)

    def _next_due(self) -> float:
        waiting = (
            min(seat.look_at, seat.swarm.renew_at)
            for seat in self._seats.values()
            if not seat.is_busy
        )
        return min(self._survey_at, self._listen_at, min(waiting, default=math.inf))

    async def _survey(self, nursery: trio.Nursery) -> None:
        """See who shares what is hosted here: all at once, as neighbours share records."""
        interval = self._settings.survey_interval
        for uid in list(dict.fromkeys([*self._hosted(), *self._seats])):
            seat = self._seats.get(uid)
            if seat is not None and (seat.is_busy or seat.is_in_use(trio.current_time())):
                continue
            others = await self._others(uid)
            if others is None:  # the node knows nobody yet
                interval = self._settings.look_interval
            await self._consider(uid, others, nursery)
        if self._survey_at == math.inf:  # or it is wanted anew already
            self._survey_at = trio.current_time() + self._drawn(interval)
        self._wake()

    def _listen(self, nursery: trio.Nursery) -> None:
        """See whether somebody is in the topic of what nobody seemed to share."""
        now = trio.current_time()
        self._heard = {uid: until for uid, until in self._heard.items() if until > now}
        for uid in self._hosted():
            if uid in self._seats or uid in self._heard or not self._pubsub.peers_of(topic_of(uid)):
                continue
            self._heard[uid] = now + self._settings.survey_interval  # whoever it is: not so soon
            nursery.start_soon(self._look_anew, uid, nursery)

    async def _look_anew(self, uid: Uid, nursery: trio.Nursery) -> None:
        async with self._looks:
            others = await self._others(uid, anew=True)
        await self._consider(uid, others, nursery)

    async def _consider(
        self, uid: Uid, others: list[HostEntry] | None, nursery: trio.Nursery
    ) -> None:
        """Join the swarm of a layer if it has others, and see to it if it is joined."""
        seat = self._seats.get(uid)
        if seat is None and others and len(self._seats) < self._settings.max_swarms:
            seat = self._sit_down(uid)
        if seat is not None and not seat.is_busy:
            await self._settle(seat, others, nursery)

    async def _tend(self, seat: _Seat, nursery: trio.Nursery) -> None:
        """Renew what this node has announced, or look who is in a swarm that is in use."""
        try:
            if seat.swarm.renew_at <= trio.current_time():
                await seat.swarm.renew()
            if seat.look_at <= trio.current_time():
                async with self._looks:
                    others = await self._others(seat.swarm.uid, anew=True)
                await self._settle(seat, others, nursery)
        finally:
            seat.is_busy = False
            self._wake()

    async def _others(self, uid: Uid, *, anew: bool = False) -> list[HostEntry] | None:
        """List the other hosts of a layer; None if nobody can be asked."""
        look_up = self._directory.look_again if anew else self._directory.hosts
        try:
            found = await look_up(uid)
        except P2PNodeError:
            return None
        return [each for each in found if each.peer_id != self._host.peer_id]

    async def _settle(
        self, seat: _Seat, others: list[HostEntry] | None, nursery: trio.Nursery
    ) -> None:
        """Take in who is listed, and see whether to stay."""
        swarm, now = seat.swarm, trio.current_time()
        if others is None:
            swarm.expire()
        else:
            swarm.receive_listing(others)
        seat.look_at = math.inf  # the survey will do
        before = seat.audience
        seat.audience = dict.fromkeys(self._pubsub.peers_of(swarm.topic))
        if any(each not in before for each in seat.audience):
            swarm.renew_soon(self._rng.uniform(0, _REPLY_SPREAD))
        if seat.is_in_use(now):
            seat.look_at = now + self._drawn(self._settings.look_interval)
        elif seat.swarm.members and swarm.uid in self._hosted():
            await swarm.leave()
        else:
            await self._stand_up(seat)
            return
        self._keep_linked(seat, nursery)

    def _drawn(self, interval: float) -> float:
        return interval * self._rng.uniform(1 - _JITTER, 1)

    # --- coming and going -----------------------------------------------------------------------

    def _sit_down(self, uid: Uid) -> _Seat:
        if (seat := self._seats.get(uid)) is not None:
            return seat
        swarm = LayerSwarm(
            uid,
            key=self._key,
            pubsub=self._pubsub,
            reputation=self.reputation,
            authority=self._authority,
            proof_of=self._proof_of,
            settings=self._settings,
            events=self._host.events,
            wake=self._wake,
        )
        # Nobody reads the subscription: the validator takes in what is valid, when it comes.
        subscription = self._pubsub.subscribe(swarm.topic, validator=swarm.judge, queue=0)
        seat = self._seats[uid] = _Seat(swarm, subscription)
        self._wake()
        return seat

    async def _stand_up(self, seat: _Seat) -> None:
        await seat.swarm.leave()
        if seat.is_in_use(trio.current_time()) and self._is_running:  # again, meanwhile
            return
        if self._seats.pop(seat.swarm.uid, None) is not None:
            seat.subscription.close()
            self._pubsub.set_validator(seat.swarm.topic, None)
            self._link(seat, ())

    # --- connections ----------------------------------------------------------------------------

    def _keep_linked(self, seat: _Seat, nursery: trio.Nursery) -> None:
        """Protect the connections to some members, and dial those that there are none to."""
        others = [
            each.peer_id for each in seat.swarm.members if not seat.swarm.is_shunned(each.peer_id)
        ]
        self._rng.shuffle(others)  # so that no member is everybody's choice
        others.sort(key=lambda peer_id: (peer_id not in seat.links, not self._reaches(peer_id)))
        room = self._settings.max_protected - len(self._linked)
        chosen: list[PeerId] = []
        for peer_id in others:
            if peer_id in self._linked or room > 0:
                chosen.append(peer_id)
                room -= peer_id not in self._linked
            if len(chosen) == self._settings.max_links:
                break
        self._link(seat, chosen)
        for peer_id in chosen:
            if not self._reaches(peer_id) and peer_id not in self._dialling:
                self._dialling.add(peer_id)
                nursery.start_soon(self._dial, peer_id, False)

    def _link(self, seat: _Seat, chosen: Iterable[PeerId]) -> None:
        before, seat.links = seat.links, dict.fromkeys(chosen)
        for peer_id in before:
            if peer_id not in seat.links:
                self._host.unprotect(peer_id, seat.swarm.topic)
                self._linked[peer_id] -= 1
                if not self._linked[peer_id]:
                    del self._linked[peer_id]
        for peer_id in seat.links:
            if peer_id not in before:
                self._host.protect(peer_id, seat.swarm.topic)
                self._linked[peer_id] += 1

    def _reaches(self, peer_id: PeerId) -> bool:
        connection = self._host.connection_to(peer_id)
        return connection is not None and not connection.is_limited

    async def _dial(self, peer_id: PeerId, was_linked: bool) -> None:
        try:
            async with self._dials:
                await self._host.connect(peer_id)
        except P2PNodeError:  # the host backs off from it; others may bring what it says
            if was_linked:
                for seat in self._seats.values():
                    seat.swarm.receive_gone(peer_id)
        finally:
            self._dialling.discard(peer_id)

    def _receive_ended(self, event: ConnectionEnded) -> None:
        peer_id = event.connection.peer_id
        if self._is_running and peer_id in self._linked and not self._reaches(peer_id):
            self._lost[peer_id] = None
            self._wake()

    def _receive_opened(self, event: ConnectionOpened) -> None:
        for seat in self._seats.values():
            seat.swarm.receive_back(event.connection.peer_id)

    def _receive_offence(self, event: OffenceSeen) -> None:
        if (peer_id := event.peer_id) is None:
            return
        now = trio.current_time()
        is_too_much = self.reputation.receive_offence(peer_id, event.offence, event.reason, now)
        standing = self.reputation.standing(peer_id, now)
        if is_too_much and standing is not None:
            self._host.events.emit(PeerBlacklisted(peer_id=peer_id, offences=standing.offences))

    def _wake(self) -> None:
        self._changed.set()
