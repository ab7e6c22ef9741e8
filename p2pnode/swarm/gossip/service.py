"""The swarm of one layer, as a member sees it: who else there is, and what they announce.

A `LayerSwarm` belongs to the node's `Swarms`, which feed it with what the topic brings and what the
index lists, and keep it going. It works while they run.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config.gossip import GossipSettings
from p2pnode.errors import NotAMemberError, ProtocolError, TokenExpiredError
from p2pnode.events import Event, EventBus
from p2pnode.protocols.pubsub import PubSub, PubSubMessage, Verdict
from p2pnode.protocols.pubsub.pace import Pace
from p2pnode.rpc.authority import Authority
from p2pnode.security.tokens import is_open
from p2pnode.swarm.announce import Proof
from p2pnode.swarm.gossip.announcement import (
    Announcement,
    Claim,
    open_announcement,
    seal_announcement,
    topic_of,
)
from p2pnode.swarm.gossip.core import Change, Fate, Listed, Member, MemberLeft, Roster
from p2pnode.swarm.gossip.reputation import Offence, OffenceSeen, Reputation
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_SOONEST: Final = 1 / 6  # of the renewal's interval, between two renewals
_MARGIN: Final = 0.002  # seconds, by which an announcement ends before its proof; it is told in ms


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncingEnded(Event):
    """This node announces nothing in a swarm any more, for the reason that is given."""

    level = "warning"

    uid: Uid
    reason: str


class LayerSwarm:
    """The peers that host one layer, and their newest announcements.

    `events` tells of changes: `MemberJoined`, `MemberLeft`, `MemberAnnounced`. To wait for one:

        with swarm.events.subscribe(MemberAnnounced) as news:
            event = await news.get()

    or for a state of things, `await swarm.wait_until(lambda: len(swarm.announcements) >= 3)`.

    Args:
        uid: the layer, its run named by id.
        key: the node's identity, which signs what it announces.
        pubsub: where to.
        reputation: what the node knows against others.
        authority: says who is a member of a closed run.
        proof_of: this node's own proof of membership, by run id.
        settings: limits and intervals.
        events: of the node, where changes and offences are told, too.
        wake: called when `renew_at` has changed.
    """

    def __init__(
        self,
        uid: Uid,
        *,
        key: PrivateKey,
        pubsub: PubSub,
        reputation: Reputation,
        authority: Authority,
        proof_of: Callable[[str], Proof],
        settings: GossipSettings,
        events: EventBus,
        wake: Callable[[], None],
    ) -> None:
        self.uid = uid
        self.topic = topic_of(uid)
        self.events = EventBus()
        self._key = key
        self._pubsub = pubsub
        self._reputation = reputation
        self._authority = authority
        self._proof_of = proof_of
        self._settings = settings
        self._node_events = events
        self._wake_keeper = wake
        self._roster = Roster(uid, key.peer_id, settings)
        self._pace = Pace(settings.announcement_rate, settings.announcement_burst)
        self._own: Announcement | None = None
        self._gone: dict[PeerId, float] = {}  # and since when, by the wall clock
        self._renew_at = math.inf
        self._renewed_at = -math.inf
        self._changed = trio.Event()
        self._revision = 0

    # --- what there is to know ------------------------------------------------------------------

    @property
    def peer_id(self) -> PeerId:
        """Who this node is; it is never among `members`."""
        return self._key.peer_id

    @property
    def own(self) -> Announcement | None:
        """What this node has announced last, if it has not left."""
        return self._own

    @property
    def members(self) -> list[Member]:
        """The others, in the order of their ids."""
        return sorted(self._roster.members.values(), key=lambda each: each.peer_id)

    @property
    def announcements(self) -> Mapping[PeerId, Announcement]:
        """The newest announcement of each other member that has one and is not shunned.

        They are in the order of their authors' ids, which is the same everywhere.
        """
        return {
            each.peer_id: each.announcement
            for each in self.members
            if each.announcement is not None and not self.is_shunned(each.peer_id)
        }

    @property
    def gone(self) -> frozenset[PeerId]:
        """Members whose connection has ended, and whom this node cannot reach any more.

        What they have announced holds on. Who announces something new, or connects again, is back.
        """
        return frozenset(self._gone)

    def is_shunned(self, peer_id: PeerId) -> bool:
        """Tell whether to leave a peer alone now, for what it has done here or elsewhere."""
        return self._reputation.is_shunned(peer_id, trio.current_time())

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; it is looked at when anything in the swarm has changed."""
        await trio.lowlevel.checkpoint()
        while not holds():
            await self._changed.wait()

    # --- what to do about it --------------------------------------------------------------------

    async def announce(self, claim: Claim) -> Announcement:
        """Say something new of this node's weights; it is renewed until `leave` or the next one.

        It is queued for others when this returns. Who says more than `announcement_rate` allows
        waits here for its turn, since others would not listen.

        Raises:
            MessageTooLargeError: the mode has too much to say.
            ProtocolError: a value of the claim is none that others would take.
            TokenExpiredError: this node is no member of the run any more.
        """
        await self._take_turn()
        version = max(int(wall_time() * 1000), self._own.version + 1 if self._own else 0)
        return await self._publish(claim, version)

    async def leave(self) -> None:
        """Say that this node announces nothing any more, if it has announced anything."""
        if (own := self._own) is None:
            await trio.lowlevel.checkpoint()
            return
        with contextlib.suppress(TokenExpiredError):  # then nobody would listen
            await self._say(self._announcement(own.claim, own.version + 1, own, is_leaving=True))
        if self._own is own:  # only now: who is cancelled before has yet to say it
            self._own, self._renew_at = None, math.inf

    def report(self, peer_id: PeerId, offence: Offence, reason: str) -> None:
        """Note what a peer was found to have done; all swarms of this node heed it.

        Args:
            peer_id: who has done it; it must be certain that it was no other.
            offence: what.
            reason: one sentence for people.
        """
        self._node_events.emit(
            OffenceSeen(peer_id=peer_id, address=None, reason=reason, offence=offence)
        )
        self._wake()

    # --- for `Swarms` ---------------------------------------------------------------------------

    def renew_soon(self, delay: float) -> None:
        """Renew what was announced sooner, since somebody has come who has not heard of it."""
        if self._own is not None:
            least = self._renewed_at + self._settings.renewal * _SOONEST
            self._renew_at = min(self._renew_at, max(trio.current_time() + delay, least))
            self._wake_keeper()

    @property
    def revision(self) -> int:
        """Rises with every change in the swarm."""
        return self._revision

    @property
    def renew_at(self) -> float:
        """When what this node has announced is to be renewed; infinite if it has nothing."""
        return self._renew_at

    async def renew(self) -> None:
        """Say again what was said last; not any more if this node's membership has expired."""
        if (own := self._own) is None:
            return
        self._renew_at = trio.current_time() + self._settings.renewal
        await self._take_turn()
        if self._own is not own:  # something newer has been said meanwhile
            return
        try:
            await self._publish(own.claim, own.version)
        except TokenExpiredError as error:
            self._own, self._renew_at = None, math.inf
            self._node_events.emit(AnnouncingEnded(uid=self.uid, reason=str(error)))

    def receive_listing(self, hosts: Iterable[Listed]) -> None:
        """Take in who the index lists as hosts of the layer."""
        self._tell(self._roster.receive_listing(hosts, wall_time()))

    def receive_gone(self, peer_id: PeerId) -> None:
        """Take in that a peer that was connected cannot be reached any more."""
        if peer_id in self._roster.members and peer_id not in self._gone:
            self._gone[peer_id] = wall_time()
            self._wake()

    def receive_back(self, peer_id: PeerId) -> None:
        """Take in that a peer is connected again."""
        if self._gone.pop(peer_id, None) is not None:
            self._wake()

    def judge(self, message: PubSubMessage) -> Verdict:
        """Take in what the topic has brought, and say whether others should get it.

        What any honest node can see to be wrong is rejected, which costs its bringer; what others
        may see otherwise (time, pace, room, reputation) is ignored.

        Raises:
            ProtocolError: it is malformed or forged.
        """
        announcement = open_announcement(self.uid, message.data)
        author = announcement.peer_id
        if message.source not in {None, author}:
            raise ProtocolError("an announcement was published by another peer than its author")
        if self._reputation.is_blacklisted(author, trio.current_time()):
            return Verdict.IGNORE
        try:
            self._authorise(announcement)
        except TokenExpiredError:
            return Verdict.IGNORE
        except NotAMemberError:
            return Verdict.REJECT
        fate, changes = self._roster.receive_announcement(announcement, wall_time())
        if fate is Fate.NEW and announcement.issued > self._gone.get(author, math.inf):
            self.receive_back(author)
        if fate is Fate.HASTY:
            self.report(author, Offence.FLOOD, f"it announces too often in {self.uid.name}")
        self._tell(changes)
        return Verdict.ACCEPT if fate is Fate.NEW else Verdict.IGNORE

    def expire(self) -> None:
        """Drop what has expired."""
        self._tell(self._roster.expire(wall_time()))

    # --- within ---------------------------------------------------------------------------------

    def _authorise(self, announcement: Announcement) -> None:
        if not is_open(self.uid.run) and not announcement.token:
            raise NotAMemberError("an announcement in a closed run must prove membership")
        self._authority.authorise(
            announcement.peer_id,
            self.uid.run,
            announcement.token or None,
            "host",
            wall_time(),
        )

    async def _take_turn(self) -> None:
        await trio.sleep(self._pace.take(trio.current_time()))

    async def _publish(self, claim: Claim, version: int) -> Announcement:
        own = self._announcement(claim, version, self._own, is_leaving=False)
        await self._say(own)
        self._own = own
        self._renewed_at = trio.current_time()
        self._renew_at = self._renewed_at + self._settings.renewal
        self._wake_keeper()
        self._wake()
        return own

    def _announcement(
        self, claim: Claim, version: int, before: Announcement | None, *, is_leaving: bool
    ) -> Announcement:
        proof = self._proof_of(self.uid.run)
        issued = max(wall_time(), before.issued + 0.001 if before else 0.0)
        lifetime = min(self._settings.lifetime, proof.expires - issued - _MARGIN)
        if lifetime <= 0:
            raise TokenExpiredError("this node's membership has expired; ask for a new invite")
        return Announcement(
            uid=self.uid,
            peer_id=self.peer_id,
            claim=claim,
            version=version,
            issued=issued,
            lifetime=lifetime,
            is_leaving=is_leaving,
            token=proof.token,
        )

    async def _say(self, announcement: Announcement) -> None:
        await self._pubsub.publish(self.topic, seal_announcement(self._key, announcement))

    def _tell(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, MemberLeft):
                self._gone.pop(change.peer_id, None)
            self.events.emit(change)
            self._node_events.emit(change)
        if changes:
            self._wake()

    def _wake(self) -> None:
        self._revision += 1
        self._changed.set()
        self._changed = trio.Event()
