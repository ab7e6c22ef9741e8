"""Beam search: the experts with the best scores among those that are alive.

An expert at (u1, …, un) scores g1[u1] + … + gn[un]. Starting from the block, each step extends the
prefixes kept so far by every coordinate under which the index lists something alive, and keeps the
k best for each sample. On a full grid that finds exactly the k best experts; where experts are
missing it may miss some, but never returns one that is not listed. Source: Ryabinin and Gusev,
Learning@home (2020), appendix B.

All samples of a batch share the look-ups: at most k per sample and step, in practice as many as
there are different prefixes. A step's look-ups run at once, so that a search takes the time of as
many as the grid has dimensions. A node that knows nothing yet takes the time of one: it asks for
the prefixes with the best scores together with the block, and on a full grid it needs no others.

A branch may outlive what was below it by a few seconds. Where one is found empty, the search is
done again without it, a bounded number of times, and asks only for what it did not ask for before.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.places import Kind

MAX_PASSES: Final = 3

Scores = npt.NDArray[np.float32]
_Found = list[list[tuple[str, float]]]


async def beam_search(
    directory: ExpertDirectory, run_id: str, prefix: str, scores: Sequence[Scores], k: int
) -> _Found:
    """Find up to `k` live experts under `prefix` for each sample.

    Args:
        directory: says who is alive.
        run_id: the run's id.
        prefix: the block's name.
        scores: for each dimension of the grid an array of shape [batch, size]; minus infinity
            leaves a coordinate out.
        k: how many experts a sample gets at most.

    Returns:
        For each sample its experts' names (without the run) and scores, the best first; equal
        scores are in order of coordinates.

    Raises:
        ValueError: the scores' shapes do not fit each other, or a score is not a number.
        NoPeersError: the node knows nobody to ask.
    """
    batch = _check(scores, k)
    if not batch:
        return []
    if not directory.knows(run_id, _kind(scores, 0), prefix, scores[0].shape[1]):
        for depth, likely in enumerate(_likely(prefix, scores, k), start=1):
            width = scores[depth].shape[1]
            directory.prefetch(run_id, _kind(scores, depth), likely, width)
    barren: set[str] = set()
    for _ in range(MAX_PASSES):
        known = len(barren)
        beam = _Beam(prefix, batch, k)
        await _search(directory, run_id, beam, scores, barren)
        if len(barren) == known:
            break
    return beam.experts()


async def list_experts(
    directory: ExpertDirectory, run_id: str, prefix: str, grid: Sequence[int]
) -> list[str]:
    """List all live experts of a grid by name (without the run), in order of coordinates.

    Raises:
        NoPeersError: the node knows nobody to ask.
    """
    names = [prefix]
    for depth, size in enumerate(grid):
        kind = Kind.BRANCHES if depth < len(grid) - 1 else Kind.HOSTS
        listings = await directory.listings(run_id, kind, names, size)
        names = [
            f"{name}.{coordinate}"
            for name, listing in zip(names, listings, strict=True)
            for coordinate in sorted(listing)
            if coordinate < size
        ]
    return names


async def _search(
    directory: ExpertDirectory,
    run_id: str,
    beam: "_Beam",
    scores: Sequence[Scores],
    barren: set[str],
) -> None:
    """Take the beam to its experts, passing over the prefixes in `barren`; adds empty ones."""
    for depth, step in enumerate(scores):
        size = step.shape[1]
        listings = await directory.listings(run_id, _kind(scores, depth), beam.names, size)
        alive = np.zeros((len(beam.names), size), dtype=bool)
        for row, (name, listing) in enumerate(zip(beam.names, listings, strict=True)):
            alive[row, [coordinate for coordinate in listing if coordinate < size]] = True
            if depth and not alive[row].any():
                barren.add(name)
            for coordinate in listing if barren else ():
                if coordinate < size and f"{name}.{coordinate}" in barren:
                    alive[row, coordinate] = False
        beam.extend(step, alive)
        if not beam.names:
            break


def _likely(prefix: str, scores: Sequence[Scores], k: int) -> Iterator[list[str]]:
    """Name the prefixes that a search keeps if all is alive, those of most samples first."""
    beam = _Beam(prefix, len(scores[0]), k)
    for step in scores[:-1]:
        beam.extend(step)
        yield beam.names_by_use()


class _Beam:
    """For each sample up to k prefixes, as indices into `names`, and their scores."""

    def __init__(self, prefix: str, batch: int, k: int) -> None:
        self.names = [prefix]
        self._k = k
        self._kept = np.zeros((batch, 1), dtype=np.int64)
        self._totals = np.zeros((batch, 1), dtype=np.float64)  # minus infinity is no prefix

    def extend(self, step: Scores, alive: npt.NDArray[np.bool_] | None = None) -> None:
        """Put every (living) coordinate behind every prefix, and keep the k best of each sample.

        Args:
            step: the scores of the next dimension, [batch, size].
            alive: which coordinates live below each of `names`, [names, size]; by default, all.
        """
        size = step.shape[1]
        totals = self._totals[:, :, None] + step[:, None, :]
        if alive is not None:
            totals = np.where(alive[self._kept], totals, -np.inf)
        places = self._kept[:, :, None] * size + np.arange(size)
        batch = len(step)
        flat = (batch, -1)
        kept, self._totals = _best(places.reshape(flat), totals.reshape(flat), self._k)
        used = np.unique(kept[self._totals > -np.inf])
        self.names = [f"{self.names[place // size]}.{place % size}" for place in used.tolist()]
        self._kept = np.minimum(np.searchsorted(used, kept), max(len(used) - 1, 0))

    def names_by_use(self) -> list[str]:
        """List the prefixes, those that most samples keep first."""
        uses = np.bincount(self._kept[self._totals > -np.inf], minlength=len(self.names))
        return [self.names[index] for index in np.argsort(-uses, kind="stable").tolist()]

    def experts(self) -> _Found:
        """Return what each sample has kept, and the scores."""
        return [
            [
                (self.names[index], total)
                for index, total in zip(indices, totals, strict=True)
                if total > -np.inf
            ]
            for indices, totals in zip(self._kept.tolist(), self._totals.tolist(), strict=True)
        ]


def _kind(scores: Sequence[Scores], depth: int) -> Kind:
    return Kind.BRANCHES if depth < len(scores) - 1 else Kind.HOSTS


def _best(
    places: npt.NDArray[np.int64], totals: npt.NDArray[np.float64], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Keep the k highest totals of each row, in falling order; ties go to the smaller place."""
    order = np.lexsort((places, -totals), axis=-1)[:, :k]
    return np.take_along_axis(places, order, -1), np.take_along_axis(totals, order, -1)


def _check(scores: Sequence[Scores], k: int) -> int:
    if k < 1:
        raise ValueError("beam search keeps at least one expert")
    if not scores or any(step.ndim != 2 or len(step) != len(scores[0]) for step in scores):
        raise ValueError("scores must be one [batch, size] array for each dimension of the grid")
    if any(np.isnan(step).any() or np.isposinf(step).any() for step in scores):
        raise ValueError("a gate's score is not a number; has the training diverged?")
    return len(scores[0])
