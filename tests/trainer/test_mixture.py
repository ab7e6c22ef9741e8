import pytest
import torch

from p2pnode.trainer.local import LocalExperts
from p2pnode.trainer.mixture import MixtureOfExperts, RemoteMixtureOfExperts
from p2pnode.trainer.remote import RemoteExperts
from p2pnode.wire.uids import expand

GRID = "ffn.[0:3].[0:3]"
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


@pytest.fixture
def remote(portal_to):
    """A portal to a swarm of three hosts, each with a row of the grid, and its parts."""

    async def set_up(swarm):
        servers = [await swarm.serve(f"ffn.{row}.[0:3]") for row in range(3)]
        return servers, await swarm.session()

    portal, (servers, caller) = portal_to(set_up)
    return RemoteExperts(portal, caller), servers, caller


def twin_layers(experts, hosting, **options):
    """A remote layer and a local one with the same gate and the same experts."""
    torch.manual_seed(1)
    there = RemoteMixtureOfExperts(experts, "ffn", **{**OPTIONS, **options})
    here = MixtureOfExperts(
        LocalExperts(expand(GRID, "test"), hosting), "ffn", **{**OPTIONS, **options}
    )
    here.load_state_dict(there.state_dict())
    return there, here


def test_a_remote_mixture_computes_and_learns_what_a_local_one_does(remote, trainer_settings):
    experts, servers, _ = remote
    there, here = twin_layers(experts, trainer_settings.hosting)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (there, here)]
    for step in range(3):
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
    for row, server in enumerate(servers):
        for status in server.experts.status():
            twin = here._experts.backend(status.uid.name)
            hosted = server.experts._experts[status.uid].backend
            assert status.steps == twin.steps
            stepped += status.steps
            for ours, theirs in zip(
                hosted.module.parameters(), twin.module.parameters(), strict=True
            ):
                torch.testing.assert_close(ours, theirs)
        assert row < 3
    assert stepped > 9
