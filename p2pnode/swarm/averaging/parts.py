"""Which member reduces which part of the tensors, and where that part lies in them: pure.

All elements of all tensors, one tensor after the other, are numbered from 0. A part is a span of
these numbers, and a chunk is a span of a part: what is encoded, reduced and passed on at once.

Shares. A member with share f of a group of n sends its contributions to the other parts, 1 - f of
all, and n - 1 copies of what it has reduced, f of all each: (1 + (n - 2) f) / b if its bandwidth is
b, and it receives as much. Shares are such that the slowest takes as little time as can be: all
who have a share take the same time T, so that f = (b T - 1) / (n - 2), and who would have less than
nothing has none. (hivemind, Ryabinin et al. 2021, solves the same by linear programming.)
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

# Elements: 1 MiB of float32, a multiple of the codecs' blocks. Part of the protocol, since what a
# codec makes of a part depends on where it is cut.
CHUNK: Final = 256 * 1024

Span = tuple[int, int]  # first, and the one behind the last


def shares(bandwidths: Sequence[float]) -> list[float]:
    """Return which share of the elements each member reduces; they add up to 1.

    Args:
        bandwidths: of the members; who has 0 reduces nothing. One at least is more than 0.
    """
    others = len(bandwidths) - 2
    if others <= 0:  # alone, or of two, who move all they have, whoever reduces it
        total = sum(bandwidths)
        return [each / total for each in bandwidths]
    fastest = sorted((each for each in bandwidths if each), reverse=True)
    time = total = 0.0
    for count, bandwidth in enumerate(fastest, 1):
        if count > 1 and bandwidth * time <= 1:
            break
        total += bandwidth
        time = (others + count) / total
    return [max(0.0, (each * time - 1) / others) if each else 0.0 for each in bandwidths]


def spans(sizes: Sequence[float], count: int) -> list[Span]:
    """Cut `count` elements in spans, in proportion to `sizes`, which add up to 1."""
    ends = [round(min(1.0, each) * count) for each in itertools.accumulate(sizes)]
    last = max((rank for rank, size in enumerate(sizes) if size), default=0)
    ends[last:] = [count] * (len(sizes) - last)  # whatever rounding has left over
    return list(itertools.pairwise((0, *ends)))


def chunks(span: Span) -> list[Span]:
    """Cut a span in chunks."""
    start, end = span
    return [(at, min(at + CHUNK, end)) for at in range(start, end, CHUNK)]


class Layout:
    """Where the elements lie.

    Args:
        counts: the number of elements of each tensor.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self._starts = [0, *itertools.accumulate(counts)]

    @property
    def total(self) -> int:
        """How many elements there are."""
        return self._starts[-1]

    def pieces(self, span: Span) -> Iterator[tuple[int, int, int]]:
        """Give a span as pieces of tensors: which one, from which element, up to which."""
        start, end = span
        number = bisect_right(self._starts, start) - 1
        while start < end:
            first, behind = self._starts[number : number + 2]
            stop = min(end, behind)
            if stop > start:
                yield number, start - first, stop - first
            start, number = stop, number + 1
