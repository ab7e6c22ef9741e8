"""Several experts that are computed as one."""

import dataclasses

import pytest
import torch

from p2pnode.errors import ExpertFailedError
from p2pnode.experts.backend import build_backend
from p2pnode.experts.passes import backward_through, forward_through
from p2pnode.wire.uids import Uid

UID = Uid("open:r", "ffn.1.2")


def weights(backend):
    return {name: each.clone() for name, each in backend.module.state_dict().items()}


def chain_of(settings, count=3, **changes):
    settings = dataclasses.replace(settings, **changes)
    return [build_backend(uid, settings) for uid in UID.span(count)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_span_trains_as_the_same_layers_called_one_by_one(settings, optimizer):
    changes = {"optimizer": optimizer, "clip_grad_norm": 0.1}
    span, single = chain_of(settings, **changes), chain_of(settings, **changes)
    for _ in range(3):
        x, g = torch.randn(4, 8), torch.randn(4, 8)
        sent = [[x]]
        for backend in single:
            sent.append(backend.forward(sent[-1]))
        torch.testing.assert_close(forward_through(span, [x]), sent[-1])
        expected = [g]
        for backend, inputs in zip(reversed(single), reversed(sent[:-1]), strict=True):
            expected = backend.backward(inputs, expected)
        torch.testing.assert_close(backward_through(span, [x], [g]), expected)
    for one, other in zip(span, single, strict=True):
        torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-5)
        assert (one.steps, one.rows) == (3, 12)


def test_a_span_whose_gradients_are_not_finite_anywhere_has_stepped_nowhere(settings):
    span = chain_of(settings, optimizer="sgd", layer="linear")
    with torch.no_grad():
        for parameter in (*span[1].module.parameters(), *span[2].module.parameters()):
            parameter.zero_()  # the other two and the inputs have gradients of zero
    before = [weights(each) for each in span]
    with pytest.raises(ExpertFailedError, match=r"ffn\.1\.4 has gradients that are not finite"):
        backward_through(span, [torch.ones(1, 8)], [torch.full((1, 8), 3e38)])
    for each, kept in zip(span, before, strict=True):
        torch.testing.assert_close(weights(each), kept, rtol=0, atol=0)
    assert [each.steps for each in span] == [0, 0, 0]


def test_a_span_broken_in_a_step_is_broken_in_all_that_may_have_stepped(settings, monkeypatch):
    span = chain_of(settings)

    def half_a_step(*_):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(span[1]._optimizer, "step", half_a_step)
    x = torch.ones(1, 8)
    with pytest.raises(ExpertFailedError, match="the device is gone"):
        backward_through(span, [x], [x])
    for broken in span[:2]:
        with pytest.raises(ExpertFailedError, match=r"ffn\.1\.3 failed in the middle"):
            broken.forward([x])
    span[2].forward([x])
    span[0].load(build_backend(span[0].uid, settings).state())
    span[0].forward([x])  # a restored one is whole again
