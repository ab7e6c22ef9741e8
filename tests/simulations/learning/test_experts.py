"""A stack of experts computes, gathers and steps as single ones would."""

import pytest
import torch
from torch import nn

from simulations.learning.experts import ExpertBank, StackedAdam, block_shapes

FEATURES = 3


def bank_of(chance, experts=5, update_inputs=4, update_steps=3):
    return ExpertBank(
        experts,
        FEATURES,
        learning_rate=1e-2,
        update_inputs=update_inputs,
        update_steps=update_steps,
        chance=chance(),
    )


class Block(nn.Module):
    """An expert as anybody would write it."""

    def __init__(self, flat):
        super().__init__()
        wide = 4 * FEATURES
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, wide),
            nn.LayerNorm(wide),
            nn.ReLU(),
            nn.Linear(wide, wide),
            nn.LayerNorm(wide),
            nn.ReLU(),
            nn.Linear(wide, FEATURES),
        )
        shapes = block_shapes(FEATURES)
        parts = flat.split([torch.Size(shape).numel() for shape in shapes])
        with torch.no_grad():
            for own, part, shape in zip(self.parameters(), parts, shapes, strict=True):
                given = part.view(shape)
                own.copy_(given.T if own.dim() == 2 else given[0])

    def forward(self, x):
        return x + self.layers(x)

    def flat_gradient(self):
        return torch.cat(
            [
                (each.grad.T if each.dim() == 2 else each.grad).flatten()
                for each in self.parameters()
            ]
        )


def test_the_stack_computes_and_differentiates_as_single_modules_do(chance):
    bank = bank_of(chance)
    inputs = torch.randn(9, FEATURES, generator=chance(1))
    experts = torch.tensor([4, 0, 4, 2, 2, 2, 0, 4, 4])
    outputs, use = bank.forward(inputs, experts)
    assert use.experts.tolist() == [0, 2, 4]
    wanted = torch.randn(9, FEATURES, generator=chance(2))
    (gradient,) = torch.autograd.grad((outputs * wanted).sum(), [use.weights])
    bank.gather(use, gradient)
    for number in range(5):
        mine = experts == number
        single = Block(bank.weights[number])
        torch.testing.assert_close(outputs[mine], single(inputs[mine]))
        if mine.any():
            (single(inputs[mine]) * wanted[mine]).sum().backward()
            torch.testing.assert_close(bank.gradients[number], single.flat_gradient())
        else:
            assert not bank.gradients[number].any()


def test_input_gradients_are_those_of_single_modules(chance):
    bank = bank_of(chance)
    inputs = torch.randn(4, FEATURES, generator=chance(1), requires_grad=True)
    outputs, _ = bank.forward(inputs, torch.tensor([1, 3, 1, 1]))
    (found,) = torch.autograd.grad(outputs.sum(), [inputs])
    singles = {number: Block(bank.weights[number]) for number in (1, 3)}
    stacked = torch.stack([singles[n](inputs[i]) for i, n in enumerate([1, 3, 1, 1])])
    (wanted,) = torch.autograd.grad(stacked.sum(), [inputs])
    torch.testing.assert_close(found, wanted)


def test_fresh_weights_are_spread_as_torch_s_own(chance):
    parts = bank_of(chance, experts=400).weights.split(
        [torch.Size(shape).numel() for shape in block_shapes(FEATURES)], dim=1
    )
    single = nn.Linear(FEATURES, 4 * FEATURES)
    bound = FEATURES**-0.5
    assert float(parts[0].abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(parts[1].abs().max()) == pytest.approx(bound, rel=0.01)
    assert single.weight.abs().max() <= bound
    assert (parts[2] == 1).all()
    assert (parts[3] == 0).all()


def test_rows_that_step_at_different_times_step_as_torch_s_amsgrad_does(chance):
    weights = torch.randn(4, 7, generator=chance())
    singles = [nn.Parameter(row.clone()) for row in weights]
    optimizers = [torch.optim.Adam([each], lr=1e-2, amsgrad=True) for each in singles]
    stacked = StackedAdam(weights, 1e-2)
    for rows in ([0, 1, 2], [2], [1, 3], [0, 1, 2, 3], [2, 3]):
        gradients = 10 * torch.randn(len(rows), 7, generator=chance(sum(rows) + len(rows)))
        stacked.step(torch.tensor(rows), gradients)
        for row, gradient in zip(rows, gradients, strict=True):
            singles[row].grad = gradient.clone()
            optimizers[row].step()
    assert stacked.steps.tolist() == [2, 3, 4, 3]
    torch.testing.assert_close(weights, torch.stack(list(singles)).detach(), rtol=1e-5, atol=1e-7)


def test_an_expert_steps_in_the_pass_after_the_one_that_gave_it_enough_inputs(chance):
    bank = bank_of(chance, update_inputs=4, update_steps=100)
    bank.gradients += 1.0
    bank.step_due()
    bank.count(torch.tensor([[0, 0], [0, 1]]))
    bank.step_due()  # three inputs are not enough
    assert bank.steps.tolist() == [0, 0, 0, 0, 0]
    bank.count(torch.tensor([0]))
    assert bank.steps[0] == 0  # it is looked at when a pass begins, not when one ends
    bank.step_due()
    assert bank.steps.tolist() == [1, 0, 0, 0, 0]
    assert not bank.gradients[0].any()
    assert bank.gradients[1].all()
    assert bank.inputs.tolist() == [0, 1, 0, 0, 0]
    assert bank.passes.tolist() == [0, 2, 0, 0, 0]


def test_an_expert_used_once_steps_after_its_share_of_passes(chance):
    bank = bank_of(chance, update_inputs=100, update_steps=3)
    bank.count(torch.tensor([2]))
    for _ in range(2):
        bank.step_due()
        assert bank.steps.tolist() == [0, 0, 0, 0, 0]
        bank.count(torch.tensor([4]))
    assert bank.passes.tolist() == [0, 0, 3, 0, 2]
    bank.step_due()
    assert bank.steps.tolist() == [0, 0, 1, 0, 0]
    bank.count(torch.tensor([], dtype=torch.int64))
    assert bank.passes.tolist() == [0, 0, 0, 0, 3]  # a rested expert counts no passes


def test_being_due_twice_over_is_one_step(chance):
    bank = bank_of(chance, update_inputs=2, update_steps=1)
    bank.count(torch.tensor([1] * 9))
    bank.step_due()
    bank.step_due()
    assert bank.steps.tolist() == [0, 1, 0, 0, 0]


def test_gradients_of_several_passes_are_summed(chance):
    bank = bank_of(chance)
    inputs = torch.randn(2, FEATURES, generator=chance(1))
    uses = [bank.forward(inputs, torch.tensor([1, 2]))[1] for _ in range(2)]
    for use in uses:
        bank.gather(use, torch.ones_like(use.weights))
    assert (bank.gradients[1:3] == 2).all()
    assert not bank.gradients[[0, 3, 4]].any()
