"""Which weights a peer has, so that peers can tell whether theirs are the same: pure.

A version is a number of steps and a *lineage*: at first a hash of the weights, and from then on a
hash over the ids of the split steps that were taken, one after the other. So peers that have taken
the same steps have the same version, although their processors may round the last bit otherwise.
Whatever else changes weights - a call that is not split, a state that is adopted - begins a new
lineage.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LINEAGE_BYTES: Final = 16
MAX_STEPS: Final = 2**53
_KEPT: Final = 64  # of one expert; calls ask for those of their own time only


@dataclass(frozen=True, slots=True)
class Version:
    """The weights of one expert at one peer.

    Attributes:
        steps: optimiser steps taken.
        lineage: 16 bytes that stand for how the weights came about.
    """

    steps: int
    lineage: bytes

    def follows(self, other: "Version") -> bool:
        """Whether it may be the other one with further steps, or is the other one."""
        return self == other or self.steps > other.steps

    def after(self, key: bytes) -> "Version":
        """Return the version after the split step of this key."""
        return Version(self.steps + 1, lineage_of(self.lineage + key))


def lineage_of(data: bytes) -> bytes:
    """Return the lineage that begins with some bytes."""
    return hashlib.blake2b(data, digest_size=LINEAGE_BYTES).digest()


def authoritative(versions: Iterable[Version], known: Version | None = None) -> Version:
    """Return the version that the others have to take over.

    It is the one that most peers have; among equally many, the one with more steps. So a peer that
    has gone its own way, or lies about its steps, moves nobody.

    Args:
        versions: of the peers, one each, and at least one.
        known: which one has seen to be the swarm's; those before it do not count, unless there are
            no others. For not all peers need have taken the last step.
    """
    counts = Counter(versions)
    if known is not None:
        later = {each: count for each, count in counts.items() if each.follows(known)}
        counts = Counter(later) or counts
    return max(counts, key=lambda each: (counts[each], each.steps, each.lineage))


class VersionLog:
    """The last versions of one expert here."""

    def __init__(self) -> None:
        self._lineages: OrderedDict[int, bytes] = OrderedDict()

    def at(self, steps: int) -> Version | None:
        """Return the version after so many steps, if it is known."""
        lineage = self._lineages.get(steps)
        return None if lineage is None else Version(steps, lineage)

    def receive(self, version: Version) -> None:
        """Take in what the expert's version is now."""
        if version.steps - 1 not in self._lineages:
            self._lineages.clear()
        self._lineages[version.steps] = version.lineage
        while len(self._lineages) > _KEPT:
            self._lineages.popitem(last=False)
