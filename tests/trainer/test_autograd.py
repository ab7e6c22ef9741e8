"""The formulas of the mixture, against plain torch on the same experts."""

import gc
import weakref

import pytest
import torch
from torch import nn

from p2pnode.trainer.autograd import Answered, Group, call_expert, mix_experts
from p2pnode.trainer.sources import Answer

SAMPLES, FEATURES, EXPERTS = 6, 5, 4
# Which experts each sample chose, best first; every expert has some samples.
CHOSEN = [[0, 1, 2], [1, 2, 3], [3, 0, 1], [2, 3, 0], [0, 2, 3], [1, 3, 2]]


@pytest.fixture
def experts():
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh()).double() for _ in range(EXPERTS)
    ]


@pytest.fixture
def tensors():
    torch.manual_seed(1)
    inputs = torch.randn(SAMPLES, FEATURES, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(SAMPLES, 3, dtype=torch.float64, requires_grad=True)
    return inputs, scores


def answered_by(experts, inputs, forward_fails=(), backward_fails=()):
    groups = []
    for expert in range(EXPERTS):
        pairs = [(s, row.index(expert)) for s, row in enumerate(CHOSEN) if expert in row]
        samples, places = torch.tensor(pairs).T
        groups.append(Group(name=f"ffn.{expert}", samples=samples, places=places))

    def number(group):
        return int(group.name.partition(".")[2])

    def backward(groups, inputs, gradients, answers):
        found = []
        for group, gradient, answer in zip(groups, gradients, answers, strict=True):
            leaf = inputs[0][group.samples].detach().requires_grad_()
            with torch.enable_grad():
                outputs = experts[number(group)](leaf)
            assert answer.by == group.name
            outputs.backward(gradient)
            found.append(None if number(group) in backward_fails else (leaf.grad,))
        return found

    like = torch.empty(0, FEATURES, dtype=torch.float64)
    groups = [group for group in groups if number(group) not in forward_fails]
    with torch.no_grad():
        answers = [
            Answer(tensors=(experts[number(group)](inputs[group.samples]),), by=group.name)
            for group in groups
        ]
    return Answered(groups=groups, answers=answers, backward=backward, like=like)


def plain_mixture(experts, inputs, scores, left_out=()):
    """The same in one expression; `left_out` experts take no part."""
    rows = []
    for sample, row in enumerate(CHOSEN):
        kept = [(place, e) for place, e in enumerate(row) if e not in left_out]
        weights = torch.softmax(torch.stack([scores[sample, place] for place, _ in kept]), 0)
        outputs = torch.stack([experts[e](inputs[sample]) for _, e in kept])
        rows.append((weights[:, None] * outputs).sum(0))
    return torch.stack(rows)


def gradients_of(outputs, experts, *leaves):
    for expert in experts:
        expert.zero_grad()
    loss = (outputs * torch.linspace(-1, 2, FEATURES)).sin().sum()
    return [*torch.autograd.grad(loss, leaves, retain_graph=True)]


@pytest.mark.parametrize("failing", [(), (0,), (1, 3)])
def test_mixture_and_gradients_are_those_of_softmax_over_the_responders(experts, tensors, failing):
    inputs, scores = tensors
    mixed = mix_experts(answered_by(experts, inputs, forward_fails=failing), scores, [inputs])
    plain = plain_mixture(experts, inputs, scores, failing)
    torch.testing.assert_close(mixed, plain)
    ours = gradients_of(mixed, experts, inputs, scores)
    theirs = gradients_of(plain, experts, inputs, scores)
    torch.testing.assert_close(ours, theirs)


def test_experts_get_the_gradients_of_the_plain_mixture(experts, tensors):
    inputs, scores = tensors
    weights = torch.linspace(-1, 2, FEATURES)
    (mix_experts(answered_by(experts, inputs), scores, [inputs]) * weights).sin().sum().backward()
    ours = [[p.grad.clone() for p in expert.parameters()] for expert in experts]
    for expert in experts:
        expert.zero_grad()
    (plain_mixture(experts, inputs, scores) * weights).sin().sum().backward()
    theirs = [[p.grad for p in expert.parameters()] for expert in experts]
    torch.testing.assert_close(ours, theirs)


def test_gradients_pass_gradcheck(experts, tensors):
    inputs, scores = tensors
    assert torch.autograd.gradcheck(
        lambda x, s: mix_experts(answered_by(experts, x), s, [x]), (inputs, scores)
    )


@pytest.mark.parametrize("failing", [(0,), (1, 2)])
def test_experts_that_fail_in_backward_are_dropped_from_the_average(experts, tensors, failing):
    inputs, scores = tensors
    mixed = mix_experts(answered_by(experts, inputs, backward_fails=failing), scores, [inputs])
    upstream = torch.randn(SAMPLES, FEATURES, dtype=torch.float64)
    ours = torch.autograd.grad(mixed, (inputs, scores), upstream)
    survivors = plain_mixture(experts, inputs, scores, failing)
    theirs = torch.autograd.grad(survivors, (inputs, scores), upstream)
    torch.testing.assert_close(ours, theirs)


def test_a_sample_without_survivors_gets_no_gradient(experts, tensors):
    inputs, scores = tensors
    mixed = mix_experts(answered_by(experts, inputs, backward_fails=(0, 1, 2)), scores, [inputs])
    input_gradient, score_gradient = torch.autograd.grad(mixed.sum(), (inputs, scores))
    assert not input_gradient[0].any()
    assert not score_gradient.any()  # one survivor has all the weight, whatever its score
    assert input_gradient[1].any()


def test_without_any_answer_the_output_is_zero(experts, tensors):
    inputs, scores = tensors
    mixed = mix_experts(
        answered_by(experts, inputs, forward_fails=range(EXPERTS)), scores, [inputs]
    )
    assert mixed.shape == (SAMPLES, FEATURES)
    assert not mixed.any()
    mixed.sum().backward()
    assert not inputs.grad.any()
    assert not scores.grad.any()


def test_very_unequal_scores_stay_finite(experts, tensors):
    inputs, _ = tensors
    scores = torch.tensor([[0.0, -2000.0, 3000.0]] * SAMPLES, dtype=torch.float64)
    scores.requires_grad_()
    plan = answered_by(experts, inputs, backward_fails=(0,))
    mix_experts(plan, scores, [inputs]).sum().backward()
    assert torch.isfinite(inputs.grad).all()
    assert torch.isfinite(scores.grad).all()


def test_integer_inputs_get_no_gradient(experts):
    numbers = torch.arange(3)
    floats = torch.randn(3, 2, requires_grad=True)
    seen = []

    def forward(inputs):
        return Answer(tensors=(inputs[1] * inputs[0][:, None], inputs[0] + 1))

    def backward(inputs, gradients, _answer):
        seen.append([each.dtype for each in gradients])
        return [torch.zeros_like(inputs[0]), gradients[0] * inputs[0][:, None]]

    product, following = call_expert(forward, backward, [numbers, floats])
    assert not following.requires_grad
    product.sum().backward()
    torch.testing.assert_close(floats.grad, numbers[:, None].expand(3, 2).float())
    assert seen == [[torch.float32, torch.int64]]


def test_an_expert_is_in_the_graph_even_if_no_input_is(experts):
    called = []

    def backward(inputs, gradients, _answer):
        called.append(len(inputs))
        return gradients

    (outputs,) = call_expert(
        lambda inputs: Answer(tensors=(inputs[0] * 1,)), backward, [torch.ones(2, 2)]
    )
    assert outputs.requires_grad
    outputs.sum().backward()
    assert called == [1]


def test_outputs_are_freed_with_the_last_reference_to_them():
    answered = []

    def forward(inputs):
        answered.append(weakref.ref(output := inputs[0] * 2))
        return Answer(tensors=(output,))

    def backward(_inputs, gradients, answer):
        assert answer.tensors == ()
        return gradients

    gc.disable()  # a cycle would keep every batch until the collector comes
    try:
        for back in (False, True):
            (outputs,) = call_expert(forward, backward, [torch.ones(2, 2)])
            if back:
                outputs.sum().backward()
            assert answered[-1]() is not None
            del outputs
            assert answered[-1]() is None
    finally:
        gc.enable()


def test_a_graph_that_is_kept_steps_again_and_a_used_one_calls_nobody():
    called = []

    def backward(_inputs, gradients, _answer):
        called.append(gradients)
        return gradients

    leaf = torch.ones(2, 2, requires_grad=True)
    (outputs,) = call_expert(lambda inputs: Answer(tensors=(inputs[0] * 1,)), backward, [leaf])
    outputs.sum().backward(retain_graph=True)
    outputs.sum().backward()
    assert len(called) == 2
    with pytest.raises(RuntimeError, match="second time"):
        outputs.sum().backward()
    assert len(called) == 2


def test_second_derivatives_are_refused(experts, tensors):
    inputs, scores = tensors
    outputs = mix_experts(answered_by(experts, inputs), scores, [inputs])
    (gradient,) = torch.autograd.grad(outputs.pow(2).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_inference_mode_makes_no_graph(experts, tensors):
    inputs, scores = tensors
    with torch.inference_mode():
        assert not mix_experts(answered_by(experts, inputs), scores, [inputs]).requires_grad
