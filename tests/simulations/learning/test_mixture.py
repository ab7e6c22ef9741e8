"""Who is chosen, who is dropped, and what that does to the mixture: both variants, exactly."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from simulations.learning.experts import ExpertBank
from simulations.learning.mixture import AS_PUBLISHED, TRAINED_GATE, Gate, Mixture

FEATURES, EXPERTS, K = 4, 6, 2


def gate_of(chance, variant):
    return Gate(FEATURES, EXPERTS, K, variant, chance())


def ranking(gate, inputs):
    """Return all experts of each sample, the best first, by the formula."""
    lengths = gate.keys.detach().pow(2).sum(dim=1, keepdim=True).sqrt()  # over the experts
    normed = functional.layer_norm(inputs, (FEATURES,))
    return (normed @ (gate.keys.detach() / lengths)).sort(dim=1, descending=True)


def no_failures(samples):
    return torch.zeros(samples, EXPERTS, dtype=torch.bool)


@pytest.fixture
def inputs(chance):
    """Five samples."""
    return torch.randn(5, FEATURES, generator=chance(3))


@pytest.mark.parametrize("variant", [AS_PUBLISHED, TRAINED_GATE])
def test_the_best_experts_are_chosen_by_keys_normalised_over_the_experts(chance, inputs, variant):
    gate = gate_of(chance, variant)
    choice = gate.choose(inputs, no_failures(5))
    scores, experts = ranking(gate, inputs)
    assert torch.equal(choice.experts, experts[:, :K])
    torch.testing.assert_close(choice.scores.detach(), scores[:, :K])
    torch.testing.assert_close(choice.weights().detach(), scores[:, :K].softmax(dim=1))
    assert choice.answered.all()


def test_as_published_a_failed_expert_is_replaced_by_the_next_best(chance, inputs):
    gate = gate_of(chance, AS_PUBLISHED)
    scores, experts = ranking(gate, inputs)
    failed = no_failures(5)
    failed[0, experts[0, 0]] = True
    failed[1, experts[1, 1]] = failed[1, experts[1, 2]] = True
    choice = gate.choose(inputs, failed)
    assert choice.experts[0].tolist() == experts[0, [1, 2]].tolist()
    assert choice.experts[1].tolist() == experts[1, [0, 3]].tolist()
    assert torch.equal(choice.experts[2:], experts[2:, :K])
    assert choice.answered.all()
    torch.testing.assert_close(choice.weights()[0].detach(), scores[0, [1, 2]].softmax(dim=0))


def test_with_a_trained_gate_a_failed_expert_is_dropped_and_the_others_share_its_part(
    chance, inputs
):
    gate = gate_of(chance, TRAINED_GATE)
    _, experts = ranking(gate, inputs)
    failed = no_failures(5)
    failed[0, experts[0, 0]] = True
    failed[1, experts[1, K]] = True  # was not chosen: nobody notices
    choice = gate.choose(inputs, failed)
    assert torch.equal(choice.experts, experts[:, :K])
    assert choice.answered.tolist() == [[False, True]] + [[True, True]] * 4
    assert choice.weights()[0].tolist() == [0, 1]


@pytest.mark.parametrize("variant", [AS_PUBLISHED, TRAINED_GATE])
def test_a_sample_that_nobody_answers_gets_zeros_and_no_nan_in_any_gradient(
    chance, inputs, variant
):
    gate = gate_of(chance, variant)
    failed = no_failures(5)
    failed[2] = True
    inputs.requires_grad_()
    choice = gate.choose(inputs, failed)
    weights = choice.weights()
    assert weights[2].tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(weights.pow(2).sum(), [inputs])
    assert torch.isfinite(gradient).all()
    assert not gradient[2].any()


def test_as_published_fewer_live_experts_than_k_share_the_mixture(chance, inputs):
    gate = gate_of(chance, AS_PUBLISHED)
    failed = ~no_failures(5)
    failed[:, 3] = False
    choice = gate.choose(inputs, failed)
    assert (choice.experts[:, 0] == 3).all()
    assert choice.weights().tolist() == [[1, 0]] * 5


def test_the_published_gate_is_frozen_and_the_other_one_is_trained(chance):
    assert not any(each.requires_grad for each in gate_of(chance, AS_PUBLISHED).parameters())
    assert all(each.requires_grad for each in gate_of(chance, TRAINED_GATE).parameters())


def mixture_of(chance, variant, failure_rate=0.0):
    bank = ExpertBank(
        EXPERTS,
        FEATURES,
        learning_rate=1e-2,
        update_inputs=2,
        update_steps=10,
        chance=chance(1),
    )
    return Mixture(gate_of(chance, variant), bank, failure_rate, chance(2))


def test_the_layer_mixes_what_the_chosen_experts_answer(chance, inputs):
    mixture = mixture_of(chance, TRAINED_GATE)
    choice = mixture.gate.choose(inputs, no_failures(5))
    parts = choice.weights()
    wanted = torch.zeros(5, FEATURES)
    for place in range(K):
        answers, _ = mixture.bank.forward(inputs, choice.experts[:, place])
        wanted += parts[:, place, None] * answers
    torch.testing.assert_close(mixture(inputs), wanted)


def test_only_training_counts_uses_and_lets_experts_step(chance, inputs):
    mixture = mixture_of(chance, AS_PUBLISHED)
    mixture.eval()
    for _ in range(3):
        mixture(inputs)
    assert not mixture.bank.inputs.any()
    mixture.train()
    mixture(inputs)
    assert int(mixture.bank.inputs.sum()) == 5 * K
    mixture.bank.gradients += 1.0
    mixture.eval()
    mixture(inputs)
    assert not mixture.bank.steps.any()
    mixture.train()
    mixture(inputs)
    assert mixture.bank.steps.any()


def test_failures_are_drawn_afresh_for_each_sample_and_pass_also_in_evaluation(chance):
    mixture = mixture_of(chance, AS_PUBLISHED, failure_rate=0.5).eval()
    alike = torch.randn(1, FEATURES, generator=chance(4)).repeat(64, 1)
    first, second = mixture(alike), mixture(alike)
    assert len(first.unique(dim=0)) > 10
    assert not torch.equal(first, second)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_as_many_calls_fail_as_the_rate_says(chance, rate):
    mixture = mixture_of(chance, TRAINED_GATE, failure_rate=rate)
    mixture(torch.randn(4000, FEATURES, generator=chance(5)))
    assert int(mixture.bank.inputs.sum()) == pytest.approx(4000 * K * (1 - rate), rel=0.02)


def test_as_published_failures_cost_no_answers(chance):
    mixture = mixture_of(chance, AS_PUBLISHED, failure_rate=0.1)
    mixture(torch.randn(1000, FEATURES, generator=chance(5)))
    # Five or six of six experts fail for one sample in 18,000.
    assert int(mixture.bank.inputs.sum()) == 1000 * K


def test_a_batch_that_nobody_answers_passes_as_zeros(chance, inputs):
    mixture = nn.Sequential(mixture_of(chance, TRAINED_GATE, failure_rate=1.0))
    assert not mixture(inputs).any()
    assert mixture[0].take_use() is None
