import pytest
import torch

from p2pnode.errors import CheckpointError, ConfigError, SchemaError
from p2pnode.swarm.averaging.outer import OuterSettings, OuterState, outer_step, pseudo_gradient


@pytest.fixture
def weights():
    rng = torch.Generator().manual_seed(0)
    return {"w": torch.randn(3, 4, generator=rng), "b": torch.randn(4, generator=rng)}


def trained(weights, seed):
    rng = torch.Generator().manual_seed(seed)
    return {
        name: each + 0.1 * torch.randn(each.shape, generator=rng) for name, each in weights.items()
    }


def averaged(state, members):
    given = [pseudo_gradient(state, each) for each in members]
    return [sum(each) / len(given) for each in zip(*given, strict=True)]


def test_steps_are_those_of_torch_sgd_with_nesterov_momentum(weights):
    settings = OuterSettings()
    parameters = {name: each.clone().requires_grad_() for name, each in weights.items()}
    reference = torch.optim.SGD(parameters.values(), lr=0.7, momentum=0.9, nesterov=True)
    state = OuterState.begin(weights)
    for step in range(4):
        gradients = averaged(state, [trained(state.anchor, 10 * step + each) for each in range(3)])
        for name, gradient in zip(sorted(weights), gradients, strict=True):
            parameters[name].grad = gradient
        reference.step()
        state = outer_step(state, gradients, settings)
        for name, each in parameters.items():
            torch.testing.assert_close(state.anchor[name], each.detach())


def test_without_momentum_and_at_rate_one_the_step_averages_weights(weights):
    state = OuterState.begin(weights)
    members = [trained(weights, each) for each in range(3)]
    after = outer_step(state, averaged(state, members), OuterSettings(learning_rate=1, momentum=0))
    for name in weights:
        wanted = sum(each[name] for each in members) / 3
        torch.testing.assert_close(after.anchor[name], wanted)


def test_nothing_that_is_given_is_changed(weights):
    before = {name: each.clone() for name, each in weights.items()}
    state = OuterState.begin(weights)
    for _ in range(2):
        gradients = averaged(state, [trained(weights, 1)])
        kept = [each.clone() for each in gradients]
        momentum = {name: each.clone() for name, each in state.momentum.items()}
        after = outer_step(state, gradients, OuterSettings())
        assert all(map(torch.equal, gradients, kept))
        assert all(torch.equal(state.momentum[name], each) for name, each in momentum.items())
        state = after
    assert all(torch.equal(weights[name], each) for name, each in before.items())


def test_a_state_goes_on_from_a_checkpoint_as_if_it_had_never_ended(weights):
    state = OuterState.begin(weights)
    state = outer_step(state, averaged(state, [trained(weights, 1)]), OuterSettings())
    stored = state.to_tensors() | {"module.w": torch.zeros(2)}
    again = OuterState.from_tensors(stored)
    gradients = averaged(state, [trained(weights, 2)])
    one, other = (outer_step(each, gradients, OuterSettings()) for each in (state, again))
    for name in weights:
        assert torch.equal(one.anchor[name], other.anchor[name])
        assert torch.equal(one.momentum[name], other.momentum[name])


def test_weights_keep_their_dtype_and_the_momentum_its_precision(weights):
    state = OuterState.begin({name: each.bfloat16() for name, each in weights.items()})
    after = outer_step(state, averaged(state, [trained(state.anchor, 1)]), OuterSettings())
    assert {each.dtype for each in after.anchor.values()} == {torch.bfloat16}
    assert {each.dtype for each in after.momentum.values()} == {torch.float32}


def test_what_is_not_of_the_weights_is_refused(weights):
    state = OuterState.begin(weights)
    with pytest.raises(SchemaError):
        pseudo_gradient(state, {"w": weights["w"]})
    with pytest.raises(SchemaError):
        outer_step(state, [torch.zeros(2)], OuterSettings())
    with pytest.raises(CheckpointError):
        OuterState.from_tensors({"outer.anchor.w": weights["w"], "outer.momentum.b": weights["b"]})


@pytest.mark.parametrize("values", [{"learning_rate": 0}, {"momentum": 1}, {"momentum": -0.1}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigError):
        OuterSettings(**values)
