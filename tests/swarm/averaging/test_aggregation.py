import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.swarm.averaging.aggregation import aggregate
from p2pnode.swarm.averaging.group import CenteredClipping, Mean, Sum, TrimmedMean

ELEMENTS = 200
LIES = {
    "huge": lambda honest: torch.full((ELEMENTS,), 1e30),
    "opposite": lambda honest: -10 * sum(honest) / len(honest),
    "random": lambda honest: 100 * torch.randn(ELEMENTS),
    "zero": lambda honest: torch.zeros(ELEMENTS),
    "infinite": lambda honest: torch.full((ELEMENTS,), math.inf),
    "nan": lambda honest: torch.full((ELEMENTS,), math.nan),
    "a little": lambda honest: sum(honest) / len(honest) - 1.5 * torch.stack(honest).std(dim=0),
}
ROBUST = [TrimmedMean(0.3), CenteredClipping(), CenteredClipping(radius=2.0)]


def honest(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randn(ELEMENTS, generator=rng)
    return truth, [truth + 0.1 * torch.randn(ELEMENTS, generator=rng) for _ in range(count)]


def test_sums_and_means_weigh():
    given = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]
    assert aggregate(Sum(), given, [1.0, 2.0]).tolist() == [7.0, 14.0]
    assert aggregate(Mean(), given, [1.0, 3.0]).tolist() == [2.5, 5.0]


def test_what_is_given_is_not_changed():
    _, given = honest(5)
    before = [each.clone() for each in given]
    for aggregator in (Sum(), Mean(), *ROBUST):
        aggregate(aggregator, given, [1.0] * 5)
        assert all(map(torch.equal, given, before))


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("aggregator", ROBUST, ids=lambda each: each.name)
def test_liars_hardly_move_a_robust_mean(aggregator, lie):
    truth, given = honest(7)
    lies = [LIES[lie](given) for _ in range(3)]
    found = aggregate(aggregator, [*lies, *given], [1e9] * 3 + [1.0] * 7)
    noise = max(torch.linalg.vector_norm(each - truth) for each in given)
    assert torch.linalg.vector_norm(found - truth) < noise


def test_a_plain_mean_is_at_a_liars_mercy():
    truth, given = honest(9)
    found = aggregate(Mean(), [LIES["huge"](given), *given], [1.0] * 10)
    assert torch.linalg.vector_norm(found - truth) > 1e20


@pytest.mark.parametrize("aggregator", ROBUST, ids=lambda each: each.name)
def test_without_liars_robust_means_are_close_to_the_mean(aggregator):
    _, given = honest(10)
    found = aggregate(aggregator, given, [1.0] * 10)
    assert torch.linalg.vector_norm(found - sum(given) / 10) < 0.02 * math.sqrt(ELEMENTS)


numbers = st.floats(-1e6, 1e6, width=32)


@given(st.data())
def test_a_trimmed_mean_lies_between_honest_contributions(data):
    count = data.draw(st.integers(3, 12))
    share = data.draw(st.floats(0, 0.49))
    liars = TrimmedMean(share).left_out(count)
    honest = data.draw(st.lists(numbers, min_size=count - liars, max_size=count - liars))
    anything = st.floats(width=32)
    lies = data.draw(st.lists(anything, min_size=liars, max_size=liars))
    given = [torch.tensor([each]) for each in (*honest, *lies)]
    found = aggregate(TrimmedMean(share), given, [1.0] * count).item()
    slack = 1e-5 * max(map(abs, honest))
    assert min(honest) - slack <= found <= max(honest) + slack


@given(st.integers(1, 12), st.floats(0, 0.499))
def test_trimming_leaves_something_and_takes_its_share(count, share):
    left_out = TrimmedMean(share).left_out(count)
    assert count - 2 * left_out >= 1
    assert left_out >= min(share * count, (count - 1) // 2)


def test_a_liar_moves_centred_clipping_by_its_radius_at_most():
    _, given = honest(8)
    aggregator = CenteredClipping(radius=0.5, iterations=1)
    places = []
    for lie in (-1e30, 1e30):
        liar = torch.zeros(ELEMENTS)
        liar[0] = lie
        places.append(aggregate(aggregator, [*given, given[0], liar], [1.0] * 10))
    # The medians it begins with differ by one honest contribution's rank in one element.
    spread = (torch.stack(given)[:, 0].max() - torch.stack(given)[:, 0].min()).item()
    assert torch.linalg.vector_norm(places[0] - places[1]) <= 2 * 0.5 / 10 + spread


def test_a_parts_radius_is_its_share_of_the_whole():
    _, given = honest(8)
    liar = torch.full((ELEMENTS,), 1e30)
    whole = aggregate(CenteredClipping(radius=2.0), [*given, liar], [1.0] * 9)
    part = aggregate(CenteredClipping(radius=4.0), [*given, liar], [1.0] * 9, share=0.25)
    assert torch.equal(whole, part)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrimmedMean(0.5),
        lambda: TrimmedMean(-0.1),
        lambda: TrimmedMean(math.nan),
        lambda: CenteredClipping(radius=-1),
        lambda: CenteredClipping(radius=math.inf),
        lambda: CenteredClipping(iterations=0),
        lambda: CenteredClipping(iterations=101),
    ],
)
def test_parameters_out_of_range_are_refused(make):
    with pytest.raises(ConfigError):
        make()
