import pytest
import torch

from p2pnode.errors import ConfigError, SchemaError
from p2pnode.swarm.averaging.outer import OuterSettings, OuterState, outer_step


@pytest.fixture
def weights():
    rng = torch.Generator().manual_seed(0)
    return {"w": torch.randn(3, 4, generator=rng), "b": torch.randn(4, generator=rng)}


def trained(weights, seed):
    rng = torch.Generator().manual_seed(seed)
    return {
        name: each + 0.1 * torch.randn(each.shape, generator=rng) for name, each in weights.items()
    }


def averaged(members):
    return {name: sum(each[name] for each in members) / len(members) for name in members[0]}


def test_steps_are_those_of_torch_sgd_with_nesterov_momentum(weights):
    settings = OuterSettings()
    parameters = {name: each.clone().requires_grad_() for name, each in weights.items()}
    reference = torch.optim.SGD(parameters.values(), lr=0.7, momentum=0.9, nesterov=True)
    state = OuterState(anchor=weights)
    for step in range(4):
        average = averaged([trained(state.anchor, 10 * step + each) for each in range(3)])
        for name, each in parameters.items():
            each.grad = state.anchor[name] - average[name]
        reference.step()
        state = outer_step(state, average, settings)
        for name, each in parameters.items():
            torch.testing.assert_close(state.anchor[name], each.detach())


def test_without_momentum_and_at_rate_one_the_step_averages_weights(weights):
    average = averaged([trained(weights, each) for each in range(3)])
    state = OuterState(anchor=weights)
    after = outer_step(state, average, OuterSettings(learning_rate=1, momentum=0))
    for name in weights:
        torch.testing.assert_close(after.anchor[name], average[name])


def test_nothing_that_is_given_is_changed(weights):
    before = {name: each.clone() for name, each in weights.items()}
    state = OuterState(anchor=weights)
    for _ in range(2):
        average = trained(weights, 1)
        kept = {name: each.clone() for name, each in average.items()}
        momentum = {name: each.clone() for name, each in state.momentum.items()}
        after = outer_step(state, average, OuterSettings())
        assert all(torch.equal(average[name], each) for name, each in kept.items())
        assert all(torch.equal(state.momentum[name], each) for name, each in momentum.items())
        state = after
    assert all(torch.equal(weights[name], each) for name, each in before.items())


def test_weights_keep_their_dtype_and_the_momentum_its_precision(weights):
    state = OuterState(anchor={name: each.bfloat16() for name, each in weights.items()})
    after = outer_step(state, trained(state.anchor, 1), OuterSettings())
    assert {each.dtype for each in after.anchor.values()} == {torch.bfloat16}
    assert {each.dtype for each in after.momentum.values()} == {torch.float32}


@pytest.mark.parametrize("average", [{}, {"w": torch.zeros(3, 4), "b": torch.zeros(5)}])
def test_what_is_not_of_the_weights_is_refused(weights, average):
    with pytest.raises(SchemaError):
        outer_step(OuterState(anchor=weights), average, OuterSettings())


@pytest.mark.parametrize("values", [{"learning_rate": 0}, {"momentum": 1}, {"momentum": -0.1}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigError):
        OuterSettings(**values)
