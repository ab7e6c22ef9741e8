import itertools
import math

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from p2pnode.errors import NoPeersError
from p2pnode.swarm.beam import MAX_PASSES, beam_search, list_experts
from p2pnode.swarm.places import Kind


class Grid:
    """A directory of a fixed set of experts."""

    def __init__(self, positions, ghosts=(), *, known=True):
        self.positions = set(positions)
        self.ghosts = set(ghosts)  # experts that died, whose branches are still listed
        self.known = known
        self.asked = []
        self.prefetched = []

    async def listings(self, run_id, kind, prefixes, width):
        assert run_id == "open:digits"
        self.asked.append(list(prefixes))
        listed = self.positions | self.ghosts if kind is Kind.BRANCHES else self.positions
        return [self._below(prefix, listed) for prefix in prefixes]

    def knows(self, _run_id, _kind, _prefix, _width):
        return self.known

    def prefetch(self, run_id, kind, prefixes, width):
        assert run_id == "open:digits"
        self.prefetched.append((kind, list(prefixes), width))

    def _below(self, prefix, listed):
        at = tuple(int(part) for part in prefix.split(".")[1:])
        depth = len(at)
        return {position[depth]: [] for position in listed if position[:depth] == at}


def _brute_force(grid, scores, sample, k):
    """Score every expert alive; the best first, ties by coordinates."""
    shape = [step.shape[1] for step in scores]
    found = []
    for position in sorted(grid.positions):
        if all(u < size for u, size in zip(position, shape, strict=True)):
            total = 0.0
            for step, u in zip(scores, position, strict=True):
                total += float(step[sample, u])
            if total > -math.inf:
                found.append((".".join(("ffn0", *map(str, position))), total))
    return sorted(found, key=lambda each: -each[1])[:k]


async def _search(grid, scores, k):
    return await beam_search(grid, "open:digits", "ffn0", scores, k)


def _run(grid, scores, k):
    return trio.run(_search, grid, scores, k)


def _full(shape):
    return Grid(itertools.product(*map(range, shape)))


# Small whole numbers: sums are exact, and ties are many.
values = st.integers(-3, 3).map(float)


@st.composite
def grids(draw):
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    batch = draw(st.integers(1, 3))
    scores = [draw(npst.arrays(np.float32, (batch, size), elements=values)) for size in shape]
    positions = list(itertools.product(*map(range, shape)))
    alive = draw(st.sets(st.sampled_from(positions)))
    return scores, Grid(alive), draw(st.integers(1, 5))


@settings(deadline=None)
@given(grids())
def test_on_a_full_grid_it_equals_brute_force(case):
    scores, _, k = case
    grid = _full([step.shape[1] for step in scores])
    found = _run(grid, scores, k)
    for sample, experts in enumerate(found):
        expected = _brute_force(grid, scores, sample, k)
        assert [total for _, total in experts] == [total for _, total in expected]
        assert len({name for name, _ in experts}) == len(experts)


@settings(deadline=None)
@given(grids())
def test_a_wide_beam_equals_brute_force_on_any_grid(case):
    scores, grid, _ = case
    found = _run(grid, scores, 64)
    for sample, experts in enumerate(found):
        assert experts == _brute_force(grid, scores, sample, 64)


@settings(deadline=None)
@given(grids())
def test_only_live_experts_are_returned_with_their_true_scores(case):
    scores, grid, k = case
    found = _run(grid, scores, k)
    for sample, experts in enumerate(found):
        everybody = dict(_brute_force(grid, scores, sample, 10**6))
        assert len(experts) <= k
        assert all(everybody[name] == total for name, total in experts)
        totals = [total for _, total in experts]
        assert totals == sorted(totals, reverse=True)
        assert bool(experts) == bool(everybody)


async def test_the_batch_shares_its_lookups():
    grid = _full([4, 4])
    scores = [np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32) for _ in range(2)]
    await _search(grid, scores, 2)
    assert grid.asked[0] == ["ffn0"]
    assert sorted(grid.asked[1]) == ["ffn0.0", "ffn0.1", "ffn0.2", "ffn0.3"]
    assert len(grid.asked) == 2


async def test_a_node_that_knows_nothing_asks_at_once_for_what_it_will_probably_need():
    grid = _full([4, 5, 3])
    grid.known = False
    scores = [
        np.array([[0, 3, 2, 1], [0, 3, 2, 1], [9, 3, 0, 0]], np.float32),
        np.array([[1, 0, 0, 0, 0]] * 3, np.float32),
        np.zeros((3, 3), np.float32),
    ]
    await _search(grid, scores, 2)
    assert grid.prefetched == [
        (Kind.BRANCHES, ["ffn0.1", "ffn0.2", "ffn0.0"], 5),
        (Kind.HOSTS, ["ffn0.1.0", "ffn0.1.1", "ffn0.0.0", "ffn0.0.1"], 3),
    ]
    asked = {name for names in grid.asked for name in names}
    assert asked - {"ffn0"} <= {name for _, names, _ in grid.prefetched for name in names}
    grid.known = True
    grid.prefetched.clear()
    await _search(grid, scores, 2)
    assert grid.prefetched == []


async def test_branches_that_turn_out_empty_are_searched_around():
    ghosts = set(itertools.product([1], range(4)))  # the best row of all died lately
    grid = Grid(set(itertools.product(range(4), repeat=2)) - ghosts, ghosts)
    scores = [np.array([[0, 9, 2, 1]], np.float32), np.array([[4, 3, 2, 1]], np.float32)]
    assert await _search(grid, scores, 2) == [[("ffn0.2.0", 6.0), ("ffn0.2.1", 5.0)]]
    assert await _search(grid, scores, 1) == [[("ffn0.2.0", 6.0)]]


@settings(deadline=None)
@given(grids(), st.data())
def test_empty_branches_never_add_experts_and_the_search_is_bounded(case, data):
    scores, grid, k = case
    everything = _full([step.shape[1] for step in scores]).positions
    grid.ghosts = data.draw(st.sets(st.sampled_from(sorted(everything))))
    for sample, experts in enumerate(_run(grid, scores, k)):
        everybody = dict(_brute_force(grid, scores, sample, 10**6))
        assert all(everybody[name] == total for name, total in experts)
    assert len(grid.asked) <= MAX_PASSES * len(scores)


@settings(deadline=None)
@given(grids())
def test_listing_a_grid_lists_all_its_experts_and_no_others(case):
    scores, grid, _ = case
    shape = [step.shape[1] for step in scores]
    names = trio.run(list_experts, grid, "open:digits", "ffn0", shape)
    expected = [".".join(("ffn0", *map(str, each))) for each in sorted(grid.positions)]
    assert names == expected


async def test_minus_infinity_leaves_a_coordinate_out():
    scores = [np.array([[0.0, -np.inf]], dtype=np.float32), np.zeros((1, 2), dtype=np.float32)]
    assert await _search(_full([2, 2]), scores, 4) == [[("ffn0.0.0", 0.0), ("ffn0.0.1", 0.0)]]
    nothing = [np.full((2, 2), -np.inf, dtype=np.float32)] * 2
    assert await _search(_full([2, 2]), nothing, 4) == [[], []]


async def test_experts_beyond_the_gates_grid_are_ignored():
    scores = [np.zeros((1, 2), dtype=np.float32)]
    assert await _search(Grid([(1,), (7,)]), scores, 4) == [[("ffn0.1", 0.0)]]


async def test_an_empty_grid_gives_nothing_and_an_empty_batch_too():
    scores = [np.zeros((3, 4), dtype=np.float32)] * 2
    assert await _search(Grid([]), scores, 4) == [[], [], []]
    assert await _search(_full([4, 4]), [step[:0] for step in scores], 4) == []


@pytest.mark.parametrize(
    ("scores", "k"),
    [
        ([], 1),
        ([np.zeros((2, 2))], 0),
        ([np.zeros(2)], 1),
        ([np.zeros((2, 2)), np.zeros((3, 2))], 1),
        ([np.array([[0.0, np.nan]])], 1),
        ([np.array([[0.0, np.inf]])], 1),
    ],
)
async def test_scores_that_do_not_fit_are_refused(scores, k):
    with pytest.raises(ValueError, match=r"scores|expert|number"):
        await _search(_full([2, 2]), scores, k)


async def test_over_the_real_directory_dead_experts_are_never_chosen(swarm_network, autojump_clock):
    async with swarm_network(delay=lambda _a, _b: 0.01) as net:
        nodes = []
        for number in range(4):
            nodes.append(await net.start(nodes[:1], experts=[f"ffn0.{number}.[0:4]"]))
        trainer = await net.start(nodes[:1], server=False)
        rng = np.random.default_rng(1)
        scores = [rng.normal(size=(16, 4)).astype(np.float32) for _ in range(2)]
        grid = _full([4, 4])
        await trio.sleep(1)
        found = await beam_search(trainer.directory, "open:digits", "ffn0", scores, 4)
        assert found == [_brute_force(grid, scores, sample, 4) for sample in range(16)]
        await nodes[2].crash()
        trainer.directory.mark_failed(nodes[2].peer_id)
        grid.positions = {position for position in grid.positions if position[0] != 2}
        found = await beam_search(trainer.directory, "open:digits", "ffn0", scores, 4)
        assert found == [_brute_force(grid, scores, sample, 4) for sample in range(16)]


async def test_without_peers_it_says_so(swarm_network, autojump_clock):
    async with swarm_network() as net:
        trainer = await net.start(server=False)
        with pytest.raises(NoPeersError):
            await beam_search(
                trainer.directory, "open:digits", "ffn0", [np.zeros((1, 2), np.float32)], 1
            )
