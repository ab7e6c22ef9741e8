"""Whose contributions a round is reduced from, when members are lost or disagree: pure.

Each member has a *view*: which members there are, and the bandwidth of each, by which parts are
shared out. It begins with the group as this member knows it, and only ever shrinks. An attempt to
reduce belongs to one view, and succeeds for a member when every part of it has come for this view.
So no result mixes contributions of different sets.

1. Who finds a member lost takes it out of its view and begins another attempt.
2. A contribution names its sender's view. If it is the receiver's, it counts. Otherwise the
   receiver takes what both have in common, with the smaller of two bandwidths, for its view; if
   that is not the sender's either, the sender hears it and does likewise.
3. Who has the whole result gives all of it to whoever still asks, whatever his view is. So those
   that were complete when a member was lost, and those that were not, end with the same result.
4. Who is not known to another member leaves itself out, and has no result: it cannot have those
   lost that are known to all. Who was lost to another member counts that one as lost, too: if that
   one is right, so will the others be.

Views that only shrink towards what they have in common become equal as soon as messages pass. So
members whose groups were made of different swarms (one had not heard of a newcomer, say) reduce
with those that all of them know. What a member says about whom it has lost is believed, so one that
is cut off from some of the others takes them with it: it cannot be told from them.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Generic, Protocol, Self, TypeVar


class _Ordered(Protocol):
    def __lt__(self, other: Self, /) -> bool: ...

    def __hash__(self) -> int: ...


M = TypeVar("M", bound=_Ordered)


class Verdict(Enum):
    """What becomes of a contribution."""

    COUNTS = auto()
    ANEW = auto()  # it counts, in a new attempt that begins now
    MOVED = auto()  # the sender has to come again for our view
    WHOLE = auto()  # the sender can have the whole result
    LOST = auto()  # its sender has been lost here, or has lost us


class View(Generic[M]):
    """One member's view in one round.

    Args:
        members: of the group, with their bandwidths.
        own: this member.
        quorum: how many members a result must be of.

    Attributes:
        members: in order, with their bandwidths.
        attempt: how often the view has changed.
        is_complete: whether there is a result, which is of `members`.
    """

    def __init__(self, members: Mapping[M, float], own: M, quorum: int) -> None:
        self.members: dict[M, float] = {each: members[each] for each in sorted(members)}
        self.attempt = 0
        self.is_complete = False
        self._group = frozenset(members)
        self._own = own
        self._quorum = quorum

    @property
    def is_excluded(self) -> bool:
        """Whether others have gone on without this member."""
        return self._own not in self.members

    @property
    def is_failed(self) -> bool:
        """Whether no result can come any more."""
        return not self.is_complete and (self.is_excluded or len(self.members) < self._quorum)

    def receive_join(self, sender: M, members: Mapping[M, float]) -> Verdict:
        """Take a contribution of `sender` for its view."""
        if sender not in self._group:
            return Verdict.MOVED
        if self.is_complete:
            return Verdict.WHOLE
        if not {self._own, sender} <= members.keys() or sender not in self.members:
            return Verdict.LOST
        if members == self.members:
            return Verdict.COUNTS
        self.receive_moved(members)
        return Verdict.ANEW if self.members == members else Verdict.MOVED

    def receive_moved(self, members: Mapping[M, float]) -> None:
        """Take what another member's view is."""
        self._shrink(
            {
                each: min(bandwidth, members[each])
                for each, bandwidth in self.members.items()
                if each in members
            }
        )

    def receive_lost(self, member: M) -> None:
        """Take out a member that is lost."""
        self._shrink({each: self.members[each] for each in self.members if each != member})

    def receive_result(self) -> None:
        """Every part has come for this view."""
        self.is_complete = True

    def receive_whole(self, members: Mapping[M, float]) -> bool:
        """Take the whole result of a member.

        It may be of members that we have lost meanwhile. It is refused, by False, if it is of
        strangers to our group, or of too few.
        """
        if len(members) < self._quorum or not self._group.issuperset(members):
            return False
        self.members = {each: members[each] for each in sorted(members)}
        self.is_complete = True
        return True

    def _shrink(self, members: dict[M, float]) -> None:
        if not self.is_complete and members != self.members:
            self.members = members
            self.attempt += 1
