"""Whose contributions a round is reduced from, when members are lost: pure.

Each member has a set of members, at first the whole group, which only ever shrinks: a *view*. An
attempt to reduce belongs to one view, and succeeds for a member when every part of it has come for
this view. So no result mixes contributions of different sets.

1. Who finds a member lost takes it out of its view and begins another attempt.
2. A contribution names its sender's view. If it is the receiver's, it counts. If it is smaller, the
   receiver takes the intersection for its view and begins anew. If it is larger, the sender hears
   what the receiver's view is, and does likewise.
3. Who has the whole result gives all of it to whoever still asks, whatever his view is. So those
   that were complete when a member was lost, and those that were not, end with the same result.
4. Who is in nobody's view any more, or whose view has become too small, fails.

Views that only shrink towards each other's intersection become equal as soon as messages pass, in
at most as many attempts as the group has members. A member that is cut off from some of the others
only takes them with it: it cannot be told from them.

Sets are numbers: rank r is bit r.
"""

from collections.abc import Iterator
from enum import Enum, auto


class Verdict(Enum):
    """What becomes of a contribution."""

    COUNTS = auto()
    ANEW = auto()  # it counts, in a new attempt that begins now
    MOVED = auto()  # the sender has to come again for our view
    WHOLE = auto()  # the sender can have the whole result
    STRANGER = auto()  # its sender has been lost, or has lost us


class View:
    """One member's view in one round.

    Args:
        count: how many members the group has.
        own: the rank of this member.
        quorum: how many of them a result must be of.
    """

    def __init__(self, count: int, own: int, quorum: int) -> None:
        self.members = (1 << count) - 1
        self.attempt = 0
        self.is_complete = False
        self._own = own
        self._quorum = quorum

    @property
    def is_failed(self) -> bool:
        """Whether no result can come any more."""
        few = self.members.bit_count() < self._quorum
        return not self.is_complete and (few or not self.members >> self._own & 1)

    @property
    def is_excluded(self) -> bool:
        """Whether others have gone on without this member."""
        return not self.members >> self._own & 1

    def receive_join(self, rank: int, members: int) -> Verdict:
        """Take a contribution of member `rank` for its view."""
        if self.is_complete:
            return Verdict.WHOLE
        if not (self.members >> rank & 1 and members >> self._own & 1 and members >> rank & 1):
            return Verdict.MOVED if members >> self._own & 1 else Verdict.STRANGER
        if members == self.members:
            return Verdict.COUNTS
        self.receive_moved(members)
        return Verdict.ANEW if self.members == members else Verdict.MOVED

    def receive_moved(self, members: int) -> None:
        """Take what another member's view is."""
        self._shrink(self.members & members)

    def receive_lost(self, rank: int) -> None:
        """Take out a member that is lost."""
        self._shrink(self.members & ~(1 << rank))

    def receive_result(self) -> None:
        """Every part has come for this view."""
        self.is_complete = True

    def receive_whole(self, members: int) -> None:
        """The whole result has come from a member, of the contributions of `members`."""
        self.members = members
        self.is_complete = True

    def _shrink(self, members: int) -> None:
        if not self.is_complete and members != self.members:
            self.members = members
            self.attempt += 1


def ranks(members: int) -> Iterator[int]:
    """Give the ranks in a set, in order."""
    rank = 0
    while members:
        if members & 1:
            yield rank
        members >>= 1
        rank += 1
