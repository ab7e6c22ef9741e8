"""Blocks of a language model, hosted as experts."""

import dataclasses
from pathlib import Path

import pytest
import torch

from p2pnode.errors import CheckpointError, ModelError
from p2pnode.experts.backend import build_backend
from p2pnode.experts.passes import backward_through, forward_through
from p2pnode.models.building import Model
from p2pnode.models.seeding import seeded
from p2pnode.rpc.schema import TensorSpec, UpTo
from p2pnode.wire.uids import Uid

GOLDEN = Path(__file__).parent.parent / "golden" / "language_models" / "llama"
UIDS = Uid("lm", "blocks.0").span(6)


@pytest.fixture
def settings(settings):
    return dataclasses.replace(settings, model="tiny", optimizer="sgd", learning_rate=0.1)


def test_a_block_takes_and_gives_sequences_up_to_the_models_length(settings):
    backend = build_backend(UIDS[0], settings)
    assert backend.inputs == (TensorSpec("float32", (None, UpTo(512), 64)),)
    assert backend.outputs == backend.inputs
    assert backend.forward([torch.randn(2, 7, 64)])[0].shape == (2, 7, 64)


def test_a_block_is_that_of_its_number_with_weights_of_its_own(settings):
    first, second, again = (build_backend(UIDS[number], settings) for number in (0, 1, 1))
    x = torch.randn(1, 4, 64)
    torch.testing.assert_close(second.forward([x]), again.forward([x]))
    assert not torch.allclose(first.forward([x])[0], second.forward([x])[0])
    with seeded(settings.seed, "blocks.1"):
        local = Model.find("tiny").build_block(1)
    with torch.no_grad():
        torch.testing.assert_close(local(x), second.forward([x])[0])


def test_blocks_of_a_checkpoint_start_with_its_weights(settings):
    settings = dataclasses.replace(settings, model=str(GOLDEN))
    backend = build_backend(Uid("lm", "blocks.1"), settings)
    local = Model.find(str(GOLDEN)).build_block(1)
    x = torch.randn(1, 4, 16)
    with torch.no_grad():
        torch.testing.assert_close(backend.forward([x])[0], local(x))


def test_a_span_of_blocks_is_trained_as_they_would_be_locally(settings):
    chain = [build_backend(uid, settings) for uid in UIDS[:3]]
    local = torch.nn.Sequential(*(build_backend(uid, settings).module for uid in UIDS[:3]))
    optimizer = torch.optim.SGD(local.parameters(), lr=settings.learning_rate)
    for _ in range(2):
        x, g = torch.randn(2, 5, 64), torch.randn(2, 5, 64)
        leaf = x.clone().requires_grad_()
        (out,) = forward_through(chain, [x])
        (gradient,) = backward_through(chain, [x], [g])
        expected = local(leaf)
        torch.testing.assert_close(out, expected.detach())
        optimizer.zero_grad()
        expected.backward(g)
        optimizer.step()
        torch.testing.assert_close(gradient, leaf.grad)


def test_bfloat16_is_a_setting(settings):
    settings = dataclasses.replace(settings, dtype="bfloat16")
    backend = build_backend(UIDS[0], settings)
    x = torch.randn(1, 4, 64, dtype=torch.bfloat16)
    assert backend.forward([x])[0].dtype == torch.bfloat16
    assert backend.backward([x], [x])[0].dtype == torch.bfloat16
    assert backend.steps == 1


def test_the_state_of_a_block_of_another_model_is_refused(settings):
    state = build_backend(UIDS[0], settings).state()
    build_backend(UIDS[0], settings).load(state)
    other = dataclasses.replace(settings, dtype="bfloat16")
    with pytest.raises(CheckpointError, match="is of a block-"):
        build_backend(UIDS[0], other).load(state)


@pytest.mark.parametrize(
    ("uid", "sentence"),
    [("blocks.6", "blocks 0 to 5"), ("blocks.1.2", r"use one coordinate, as in blocks\.1")],
)
def test_a_uid_that_is_no_block_is_refused(settings, uid, sentence):
    with pytest.raises(ModelError, match=sentence):
        build_backend(Uid("lm", uid), settings)


def test_what_no_model_is_called_is_refused(settings):
    with pytest.raises(ModelError, match="neither a directory"):
        build_backend(UIDS[0], dataclasses.replace(settings, model="huge"))
    with pytest.raises(ModelError, match="float16"):
        build_backend(UIDS[0], dataclasses.replace(settings, dtype="float16"))
