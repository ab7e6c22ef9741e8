"""What one node knows of one swarm: its members, and the newest that each has announced.

A member is whoever the index lists as a host of the layer, or has announced something that still
holds. Inputs (`receive_*`) return what has changed, in the order in which it has.

    announcement    author unknown, room left        -> joined, announced
                    author known, newer copy         -> (announced, if it says something new)
                    author known, older or same copy -> ignored: it is replayed, or late
                    last word                        -> left, unless the index still lists it
    listing         host unknown, room left          -> joined
                    member neither listed nor heard  -> left
    time            announcement has expired         -> left, unless listed

A last word is remembered until whatever its author said before has expired, so that neither a
replay nor a copy that comes late brings it back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Protocol

from p2pnode.config.gossip import GossipSettings
from p2pnode.events import Event
from p2pnode.protocols.pubsub.pace import Pace
from p2pnode.swarm.gossip.announcement import Announcement
from p2pnode.swarm.index import MAX_SKEW
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

_TOLERANCE: Final = (
    2  # times what a member may announce by its own pace; the network may bunch copies
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberJoined(Event):
    """A peer has joined a layer's swarm."""

    uid: Uid
    peer_id: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberLeft(Event):
    """A peer has left a layer's swarm, or is not heard of any more."""

    uid: Uid
    peer_id: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberAnnounced(Event):
    """A member has announced something new."""

    announcement: Announcement


Change = MemberJoined | MemberLeft | MemberAnnounced


class Listed(Protocol):
    """A host as the index lists it."""

    @property
    def peer_id(self) -> PeerId:
        """Who it is."""
        ...

    @property
    def load(self) -> int:
        """How many calls it had queued."""
        ...

    @property
    def throughput(self) -> float:
        """Rows a second through each of its experts; 0 if not known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Another peer of the swarm.

    Attributes:
        peer_id: who it is.
        is_listed: whether the index lists it as a host of the layer.
        load: calls queued there, by the index.
        throughput: rows a second through each of its experts, by the index; 0 if not known.
        announcement: the newest that it has announced and that still holds, if any.
    """

    peer_id: PeerId
    is_listed: bool = False
    load: int = 0
    throughput: float = 0.0
    announcement: Announcement | None = None


class Fate(Enum):
    """What became of an announcement."""

    NEW = auto()
    OLD = auto()  # a newer copy is known, or it has expired
    EARLY = auto()  # its author's clock is ahead
    HASTY = auto()  # its author announces more than its share
    CROWDED = auto()  # there is no room for another member


class Roster:
    """The members of one swarm, as one of them knows them.

    Args:
        uid: the layer.
        own: this node, which is not among the members.
        settings: limits.
    """

    def __init__(self, uid: Uid, own: PeerId, settings: GossipSettings) -> None:
        self.uid = uid
        self._own = own
        self._settings = settings
        self._members: dict[PeerId, Member] = {}
        self._last_words: dict[PeerId, Announcement] = {}
        self._paces: dict[PeerId, Pace] = {}

    @property
    def members(self) -> Mapping[PeerId, Member]:
        """The others, by peer id, in the order in which they joined."""
        return self._members

    def receive_announcement(
        self, announcement: Announcement, wall: float
    ) -> tuple[Fate, Sequence[Change]]:
        """Take in an announcement whose author and membership are proven."""
        peer_id = announcement.peer_id
        member = self._members.get(peer_id)
        known = self._last_words.get(peer_id, member.announcement if member else None)
        if announcement.issued > wall + MAX_SKEW:
            return Fate.EARLY, ()
        if announcement.expiry <= wall or peer_id == self._own:
            return Fate.OLD, ()
        if known is not None and not _follows(announcement, known):
            return Fate.OLD, ()
        if member is None and not self._has_room(is_listed=False):
            return Fate.CROWDED, ()
        if not self._is_in_pace(announcement):
            return Fate.HASTY, ()
        if announcement.is_leaving:
            return Fate.NEW, self._receive_last_word(announcement)
        self._last_words.pop(peer_id, None)
        changes: list[Change] = []
        if member is None:
            member = Member(peer_id=peer_id)
            changes.append(MemberJoined(uid=self.uid, peer_id=peer_id))
        before, self._members[peer_id] = member, replace(member, announcement=announcement)
        if before.announcement is None or before.announcement.version < announcement.version:
            changes.append(MemberAnnounced(announcement=announcement))
        return Fate.NEW, changes

    def receive_listing(self, hosts: Iterable[Listed], wall: float) -> Sequence[Change]:
        """Take in who the index lists as hosts of the layer."""
        listed = {each.peer_id: each for each in hosts if each.peer_id != self._own}
        changes: list[Change] = []
        for peer_id, host in listed.items():
            member = self._members.get(peer_id)
            if member is None:
                if not self._has_room(is_listed=True, changes=changes):
                    break
                member = Member(peer_id=peer_id)
                changes.append(MemberJoined(uid=self.uid, peer_id=peer_id))
            self._members[peer_id] = replace(
                member, is_listed=True, load=host.load, throughput=host.throughput
            )
        for peer_id, member in self._members.items():
            if peer_id not in listed and member.is_listed:
                self._members[peer_id] = replace(member, is_listed=False)
        return [*changes, *self.expire(wall)]

    def expire(self, wall: float) -> Sequence[Change]:
        """Drop what has expired by now."""
        for peer_id, member in self._members.items():
            if member.announcement is not None and member.announcement.expiry <= wall:
                self._members[peer_id] = replace(member, announcement=None)
        gone = [
            peer_id
            for peer_id, each in self._members.items()
            if each.announcement is None and not each.is_listed
        ]
        for peer_id in gone:
            del self._members[peer_id]
        for peer_id in [who for who, each in self._last_words.items() if each.expiry <= wall]:
            del self._last_words[peer_id]
        for peer_id in [who for who in self._paces if who not in self._members]:
            if peer_id not in self._last_words:
                del self._paces[peer_id]
        return [MemberLeft(uid=self.uid, peer_id=peer_id) for peer_id in gone]

    def _is_in_pace(self, announcement: Announcement) -> bool:
        """Count an announcement; False if its author announces more than its share.

        The times that count are those that the author has signed, so that nobody who holds copies
        back and gives them all at once can make it look hasty.
        """
        pace = self._paces.get(announcement.peer_id)
        if pace is None:
            rate, burst = self._settings.announcement_rate, self._settings.announcement_burst
            pace = Pace(_TOLERANCE * rate, _TOLERANCE * burst)
            self._paces[announcement.peer_id] = pace
        return pace.take(announcement.issued) == 0

    def _receive_last_word(self, announcement: Announcement) -> Sequence[Change]:
        peer_id = announcement.peer_id
        member = self._members.get(peer_id)
        before = member.announcement if member else self._last_words.get(peer_id)
        if before is not None and before.expiry > announcement.expiry:  # remember it for so long
            announcement = replace(announcement, lifetime=before.expiry - announcement.issued)
        self._last_words[peer_id] = announcement
        if member is None:  # what it said before is late, or it has said it again
            return ()
        if member.is_listed:
            self._members[peer_id] = replace(member, announcement=None)
            return ()
        del self._members[peer_id]
        return [MemberLeft(uid=self.uid, peer_id=peer_id)]

    def _has_room(self, *, is_listed: bool, changes: list[Change] | None = None) -> bool:
        """Tell whether a newcomer fits; hosts in the index come before those who only announce."""
        if not self._is_full() or not is_listed or changes is None:
            return not self._is_full()
        while self._is_full() and self._last_words:
            del self._last_words[next(iter(self._last_words))]
        others = (who for who, each in self._members.items() if not each.is_listed)
        if self._is_full() and (displaced := next(others, None)) is not None:
            del self._members[displaced]
            changes.append(MemberLeft(uid=self.uid, peer_id=displaced))
        return not self._is_full()

    def _is_full(self) -> bool:
        return len(self._members) + len(self._last_words) >= self._settings.max_members


def _follows(announcement: Announcement, known: Announcement) -> bool:
    """Tell whether an announcement is newer than what is known, and does not contradict it."""
    if announcement.issued <= known.issued or announcement.version < known.version:
        return False
    is_same = announcement.version == known.version and not known.is_leaving
    return not is_same or announcement.claim == known.claim or announcement.is_leaving
