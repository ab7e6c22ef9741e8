"""Which chunk to ask of whom, while one state is fetched from several holders: pure.

Rules:

1. A chunk is asked of a holder that has it, of one only at a time, the rarest among the holders
   first, and among equally rare ones in an order drawn for this download: peers that fetch the
   same state at the same time so come to have different parts, and serve each other. What holders
   have is learnt bit by bit; the order is sorted anew once some more chunks were asked for, so that
   sorting costs little even if there are many.
2. Chunks of equal content are one: asked for once, and written wherever they belong.
3. What a holder has not delivered when it is dropped is asked of the others.
4. When nothing is left to ask for, a holder that would be idle is asked once more for the chunk
   that has been outstanding longest, if that is overdue: longer than `LATE` times what this holder
   takes for one. So one slow holder does not hold up the end. This is done for so many chunks only
   as one holder is asked for ahead, or for a few of a hundred, so that little is sent twice even
   where all are slow now and then.

Inputs are `receive_*`, the choice is `next_chunk`. Indices are those of the manifest.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

H = TypeVar("H", bound=Hashable)

LATE: Final = 3.0
SORTS: Final = 64  # at least this many choices of a whole download see what is rare just then
MIN_TWICE: Final = 4  # chunks of a small state that may be asked for twice
TWICE: Final = 32  # of a large one, one in so many
MAX_REQUESTERS: Final = 2  # of one chunk at a time, in the end
SMOOTHING: Final = 0.3  # weight of the newest chunk in a holder's average time


@dataclass(slots=True)
class _Holder:
    chunks: int = 0  # a set: bit i stands for chunk i
    asked: dict[int, float] = field(default_factory=dict)  # outstanding chunks, since when
    seconds: float = 0.0  # from asking to having a chunk, averaged; 0 before the first


class Download(Generic[H]):
    """One state being fetched.

    Args:
        chunks: the hash of each.
        have: the set of chunks that are there already, as an integer: bit i stands for chunk i.
        chance: draws from 0 to 1, for the order of equally rare chunks.
    """

    def __init__(self, chunks: Sequence[bytes], have: int, chance: Callable[[], float]) -> None:
        self._places: dict[bytes, list[int]] = {}
        for index, digest in enumerate(chunks):
            self._places.setdefault(digest, []).append(index)
        self._chunks = chunks
        self._first = {each[0]: each for each in self._places.values()}
        self._holders: dict[H, _Holder] = {}
        self._missing = {
            first: chance()
            for first, places in self._first.items()
            if any(not have >> place & 1 for place in places)
        }
        self._order: list[int] | None = None  # of those not asked of anybody, the rarest last
        self._is_stale = False  # holders have come to have more since
        self._chosen = 0  # from this order
        self._twice_left = max(MIN_TWICE, len(self._first) // TWICE)
        self.have = have
        self.duplicates = 0  # chunks that came although they were there already

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing any more."""
        return not self._missing

    def receive_have(self, holder: H, chunks: int) -> None:
        """Take in what a holder has, a new one or one known."""
        if holder not in self._holders:
            self._order = None
        state = self._holders.setdefault(holder, _Holder())
        self._is_stale = self._is_stale or state.chunks != chunks
        state.chunks = chunks

    def has_all(self, holder: H) -> bool:
        """Tell whether a holder has all that is missing, as far as is known."""
        chunks = self._holders[holder].chunks
        return all(chunks >> index & 1 for index in self._missing)

    def chunks_of(self, holder: H) -> int:
        """Return what a holder has, as far as is known."""
        return self._holders[holder].chunks

    def receive_loss(self, holder: H) -> None:
        """Take in that a holder is not to be asked any more."""
        self._holders.pop(holder, None)
        self._order = None

    def next_chunk(self, holder: H, now: float) -> int | None:
        """Choose what to ask a holder for, if there is anything; counts as asked then."""
        state = self._holders[holder]
        index = self._next_unasked(state)
        if index is None and self._twice_left:
            index = self._next_overdue(state, now)
            self._twice_left -= index is not None
        if index is not None:
            state.asked[index] = now
        return index

    def places(self, index: int) -> list[int]:
        """Return where a chunk is still to be written to; it may be in several places."""
        return [each for each in self._first[index] if not self.have >> each & 1]

    def receive_chunk(self, holder: H, index: int, now: float) -> None:
        """Take in that a chunk a holder has sent is what it should be, and is in its places."""
        state = self._holders.get(holder)
        if state is not None and index in state.asked:
            took = now - state.asked.pop(index)
            state.seconds += (took - state.seconds) * (SMOOTHING if state.seconds else 1.0)
        else:
            self._order = None  # the holder was lost right behind it: it may be there again
        if self._missing.pop(index, None) is None:
            self.duplicates += 1
            return
        for place in self._first[index]:
            self.have |= 1 << place

    def _next_unasked(self, state: _Holder) -> int | None:
        if self._order is None or (self._is_stale and self._chosen * SORTS >= len(self._missing)):
            self._order = self._sorted()
            self._is_stale = False
            self._chosen = 0
        for at in range(len(self._order) - 1, -1, -1):
            index = self._order[at]
            if state.chunks >> index & 1:
                del self._order[at]
                self._chosen += 1
                return index
        return None

    def _sorted(self) -> list[int]:
        asked = {index for each in self._holders.values() for index in each.asked}
        free = [index for index in self._missing if index not in asked]
        copies = {
            index: sum(each.chunks >> index & 1 for each in self._holders.values())
            for index in free
        }
        return sorted(free, key=lambda index: (-copies[index], self._missing[index]))

    def _next_overdue(self, state: _Holder, now: float) -> int | None:
        if state.asked or not state.seconds:
            return None  # it is not idle, or has not shown how fast it is
        late: tuple[float, int] | None = None
        askers: dict[int, list[float]] = {}
        for holder in self._holders.values():
            for index, since in holder.asked.items():
                askers.setdefault(index, []).append(since)
        for index, times in askers.items():
            since = min(times)
            if index not in self._missing or len(times) >= MAX_REQUESTERS:
                continue
            if state.chunks >> index & 1 and now - since > LATE * state.seconds:
                late = min(late or (since, index), (since, index))
        return None if late is None else late[1]
