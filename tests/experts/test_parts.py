import dataclasses

import pytest
import torch
from torch import nn

from p2pnode.errors import ExpertFailedError
from p2pnode.experts.backend import build_backend
from p2pnode.experts.parts import gradient_bytes, no_gradients, part_gradients, step_with
from p2pnode.wire.uids import Uid

UID = Uid("open:r", "ffn.0")


def test_the_sum_of_parts_steps_an_expert_as_the_whole_batch_does(settings):
    settings = dataclasses.replace(settings, clip_grad_norm=0.5)
    whole, split = build_backend(UID, settings), build_backend(UID, settings)
    for _ in range(3):
        x, g = torch.randn(7, 8), torch.randn(7, 8)
        answer = whole.backward([x], [g])[0]
        first, kept = part_gradients(split, [x[:2]], [g[:2]], [])
        assert split.steps + 1 == whole.steps  # nothing is stepped yet
        second, total = part_gradients(split, [x[2:]], [g[2:]], kept)
        step_with(split, total, 7)
        torch.testing.assert_close(torch.cat([*first, *second]), answer)
    assert (split.steps, split.rows) == (whole.steps, whole.rows) == (3, 21)
    for one, two in zip(whole.parameters, split.parameters, strict=True):
        torch.testing.assert_close(one, two)


def test_no_rows_give_zeros_of_the_size_of_all_gradients(settings):
    backend = build_backend(UID, settings)
    zeros = no_gradients(backend)
    assert [each.shape for each in zeros] == [each.shape for each in backend.parameters]
    assert not any(each.any() for each in zeros)
    assert sum(each.nbytes for each in zeros) == gradient_bytes(backend)


def test_gradients_that_are_not_finite_are_refused_and_leave_nothing_behind(settings):
    backend = build_backend(UID, settings)
    x = torch.randn(2, 8)
    with pytest.raises(ExpertFailedError, match="not finite"):
        part_gradients(backend, [x], [torch.full((2, 8), torch.inf)], [])
    assert all(each.grad is None for each in backend.parameters)
    with pytest.raises(ExpertFailedError, match="not finite"):
        step_with(backend, [torch.full_like(each, torch.nan) for each in backend.parameters], 2)
    assert backend.steps == 0
    backend.check_usable()


def test_what_does_not_fit_the_memory_is_computed_in_pieces(settings):
    class Small(nn.Module):
        """Has room for two rows."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            if len(x) > 2:
                raise torch.OutOfMemoryError("no room")
            return self.linear(x)

    backend = build_backend(UID, dataclasses.replace(settings, layer="linear"))
    x, g = torch.randn(9, 8), torch.randn(9, 8)
    expected = part_gradients(backend, [x], [g], [])
    small = Small()
    small.linear.load_state_dict(backend.module.state_dict())
    backend.module, backend.parameters = small, list(small.parameters())
    for one, two in zip(part_gradients(backend, [x], [g], []), expected, strict=True):
        torch.testing.assert_close(one, two)
