import copy
import pickle

import pytest
import torch

from p2pnode.config import HostingSettings
from p2pnode.errors import (
    ExpertFailedError,
    HostLostError,
    InvalidUidError,
    NoLiveExpertError,
    NonFiniteError,
    PermissionDeniedError,
    SchemaError,
    UnknownExpertError,
)
from p2pnode.trainer.local import LocalExperts
from p2pnode.trainer.mixture import MixtureOfExperts, RemoteMixtureOfExperts, _group
from p2pnode.trainer.remote import RemoteExperts
from p2pnode.wire.uids import expand

GRID = "ffn.[0:3].[0:3]"
HOSTING = HostingSettings(hidden_dim=8, learning_rate=1e-2)
OPTIONS = {
    "grid": (3, 3),
    "in_features": 8,
    "k_best": 3,
    "k_min": 1,
    "backward_k_min": 1,
    "forward_timeout": 5.0,
    "backward_timeout": 5.0,
    "timeout_after_k_min": 1.0,
}


class FlakyExperts(LocalExperts):
    """Local experts of which some fail, as the test says."""

    def __init__(self, pattern=GRID, settings=HOSTING):
        super().__init__(expand(pattern, "test"), settings)
        self.forward_errors = {}
        self.backward_errors = {}
        self.calls = []
        self.leave_out = set()  # by the second choice of a batch

    def choose(self, block, scores, k):
        found = super().choose(block, scores, k + len(self.leave_out))
        if self.calls:
            found = [[each for each in row if each[0] not in self.leave_out] for row in found]
        return [row[:k] for row in found]

    def forward(self, calls, policy):
        self.calls.append([(call.name, len(call.inputs[0])) for call in calls])
        return [
            self.forward_errors.get(call.name) or answer
            for call, answer in zip(calls, super().forward(calls, policy), strict=True)
        ]

    def backward(self, calls, policy):
        return [
            self.backward_errors.get(call.name) or answer
            for call, answer in zip(calls, super().backward(calls, policy), strict=True)
        ]


@pytest.fixture
def experts():
    return FlakyExperts()


def layer_over(experts, **options):
    return MixtureOfExperts(experts, "ffn", **{**OPTIONS, **options})


def chosen_by(layer, inputs):
    scores = layer._split(layer.gate(inputs))
    return layer._experts.choose("ffn", scores, layer.k_best)


# --- against each other -------------------------------------------------------------------------


@pytest.fixture
def remote(portal_to):
    """Experts on three hosts, each with a row of the grid; and the hosts."""

    async def set_up(swarm):
        servers = [await swarm.serve(f"ffn.{row}.[0:3]") for row in range(3)]
        return servers, await swarm.session()

    portal, (servers, caller) = portal_to(set_up)
    return RemoteExperts(portal, caller), servers, portal


def twin_layers(experts, hosting, **options):
    """A remote layer and a local one with the same gate and the same experts."""
    there = RemoteMixtureOfExperts(experts, "ffn", **{**OPTIONS, **options})
    here = layer_over(LocalExperts(expand(GRID, "test"), hosting), **options)
    here.load_state_dict(there.state_dict())
    return there, here


@pytest.mark.parametrize("k_best", [1, 4])
def test_a_remote_mixture_computes_and_learns_what_a_local_one_does(
    remote, trainer_settings, k_best
):
    experts, servers, _ = remote
    there, here = twin_layers(experts, trainer_settings.hosting, k_best=k_best)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (there, here)]
    for step in range(4):
        inputs = torch.randn(16, 8)
        seen = []
        for layer, optimizer in zip((there, here), optimizers, strict=True):
            leaf = inputs.clone().requires_grad_()
            outputs = layer(leaf)
            optimizer.zero_grad()
            (outputs * torch.linspace(-1, 1, 8)).pow(2).sum().backward()
            seen.append((outputs.detach(), leaf.grad, layer.gate.weight.grad.clone()))
            optimizer.step()
        for ours, theirs in zip(*seen, strict=True):
            torch.testing.assert_close(ours, theirs, msg=f"step {step}")
    stepped = 0
    for server in servers:
        for status in server.experts.status():
            twin = here._experts.backend(status.uid.name)
            hosted = server.experts._experts[status.uid].backend
            assert status.steps == twin.steps
            stepped += status.steps
            torch.testing.assert_close(
                list(hosted.module.parameters()), list(twin.module.parameters())
            )
    assert stepped >= 4


def test_training_goes_on_when_a_host_dies_in_the_middle(remote, trainer_settings):
    experts, servers, portal = remote
    layer, _ = twin_layers(experts, trainer_settings.hosting, k_best=9)
    assert len(layer.live_experts()) == 9
    inputs = torch.randn(16, 8)
    layer(inputs)

    async def crash():
        servers[1].crash()

    portal.call(crash)
    for _ in range(3):
        layer(inputs).sum().backward()
    assert layer.live_experts() == [f"ffn.{row}.{column}" for row in (0, 2) for column in range(3)]
    assert layer.unanswered_samples == 0
    stats = experts._caller.book.recorder.snapshot()
    assert 1 <= stats.failed_calls <= 6


def test_samples_whose_experts_died_are_sent_to_living_ones(remote, trainer_settings):
    experts, servers, portal = remote
    there, here = twin_layers(experts, trainer_settings.hosting, k_best=1)
    inputs = torch.randn(32, 8)
    doomed = {name for row in chosen_by(there, inputs) for name, _ in row if "ffn.1." in name}
    assert doomed

    async def crash():
        servers[1].crash()

    portal.call(crash)
    for column in range(3):
        del here._experts._backends[f"ffn.1.{column}"]
    leaves = [inputs.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(leaf) for layer, leaf in zip((there, here), leaves, strict=True)]
    torch.testing.assert_close(*outputs)
    for each in outputs:
        each.pow(2).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    assert there.unanswered_samples == 0


def test_a_copied_model_calls_the_same_experts(remote, trainer_settings):
    experts, _, _ = remote
    layer, _ = twin_layers(experts, trainer_settings.hosting)
    twin = copy.deepcopy(layer)
    assert twin.gate.weight is not layer.gate.weight
    inputs = torch.randn(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(twin(inputs), layer(inputs))


def test_a_model_is_saved_by_its_state_and_never_with_its_connection(remote, trainer_settings):
    experts, _, _ = remote
    layer, _ = twin_layers(experts, trainer_settings.hosting)
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(layer)
    assert set(layer.state_dict()) == {"gate.weight", "gate.bias"}


# --- the layer itself ---------------------------------------------------------------------------


def test_all_samples_of_an_expert_travel_in_one_call(experts):
    layer = layer_over(experts)
    layer(torch.randn(50, 8))
    (calls,) = experts.calls
    names = [name for name, _ in calls]
    assert len(names) == len(set(names)) <= 9
    assert sum(rows for _, rows in calls) == 50 * 3


def test_the_scores_of_the_chosen_experts_lead_back_to_the_gate(experts):
    layer = layer_over(experts)
    inputs = torch.randn(5, 8)
    chosen = chosen_by(layer, inputs)
    groups = _group(range(5), chosen, (), inputs.device)
    scores = layer._score(layer.gate(inputs), groups)
    for sample, row in enumerate(chosen):
        torch.testing.assert_close(scores[sample], torch.tensor([score for _, score in row]))


def test_fewer_experts_than_k_best_get_all_the_weight():
    experts = FlakyExperts("ffn.[0:1].[0:2]")
    layer = layer_over(experts, grid=(1, 2), k_best=4)
    inputs = torch.randn(3, 8)
    weights = torch.softmax(layer.gate(inputs)[:, 1:], 1)
    expected = sum(
        weights[:, [column]] * experts.backend(f"ffn.0.{column}").module(inputs)
        for column in range(2)
    )
    torch.testing.assert_close(layer(inputs), expected)


def test_experts_that_fail_are_left_out_of_the_average(experts):
    layer = layer_over(experts)
    inputs = torch.randn(4, 8)
    chosen = chosen_by(layer, inputs)
    failing = chosen[0][0][0]
    experts.forward_errors[failing] = HostLostError("gone")
    outputs = layer(inputs)
    kept = [(name, score) for name, score in chosen[0] if name != failing]
    weights = torch.softmax(torch.tensor([score for _, score in kept]), 0)
    expected = sum(
        weight * experts.backend(name).module(inputs[:1])
        for weight, (name, _) in zip(weights, kept, strict=True)
    )
    torch.testing.assert_close(outputs[:1], expected)


def test_experts_chosen_again_lead_back_to_the_gate(experts):
    layer = layer_over(experts, k_best=2)
    inputs = torch.randn(6, 8)
    lost = [name for name, _ in chosen_by(layer, inputs)[0]]
    experts.forward_errors = dict.fromkeys(lost, HostLostError("gone"))
    experts.leave_out = set(lost)
    outputs = layer(inputs)
    second = [name for name, _ in chosen_by(layer, inputs)[0]]
    assert set(second).isdisjoint(lost)
    total = layer.gate(inputs[:1])
    scores = [total[0, int(i)] + total[0, 3 + int(j)] for _, i, j in (n.split(".") for n in second)]
    weights = torch.softmax(torch.stack(scores), 0)
    parts = [experts.backend(name).module(inputs[:1]).detach() for name in second]
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    torch.testing.assert_close(outputs[:1], expected)
    (ours,) = torch.autograd.grad(outputs[:1].sum(), layer.gate.weight, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), layer.gate.weight)
    torch.testing.assert_close(ours, theirs)


def test_an_expert_that_failed_is_not_asked_again_by_the_same_batch(experts):
    layer = layer_over(experts)
    experts.forward_errors = dict.fromkeys(experts._backends, HostLostError("gone"))
    with pytest.raises(NoLiveExpertError, match="gone"):
        layer(torch.randn(50, 8))
    asked = [name for calls in experts.calls for name, _ in calls]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("error", "chosen_again"),
    [
        (PermissionDeniedError("not here"), True),  # the host may be the one that is wrong
        (SchemaError("other shape"), False),
        (NonFiniteError("NaN"), False),
    ],
)
def test_tensors_that_no_expert_takes_are_not_sent_to_others(experts, error, chosen_again):
    layer = layer_over(experts, k_best=2)
    inputs = torch.randn(1, 8)
    lost = [name for name, _ in chosen_by(layer, inputs)[0]]
    experts.forward_errors = dict.fromkeys(lost, error)
    experts.leave_out = set(lost)
    if chosen_again:
        assert layer(inputs).any()
    else:
        with pytest.raises(type(error)):
            layer(inputs)
    assert len(experts.calls) == 1 + chosen_again


def test_choosing_again_ends_with_the_time_of_the_batch(experts, monkeypatch):
    layer = layer_over(experts, k_best=1, forward_timeout=5.0)
    now = [100.0]
    monkeypatch.setattr(experts, "now", lambda: now[0])

    def fail_slowly(calls, policy):
        experts.leave_out.update(call.name for call in calls)
        experts.calls.append([call.name for call in calls])
        timeouts.append(policy.timeout)
        now[0] += 2.0
        return [HostLostError("gone") for _ in calls]

    timeouts = []
    monkeypatch.setattr(experts, "forward", fail_slowly)
    with pytest.raises(NoLiveExpertError, match="gone"):
        layer(torch.randn(1, 8))
    assert timeouts == [5.0, 3.0, 1.0]


def test_a_sample_that_nobody_answers_for_is_an_error(experts):
    layer = layer_over(experts, k_best=1)
    inputs = torch.randn(6, 8)
    failing = chosen_by(layer, inputs)[0][0][0]
    experts.forward_errors[failing] = HostLostError("it was lost")
    with pytest.raises(NoLiveExpertError, match=r"of 6 samples.*it was lost") as caught:
        layer(inputs)
    assert isinstance(caught.value.__cause__, HostLostError)
    assert layer.unanswered_samples >= 1


def test_a_sample_that_nobody_answers_for_can_be_zero(experts):
    layer = layer_over(experts, k_best=1, allow_zero_outputs=True)
    inputs = torch.randn(6, 8)
    chosen = [row[0][0] for row in chosen_by(layer, inputs)]
    experts.forward_errors[chosen[0]] = HostLostError("gone")
    outputs = layer(inputs)
    outputs.sum().backward()
    for sample, name in enumerate(chosen):
        assert outputs[sample].any() == (name != chosen[0])
    assert layer.unanswered_samples == chosen.count(chosen[0])


@pytest.mark.parametrize("known", [False, True])
def test_all_experts_gone_gives_zeros_of_the_right_shape_or_an_error(known):
    experts = FlakyExperts()
    strict, lenient = layer_over(experts), layer_over(experts, allow_zero_outputs=True)
    inputs = torch.randn(2, 8)
    if known:
        lenient(inputs)
    experts._backends.clear()
    with pytest.raises(NoLiveExpertError, match="none is announced"):
        strict(inputs)
    outputs = lenient(inputs)
    assert outputs.shape == (2, 8)
    assert not outputs.any()


def test_a_refusal_that_the_caller_can_mend_is_raised_as_it_is(experts):
    experts.forward_errors = dict.fromkeys(
        [f"ffn.{i}.{j}" for i in range(3) for j in range(3)],
        PermissionDeniedError("ask for an invite with the scope train"),
    )
    with pytest.raises(PermissionDeniedError, match="scope train"):
        layer_over(experts)(torch.randn(2, 8))


def test_gradients_lost_in_backward_are_counted(experts):
    layer = layer_over(experts, k_best=1)
    inputs = torch.randn(8, 8, requires_grad=True)
    chosen = [row[0][0] for row in chosen_by(layer, inputs)]
    experts.backward_errors[chosen[0]] = ExpertFailedError("no gradient")
    layer(inputs).sum().backward()
    assert layer.lost_gradients == chosen.count(chosen[0])
    for sample, name in enumerate(chosen):
        assert inputs.grad[sample].any() == (name != chosen[0])


@pytest.mark.parametrize("lenient", [False, True])
def test_no_answer_at_all_in_backward_is_an_error_unless_zeros_are_allowed(experts, lenient):
    layer = layer_over(experts, allow_zero_outputs=lenient)
    outputs = layer(torch.randn(4, 8))
    experts.backward_errors = dict.fromkeys(experts._backends, HostLostError("gone"))
    if lenient:
        outputs.sum().backward()
        assert not layer.gate.weight.grad.any()
    else:
        with pytest.raises(NoLiveExpertError, match="gone"):
            outputs.sum().backward()
    assert layer.lost_gradients == 4


def test_sequences_are_gated_by_their_mean(experts):
    experts = FlakyExperts("ffn.[0:3].[0:3]", HostingSettings(layer="nop", hidden_dim=8))
    layer = layer_over(experts)
    sequences = torch.randn(4, 5, 8, requires_grad=True)
    outputs = layer(sequences)
    torch.testing.assert_close(outputs, sequences)  # every expert gives back its input
    (outputs * torch.randn(4, 5, 8)).sum().backward()
    assert sequences.grad.shape == (4, 5, 8)


@pytest.mark.parametrize(
    ("shape", "sentence"), [((4, 7), "8 features"), ((8,), "8 features"), ((0, 8), "one sample")]
)
def test_inputs_of_the_wrong_shape_are_refused(experts, shape, sentence):
    with pytest.raises(SchemaError, match=sentence):
        layer_over(experts)(torch.zeros(shape))
    assert experts.calls == []


def test_inputs_of_unequal_length_are_refused(experts):
    with pytest.raises(SchemaError, match="numbers of samples"):
        layer_over(experts)(torch.zeros(2, 8), torch.zeros(3, 8))


def test_a_gate_that_has_diverged_is_said_so(experts):
    layer = layer_over(experts)
    with torch.no_grad():
        layer.gate.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="diverged"):
        layer(torch.randn(2, 8))


@pytest.mark.parametrize(
    "options",
    [
        {"grid": ()},
        {"grid": (3, 0)},
        {"k_best": 0},
        {"k_min": 4},
        {"backward_k_min": 0},
    ],
)
def test_impossible_sizes_are_refused(experts, options):
    with pytest.raises(ValueError, match=r"grid|k_best"):
        layer_over(experts, **options)


def test_a_block_that_cannot_have_experts_is_refused(experts):
    with pytest.raises(InvalidUidError):
        MixtureOfExperts(experts, "no block", **OPTIONS)


def test_a_printed_model_shows_its_layers(experts):
    assert "ffn, grid=(3, 3), k_best=3" in repr(layer_over(experts))


# --- local experts ------------------------------------------------------------------------------


def test_local_experts_say_which_one_is_missing(experts):
    with pytest.raises(UnknownExpertError, match=r"ffn\.9\.9"):
        experts.backend("ffn.9.9")


def test_a_failing_local_expert_is_an_outcome_like_a_remote_one(experts):
    layer = layer_over(experts)
    inputs = torch.randn(3, 8)
    name = chosen_by(layer, inputs)[0][0][0]
    with torch.no_grad():
        next(experts.backend(name).module.parameters()).fill_(torch.nan)
    layer(inputs).sum().backward()
    assert experts.backend(name).steps == 0
