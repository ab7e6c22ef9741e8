"""One layer on three real daemons, its batches split over them, and one of them killed."""

import dataclasses

import pytest
import torch

import p2pnode as package
from p2pnode.config import HostingSettings
from p2pnode.experts.backend import build_backend
from p2pnode.testing.daemons import ask_command
from p2pnode.wire.uids import Uid

pytestmark = pytest.mark.real
LAYER = ("--experts", "split/layers.0", "--hidden-dim", "16")
QUICK = (
    "--set", "hosting.update_period=1.5", "--set", "hosting.threads=1",
    "--set", "hosting.optimizer=sgd", "--set", "hosting.momentum=0.9",
)  # fmt: skip


def test_three_daemons_learn_as_one_layer_and_go_on_as_two(start, tmp_path):
    ask_command("run", "create", "split", "--data-dir", tmp_path / "owner")
    token = ask_command("run", "invite", "split", "--data-dir", tmp_path / "owner")["invite"]
    first = start("first", "--invite", token, *LAYER, *QUICK)
    others = [
        start(name, "--invite", token, "--bootstrap", first.address, *LAYER, *QUICK)
        for name in ("second", "third")
    ]
    settings = HostingSettings(hidden_dim=16, optimizer="sgd", momentum=0.9)
    whole = build_backend(Uid("split", "layers.0"), dataclasses.replace(settings, threads=1))
    torch.manual_seed(0)
    with package.connect(first.address, run="split", invite=token) as swarm:
        layer = swarm.split_layer("layers.0")

        def step():
            x = torch.randn(24, 16, requires_grad=True)
            outputs = layer(x)
            torch.testing.assert_close(outputs, whole.forward([x.detach()])[0])
            loss = outputs.square().mean()
            (gradient,) = torch.autograd.grad(loss, outputs, retain_graph=True)
            loss.backward()
            (expected,) = whole.backward([x.detach()], [gradient])
            torch.testing.assert_close(x.grad, expected)

        for _ in range(4):
            step()
        assert swarm.stats().failed_calls == 0
        others[0].kill()
        for _ in range(3):
            step()
    for daemon in (first, others[1]):
        (expert,) = daemon.ask("experts")
        assert (expert["steps"], expert["rows"]) == (7, 7 * 24)
