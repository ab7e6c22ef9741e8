import pytest
import torch
from torch import nn

from p2pnode.config import HostingSettings
from p2pnode.errors import InvalidUidError, NoLiveExpertError, NonFiniteError, SchemaError
from p2pnode.experts.backend import build_backend
from p2pnode.experts.layers import register_layer
from p2pnode.rpc.schema import TensorSpec
from p2pnode.trainer.expert import RemoteExpert
from p2pnode.trainer.remote import RemoteExperts
from p2pnode.wire.uids import Uid


def _two_floats_and_a_number(hidden_dim):
    return (
        TensorSpec("float32", (None, hidden_dim)),
        TensorSpec("float32", (None, hidden_dim)),
        TensorSpec("int64", (None,)),
    )


@register_layer("scaled_difference", inputs=_two_floats_and_a_number, keywords=("minus", "times"))
class ScaledDifference(nn.Module):
    """Takes tensors by keyword and gives two."""

    def __init__(self, hidden_dim):
        super().__init__()
        self.linear = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x, *, minus, times):
        difference = self.linear(x) - minus
        return difference, difference * times[:, None]


@pytest.fixture
def expert_of(portal_to, trainer_settings):
    """A function that hosts one expert of a layer; returns it as a module, its twin and host."""

    def make(layer="ffn", **options):
        settings = trainer_settings.replace(hosting={"layer": layer})

        async def set_up(swarm):
            server = await swarm.serve("ffn.0.0")
            return server, await swarm.session()

        portal, (server, caller) = portal_to(set_up, settings)
        options = {"forward_timeout": 5.0, "backward_timeout": 5.0, **options}
        expert = RemoteExpert(RemoteExperts(portal, caller), "ffn.0.0", **options)
        return expert, build_backend(Uid("test", "ffn.0.0"), settings.hosting), server

    return make


def test_forward_backward_and_the_step_are_those_of_the_local_module(expert_of):
    expert, twin, server = expert_of()
    ours = torch.randn(5, 8, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    local = nn.Linear(8, 8)
    for _ in range(3):
        outputs = expert(local(ours))
        expected = twin.module(local(theirs))
        torch.testing.assert_close(outputs, expected)
        upstream = torch.randn(5, 8)
        outputs.backward(upstream)
        (gradient,) = torch.autograd.grad(expected, theirs, upstream)
        torch.testing.assert_close(ours.grad, gradient)
        twin.backward([local(theirs).detach()], [upstream])
        ours.grad = None
    hosted = server.experts._experts[server.experts.uids[0]].backend
    torch.testing.assert_close(list(hosted.module.parameters()), list(twin.module.parameters()))
    assert server.steps("ffn.0.0") == 3


def test_the_expert_learns_even_if_no_input_requires_a_gradient(expert_of):
    expert, _, server = expert_of()
    expert(torch.randn(2, 8)).sum().backward()
    assert server.steps("ffn.0.0") == 1


def test_the_expert_does_not_learn_without_autograd(expert_of):
    expert, _, server = expert_of()
    with torch.no_grad():
        assert not expert(torch.randn(2, 8)).requires_grad
    assert server.steps("ffn.0.0") == 0


def test_keywords_go_in_the_order_of_the_schema_and_several_outputs_come_back(expert_of):
    expert, twin, server = expert_of("scaled_difference")
    x, minus = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    times = torch.tensor([1, 2, 3])
    outputs = expert(x, times=times, minus=minus)
    expected = twin.module(x, minus=minus, times=times)
    torch.testing.assert_close(outputs, expected)
    upstream = torch.randn(3, 8)
    outputs[1].backward(upstream)  # the first output is not used
    torch.testing.assert_close(
        (x.grad, minus.grad), torch.autograd.grad(expected[1], (x, minus), upstream)
    )
    assert server.steps("ffn.0.0") == 1


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"minus": torch.zeros(2, 8)}, "minus, times; given: minus"),
        ({"plus": torch.zeros(2, 8)}, "given: plus"),
        ({}, "3 input"),
    ],
)
def test_missing_and_unknown_keywords_are_named(expert_of, keywords, sentence):
    expert, _, _ = expert_of("scaled_difference")
    with pytest.raises(SchemaError, match=sentence):
        expert(torch.zeros(2, 8), **keywords)


def test_an_expert_without_keywords_takes_none(expert_of):
    expert, _, _ = expert_of()
    with pytest.raises(TypeError, match="no keywords"):
        expert(torch.zeros(2, 8), mask=torch.zeros(2, 8))


def test_the_schema_can_be_asked_for(expert_of):
    expert, _, _ = expert_of()
    assert expert.info.layer == "ffn"
    assert expert.info.inputs == (TensorSpec("float32", (None, 8)),)


def test_tensors_that_do_not_fit_are_refused_by_name(expert_of):
    expert, _, server = expert_of()
    with pytest.raises(SchemaError, match=r"float32 of shape \(rows, 8\), not float32.*\(2, 9\)"):
        expert(torch.zeros(2, 9))
    assert server.steps("ffn.0.0") == 0


def test_nan_is_not_sent_if_anomalies_are_looked_for(expert_of):
    expert, _, server = expert_of(detect_anomalies=True)
    with pytest.raises(NonFiniteError, match="input for ffn"):
        expert(torch.full((2, 8), torch.inf))
    outputs = expert(torch.randn(2, 8))
    with pytest.raises(NonFiniteError, match="gradient for ffn"):
        outputs.backward(torch.full((2, 8), torch.nan))
    assert server.steps("ffn.0.0") == 0


def test_an_expert_nobody_hosts_is_an_error_that_names_it(expert_of):
    expert, _, _ = expert_of()
    stranger = RemoteExpert(expert._experts, "ffn.1.7", forward_timeout=5, backward_timeout=5)
    with pytest.raises(NoLiveExpertError, match=r"ffn\.1\.7"):
        stranger(torch.zeros(2, 8))


@pytest.mark.parametrize("name", ["ffn", "ffn.x", "digits/ffn.0.0", ""])
def test_a_name_that_no_expert_can_have_is_refused(name):
    with pytest.raises(InvalidUidError):
        RemoteExpert(None, name, forward_timeout=5, backward_timeout=5)


def test_a_printed_expert_shows_its_name(expert_of):
    expert, _, _ = expert_of()
    assert repr(expert) == "RemoteExpert(ffn.0.0)"


def test_weights_of_a_twin_depend_on_seed_and_name_alone():
    settings = HostingSettings(hidden_dim=4)
    first, again = (build_backend(Uid("run", "ffn.0.0"), settings) for _ in range(2))
    other = build_backend(Uid("run", "ffn.0.1"), settings)
    torch.testing.assert_close(first.module.state_dict(), again.module.state_dict())
    weights = [next(each.module.parameters()) for each in (first, other)]
    assert not torch.equal(*weights)
