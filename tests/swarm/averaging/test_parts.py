import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.swarm.averaging import parts
from p2pnode.swarm.averaging.parts import Layout, chunks, shares, spans

bandwidths = st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0, 1e6]), min_size=1, max_size=16)


def slowest(found, given):
    """How long the slowest member takes, as the module's docstring has it."""
    others = len(given) - 2
    return max((1 + others * f) / b for f, b in zip(found, given, strict=True) if b)


@given(bandwidths.filter(any))
def test_shares_add_up_and_nobody_without_bandwidth_has_one(given):
    found = shares(given)
    assert sum(found) == pytest.approx(1)
    assert all(share >= 0 for share in found)
    assert all(not share for share, bandwidth in zip(found, given, strict=True) if not bandwidth)


def test_equals_have_equal_shares():
    assert shares([2.0] * 4) == pytest.approx([0.25] * 4)
    assert shares([1.0]) == [1.0]
    assert shares([3.0, 1.0]) == [0.75, 0.25]


def test_a_member_that_is_slow_as_it_is_has_no_share():
    assert shares([1.0, 1.0, 1.0, 0.1])[3] == 0
    assert shares([1.0, 1.0, 1.0, 0.9])[3] > 0


@given(bandwidths.filter(any).filter(lambda each: len(each) > 2), st.data())
def test_no_other_way_to_share_is_faster(given, data):
    found = shares(given)
    best = slowest(found, given)
    able = [at for at, bandwidth in enumerate(given) if bandwidth]
    one, other = data.draw(st.sampled_from(able)), data.draw(st.sampled_from(able))
    moved = data.draw(st.floats(0, 1)) * found[one]
    changed = list(found)
    changed[one] -= moved
    changed[other] += moved
    assert slowest(changed, given) >= best * (1 - 1e-9)


@given(bandwidths.filter(any), st.integers(0, 10_000))
def test_spans_cover_everything_once(given, count):
    found = spans(shares(given), count)
    assert found[0][0] == 0
    assert found[-1][1] == count
    assert all(one[1] == two[0] for one, two in itertools.pairwise(found))
    for (start, end), bandwidth in zip(found, given, strict=True):
        assert end >= start
        assert bandwidth or start == end


@given(st.integers(0, 100), st.integers(0, 5000))
def test_chunks_cover_a_span_once(start, size):
    found = chunks((start, start + size * 1000))
    assert sum(end - begin for begin, end in found) == size * 1000
    assert all(0 < end - begin <= parts.CHUNK for begin, end in found)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(found))


@given(st.lists(st.integers(0, 6), max_size=8), st.data())
def test_pieces_are_the_elements_of_a_span_in_order(counts, data):
    layout = Layout(counts)
    everything = [(number, at) for number, count in enumerate(counts) for at in range(count)]
    assert layout.total == len(everything)
    start = data.draw(st.integers(0, len(everything)))
    end = data.draw(st.integers(start, len(everything)))
    found = [
        (number, at)
        for number, first, last in layout.pieces((start, end))
        for at in range(first, last)
    ]
    assert found == everything[start:end]
