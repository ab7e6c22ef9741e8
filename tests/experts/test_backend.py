import dataclasses

import pytest
import torch
from torch import nn

from p2pnode.errors import CheckpointError, ConfigError, ExpertFailedError
from p2pnode.experts import layers
from p2pnode.experts.backend import ExpertBackend, build_backend
from p2pnode.experts.batches import compute_batch
from p2pnode.experts.layers import Layer
from p2pnode.experts.pool import Call
from p2pnode.experts.row_limits import RowLimits
from p2pnode.rpc.schema import TensorSpec
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

ALICE = PrivateKey.from_seed(b"a" * 32).peer_id
UID = Uid("open:r", "ffn.1.2")
LIMITS = RowLimits(100)
ROWS = TensorSpec("float32", (None, 8))


class Picky(nn.Module):
    """A layer of one weight, that fails as its input says."""

    def __init__(self, _hidden_dim=8):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        if (x == 13).any():
            raise ZeroDivisionError("unlucky")
        return x * self.scale


class TwoWays(nn.Module):
    """Several inputs, one by keyword, one an integer, one unused; two outputs."""

    def __init__(self, hidden_dim):
        super().__init__()
        self.embedding = nn.Embedding(10, hidden_dim)
        self.linear = nn.Linear(hidden_dim, 3)

    def forward(self, x, unused, *, index):
        mixed = x + self.embedding(index)
        return self.linear(mixed), index


def picky(settings, **changes):
    layer = Layer(name="picky", build=Picky, inputs=layers.hidden_rows)
    settings = dataclasses.replace(settings, **changes)
    return ExpertBackend(UID, layer, Picky(), settings, inputs=(ROWS,))


def weights(backend):
    return {name: each.clone() for name, each in backend.module.state_dict().items()}


def unchanged(backend, before):
    return all(torch.equal(each, before[name]) for name, each in weights(backend).items())


def call(kind, *inputs, gradients=()):
    return Call(
        uids=(UID,),
        kind=kind,
        caller=ALICE,
        rows=len(inputs[0]),
        inputs=inputs,
        gradients=gradients,
        arrived=0.0,
        deadline=9.0,
    )


# --- building -------------------------------------------------------------------------------------


def test_the_same_settings_and_name_give_the_same_weights(settings):
    one, two = build_backend(UID, settings), build_backend(Uid("other", UID.name), settings)
    assert unchanged(one, weights(two))
    other = build_backend(Uid("open:r", "ffn.1.3"), settings)
    assert not unchanged(one, weights(other))
    reseeded = build_backend(UID, dataclasses.replace(settings, seed=4))
    assert not unchanged(one, weights(reseeded))


def test_building_leaves_the_users_randomness_alone(settings):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_backend(UID, settings)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer": "magic"}, "use one of adagrad, adam, adamw, rmsprop, sgd"),
        ({"hidden_dim": 0}, "hidden_dim=0"),
        ({"device": "tpu"}, "on tpu"),
        ({"layer": "magic"}, "unknown layer"),
    ],
)
def test_an_expert_that_cannot_be_built_says_which_setting_to_change(settings, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_backend(UID, dataclasses.replace(settings, **changes))


def test_a_module_that_fails_on_its_own_inputs_is_refused_when_built(settings):
    layer = Layer(name="bad", build=lambda d: nn.Linear(d + 1, d), inputs=layers.hidden_rows)
    with pytest.raises(ConfigError, match="its own inputs"):
        ExpertBackend(UID, layer, layer.build(8), settings, inputs=(ROWS,))


def test_a_module_that_mixes_up_rows_is_refused_when_built(settings):
    layer = Layer(name="bad", build=lambda _: nn.Flatten(0), inputs=layers.hidden_rows)
    with pytest.raises(ConfigError, match="one row for each"):
        ExpertBackend(UID, layer, layer.build(8), settings, inputs=(ROWS,))


# --- numerics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "name", "kind"),
    [
        ("linear", "adam", torch.optim.Adam),
        ("ffn", "adam", torch.optim.Adam),
        ("ffn", "adamw", torch.optim.AdamW),
        ("ffn", "sgd", torch.optim.SGD),
        # Not Adam: attention's key bias has a gradient of nothing but rounding noise, which Adam
        # would blow up to full steps.
        ("transformer", "sgd", torch.optim.SGD),
    ],
)
def test_training_equals_that_of_a_local_module(settings, name, kind, layer):
    settings = dataclasses.replace(settings, optimizer=name, layer=layer, learning_rate=0.01)
    backend = build_backend(UID, settings)
    local = build_backend(UID, settings).module
    optimizer = kind(local.parameters(), lr=0.01, weight_decay=0.0)
    shape = backend.inputs[0].with_rows(5).shape
    for _ in range(5):
        x, g = torch.randn(shape), torch.randn(shape)
        (y,) = backend.forward([x])
        leaf = x.clone().requires_grad_()
        expected = local(leaf)
        torch.testing.assert_close(y, expected)
        optimizer.zero_grad()
        expected.backward(g)
        optimizer.step()
        (gx,) = backend.backward([x], [g])
        torch.testing.assert_close(gx, leaf.grad)
        for mine, theirs in zip(backend.module.parameters(), local.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert (backend.steps, backend.rows) == (5, 25)


def test_forward_changes_nothing_and_keeps_no_graph(settings):
    backend = build_backend(UID, settings)
    before = weights(backend)
    (y,) = backend.forward([torch.randn(4, 8)])
    assert not y.requires_grad
    assert unchanged(backend, before)
    assert backend.steps == 0


def test_inputs_without_a_gradient_get_zeros(settings):
    index = TensorSpec("int64", (None,))
    layer = Layer(
        name="two", build=TwoWays, inputs=lambda _: (ROWS, ROWS, index), keywords=("index",)
    )
    backend = ExpertBackend(UID, layer, TwoWays(8), settings, inputs=(ROWS, ROWS, index))
    assert backend.outputs == (TensorSpec("float32", (None, 3)), index)
    inputs = [torch.randn(2, 8), torch.randn(2, 8), torch.tensor([3, 4])]
    y, same = backend.forward(inputs)
    assert torch.equal(same, inputs[2])
    expected = torch.ones(2, 3) @ backend.module.linear.weight.detach().clone()
    before = backend.module.embedding.weight.detach().clone()
    gradients = backend.backward(inputs, [torch.ones_like(y), torch.zeros_like(same)])
    torch.testing.assert_close(gradients[0], expected)
    assert torch.equal(gradients[1], torch.zeros(2, 8))
    assert torch.equal(gradients[2], torch.zeros(2, dtype=torch.int64))
    changed = (backend.module.embedding.weight != before).any(1)
    assert changed.tolist() == [each in {3, 4} for each in range(10)]


def test_a_module_without_parameters_can_be_trained_through(settings):
    backend = build_backend(UID, dataclasses.replace(settings, layer="torch.nn:Identity"))
    g = torch.randn(2, 8)
    assert torch.equal(backend.backward([torch.zeros(2, 8)], [g])[0], g)
    assert backend.state().steps == 1


def test_gradients_are_clipped_to_the_configured_norm(settings):
    plain = picky(settings, optimizer="sgd", learning_rate=1.0)
    clipped = picky(settings, optimizer="sgd", learning_rate=1.0, clip_grad_norm=0.5)
    for backend in (plain, clipped):
        backend.backward([torch.ones(1, 8)], [torch.ones(1, 8)])
    torch.testing.assert_close(plain.module.scale.detach(), torch.zeros(8))
    assert torch.linalg.vector_norm(clipped.module.scale.detach() - 1).item() == pytest.approx(0.5)


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e38])
@pytest.mark.parametrize("where", ["input", "gradient"])
def test_no_step_is_taken_on_what_is_not_finite(settings, bad, where):
    backend = picky(settings)
    before = weights(backend)
    x, g = torch.full((2, 8), 1e5), torch.ones(2, 8)
    (x if where == "input" else g)[1, 1] = bad
    with pytest.raises(ExpertFailedError, match="not finite"):
        backend.backward([x], [g * 1e5])
    assert unchanged(backend, before)
    assert backend.steps == 0
    assert backend.module.scale.grad is None
    backend.backward([torch.ones(2, 8)], [torch.ones(2, 8)])


def test_a_module_that_raises_is_a_failed_call_with_the_reason(settings):
    backend = picky(settings)
    before = weights(backend)
    bad = torch.full((1, 8), 13.0)
    with pytest.raises(ExpertFailedError, match="ZeroDivisionError: unlucky"):
        backend.forward([bad])
    with pytest.raises(ExpertFailedError, match="unlucky"):
        backend.backward([bad], [bad])
    assert unchanged(backend, before)


def test_an_expert_that_failed_inside_a_step_is_neither_used_nor_saved(settings, monkeypatch):
    backend = picky(settings)

    def half_a_step(*_):
        backend.module.scale.data[:4] = 7
        raise MemoryError

    monkeypatch.setattr(backend._optimizer, "step", half_a_step)
    x = torch.ones(1, 8)
    with pytest.raises(ExpertFailedError, match="MemoryError"):
        backend.backward([x], [x])
    for use in (lambda: backend.forward([x]), lambda: backend.backward([x], [x]), backend.state):
        with pytest.raises(ExpertFailedError, match="restored from its last checkpoint"):
            use()


def test_weights_that_are_not_finite_are_not_saved(settings):
    backend = picky(settings)
    backend.module.scale.data[0] = torch.nan
    with pytest.raises(ExpertFailedError, match="not finite"):
        backend.state()


# --- batches --------------------------------------------------------------------------------------


def test_joined_calls_get_their_own_rows_back(settings):
    backend = build_backend(UID, settings)
    xs = [torch.randn(rows, 8) for rows in (1, 3, 2)]
    outcomes = compute_batch([backend], [call("forward", x) for x in xs], LIMITS)
    for x, (y,) in zip(xs, outcomes, strict=True):
        torch.testing.assert_close(y, backend.forward([x])[0])
        assert y.untyped_storage().nbytes() == y.nbytes  # no call keeps the others' memory


def test_joined_backward_calls_are_one_step_of_their_sum(settings):
    joined, local = build_backend(UID, settings), build_backend(UID, settings)
    xs = [torch.randn(rows, 8) for rows in (1, 3)]
    gs = [torch.randn(rows, 8) for rows in (1, 3)]
    outcomes = compute_batch(
        [joined], [call("backward", x, gradients=(g,)) for x, g in zip(xs, gs, strict=True)], LIMITS
    )
    (expected,) = local.backward([torch.cat(xs)], [torch.cat(gs)])
    torch.testing.assert_close(torch.cat([outcome[0] for outcome in outcomes]), expected)
    assert joined.steps == 1
    assert unchanged(joined, weights(local))


def test_one_bad_call_does_not_fail_those_it_is_joined_with(settings):
    backend = picky(settings)
    good, unlucky, nan = torch.ones(2, 8), torch.full((1, 8), 13.0), torch.full((1, 8), torch.nan)
    for kind in ("forward", "backward"):
        gradients = () if kind == "forward" else (torch.ones(2, 8),)
        one = () if kind == "forward" else (torch.ones(1, 8),)
        outcomes = compute_batch(
            [backend],
            [
                call(kind, good, gradients=gradients),
                call(kind, unlucky, gradients=one),
                call(kind, nan, gradients=one),
                call(kind, good, gradients=gradients),
            ],
            LIMITS,
        )
        kinds = [isinstance(outcome, ExpertFailedError) for outcome in outcomes]
        assert kinds == [False, True, True, False]
    assert backend.steps == 2


def test_a_nan_in_one_row_fails_that_rows_call_alone(settings):
    backend = picky(settings)
    good, bad = torch.ones(2, 8), torch.full((1, 8), torch.nan)
    outcomes = compute_batch([backend], [call("forward", good), call("forward", bad)], LIMITS)
    assert torch.equal(outcomes[0][0], good)
    assert isinstance(outcomes[1], ExpertFailedError)


def test_calls_that_do_not_fit_together_are_computed_alone(settings):
    backend = picky(settings)
    odd, good = torch.ones(1, 9), torch.ones(1, 8)
    outcomes = compute_batch([backend], [call("forward", odd), call("forward", good)], LIMITS)
    assert isinstance(outcomes[0], ExpertFailedError)
    assert torch.equal(outcomes[1][0], good)


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_restored_expert_goes_on_as_if_nothing_had_happened(settings, optimizer):
    settings = dataclasses.replace(settings, optimizer=optimizer)
    one = build_backend(UID, settings)
    for _ in range(3):
        one.backward([torch.randn(2, 8)], [torch.randn(2, 8)])
    state = one.state()
    two = build_backend(UID, dataclasses.replace(settings, seed=9))
    two.load(state)
    assert (two.steps, two.rows) == (3, 6)
    for _ in range(3):
        x, g = torch.randn(2, 8), torch.randn(2, 8)
        assert torch.equal(one.backward([x], [g])[0], two.backward([x], [g])[0])
    assert unchanged(one, weights(two))


def test_a_state_is_a_copy(settings):
    backend = picky(settings)
    state = backend.state()
    backend.backward([torch.ones(1, 8)], [torch.ones(1, 8)])
    assert torch.equal(state.tensors["module.scale"], torch.ones(8))
    assert state.steps == 0


def test_the_learning_rate_is_that_of_the_settings_not_of_the_checkpoint(settings):
    state = picky(settings, optimizer="sgd", learning_rate=1.0).state()
    backend = picky(settings, optimizer="sgd", learning_rate=0.25)
    backend.load(state)
    backend.backward([torch.ones(1, 8)], [torch.ones(1, 8)])
    torch.testing.assert_close(backend.module.scale.detach(), torch.full((8,), 0.75))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer": "linear"}, "is of a ffn with adam"),
        ({"optimizer": "sgd"}, "with sgd"),
        ({"hidden_dim": 16}, "hidden_dim"),
    ],
)
def test_a_state_of_another_kind_of_expert_is_refused(settings, changes, sentence):
    state = build_backend(UID, settings).state()
    other = build_backend(UID, dataclasses.replace(settings, **changes))
    before = weights(other)
    with pytest.raises(CheckpointError, match=sentence):
        other.load(state)
    assert unchanged(other, before)


def test_an_expert_whose_state_was_replaced_in_part_is_not_used(settings, monkeypatch):
    backend, x = build_backend(UID, settings), torch.ones(1, 8)
    backend.backward([x], [x])
    state = backend.state()

    def no_room(_):
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(backend._optimizer, "load_state_dict", no_room)
        with pytest.raises(ExpertFailedError, match="no room"):
            backend.load(state)
    for use in (lambda: backend.forward([x]), backend.state):
        with pytest.raises(ExpertFailedError, match="while its state was replaced"):
            use()
    backend.load(state)
    backend.forward([x])


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 2), ("adam", 4), ("adamw", 4)])
def test_the_size_of_an_expert_is_that_of_its_weights_gradients_and_moments(
    settings, optimizer, copies
):
    settings = dataclasses.replace(settings, layer="linear", optimizer=optimizer)
    assert build_backend(UID, settings).size == 4 * (8 * 8 + 8) * copies


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("optimizer.99.step", torch.tensor(1.0), "does not fit its weights"),
        ("optimizer.0.momentum", torch.tensor(1.0), "does not fit its weights"),
        ("optimizer.x.step", torch.tensor(1.0), "does not fit its weights"),
        ("optimizer.0.exp_avg", torch.ones(3, 3), "does not fit its weights"),
        ("optimizer.0.exp_avg", torch.full((32, 8), torch.nan), "not finite"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(settings, name, value, sentence):
    backend, other = (build_backend(UID, settings) for _ in range(2))
    other.backward([torch.ones(1, 8)], [torch.ones(1, 8)])
    state = other.state()
    before = weights(backend)
    with pytest.raises(CheckpointError, match=sentence):
        backend.load(dataclasses.replace(state, tensors={**state.tensors, name: value}))
    assert unchanged(backend, before)
    assert backend.steps == 0
