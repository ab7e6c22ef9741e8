"""Beam search: the experts with the best scores among those that are alive.

An expert at (u1, …, un) scores g1[u1] + … + gn[un]. Starting from the block, each step extends the
prefixes kept so far by every coordinate under which the index lists a live expert, and keeps the k
best for each sample. On a full grid that finds exactly the k best experts; where experts are
missing it may miss some, but never returns one that is not listed. Source: Ryabinin and Gusev,
Learning@home (2020), appendix B.

All samples of a batch share the look-ups: at most k per sample and step, in practice as many as
there are different prefixes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2pnode.swarm.lookup import ExpertDirectory

Scores = npt.NDArray[np.float32]


async def beam_search(
    directory: ExpertDirectory, run_id: str, prefix: str, scores: Sequence[Scores], k: int
) -> list[list[tuple[str, float]]]:
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
    names = [prefix]
    # The beam: for each sample up to k indices into `names`, and their scores; -inf is no prefix.
    beam = np.zeros((batch, 1), dtype=np.int64)
    totals = np.zeros((batch, 1), dtype=np.float64)
    for step in scores:
        size = step.shape[1]
        alive = np.zeros((len(names), size), dtype=bool)
        for row, children in enumerate(await directory.children_of(run_id, names)):
            alive[row, [coordinate for coordinate in children if coordinate < size]] = True
        extended = np.where(alive[beam], totals[:, :, None] + step[:, None, :], -np.inf)
        places = beam[:, :, None] * size + np.arange(size)
        beam, totals = _best(places.reshape(batch, -1), extended.reshape(batch, -1), k)
        used = np.unique(beam[totals > -np.inf])
        names = [f"{names[place // size]}.{place % size}" for place in used.tolist()]
        beam = np.minimum(np.searchsorted(used, beam), max(len(used) - 1, 0))
        if not names:
            return [[] for _ in range(batch)]
    return [
        [
            (names[index], total)
            for index, total in zip(indices, sums, strict=True)
            if total > -np.inf
        ]
        for indices, sums in zip(beam.tolist(), totals.tolist(), strict=True)
    ]


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
