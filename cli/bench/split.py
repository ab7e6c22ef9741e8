"""`bench split`: a layer whose batches two real processes share, beside the same one in a process.

Each process that computes has one torch thread. The one process is this one, which is the trainer
of the other side as well, and computes then nothing but the loss. It is an ordinary PyTorch loop,
and computes forward once, while hosts, which keep no activations, compute it twice: so two of them
are at most 1.5 times as fast, where backward takes twice as long as forward.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from cli.bench.figures import Figure, Goal
from cli.bench.processor import processor_seconds
from cli.demo.daemons import DemoDaemon, ending, start_all, wait_until
from p2pnode.config import HostingSettings
from p2pnode.config.settings import Settings
from p2pnode.errors import LocalError
from p2pnode.experts.backend import build_backend
from p2pnode.experts.optimizers import build_optimizer
from p2pnode.trainer.connect import connect
from p2pnode.wire.uids import Uid

_RUN: Final = "bench"
_LAYER: Final = "layers.0"
_GOAL: Final = 1.2
_WARM_UP: Final = 120.0  # seconds at most, until all hosts take each step
_PATIENCE: Final = 600.0  # seconds for a call
_TICK: Final = 0.01  # seconds, in which systems count what processes compute


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: of each figure.
        steps: of each side in a round.
        peers: processes that share each batch.
        hidden_dim: of the layer, an `ffn`, which has 24 times the square of it in weights.
        batch: rows.
        codec: how gradients travel to be added up.
    """

    rounds: int
    steps: int
    peers: int
    hidden_dim: int
    batch: int
    codec: str


def run_split(plan: Plan, tell: Callable[[str], None]) -> list[Figure]:
    """Start the processes, measure, and end them.

    Args:
        plan: how much.
        tell: is told what happens.

    Raises:
        LocalError: a process could not start, or the two sides learn different things.
        P2PNodeError: a call failed.
    """
    with tempfile.TemporaryDirectory(prefix="p2pnode-bench-") as name:
        place = Path(name)
        arguments = [
            *("--log-level", "warning", "--experts", f"{_RUN}/{_LAYER}"),
            *("--layer", "ffn", "--hidden-dim", str(plan.hidden_dim)),
            *("--set", "hosting.threads=1", "--set", "hosting.checkpoint_interval=0"),
            *("--set", "hosting.optimizer=sgd", "--set", "hosting.update_period=2"),
        ]
        peers = [
            DemoDaemon(f"peer-{number}", place / f"peer-{number}", place, arguments)
            for number in range(plan.peers)
        ]
        with ending(peers):
            tell("starting the peers")
            start_all(peers)
            return _measure(plan, peers, tell)


def _measure(plan: Plan, peers: list[DemoDaemon], tell: Callable[[str], None]) -> list[Figure]:
    torch.set_num_threads(1)
    hosting = replace(HostingSettings(), hidden_dim=plan.hidden_dim, optimizer="sgd", threads=1)
    whole = build_backend(Uid(_RUN, _LAYER), hosting).module
    optimizer = build_optimizer(list(whole.parameters()), hosting)
    assert optimizer is not None, "an optimiser is configured"
    inputs, targets = (torch.randn(plan.batch, plan.hidden_dim) for _ in range(2))
    settings = Settings().replace(
        splitting={"codec": plan.codec},
        trainer={"forward_timeout": _PATIENCE, "backward_timeout": _PATIENCE},
    )
    rates: tuple[list[float], list[float]] = ([], [])
    computed: tuple[list[float], list[float]] = ([], [])
    with connect(peers[0].address, run=_RUN, settings=settings) as swarm:
        layer = swarm.split_layer(_LAYER)

        def step_split() -> float:
            return _step(layer, inputs, targets)

        def step_whole() -> float:
            optimizer.zero_grad()
            loss = _step(whole, inputs, targets)
            optimizer.step()
            return loss

        tell("waiting until all peers take each step")
        taken = 0

        def is_shared() -> bool:
            nonlocal taken
            loss, expected = step_split(), step_whole()
            if abs(loss - expected) > 1e-3 * expected:
                raise LocalError(f"the split layer has a loss of {loss}, the whole one {expected}")
            taken += 1
            swarm.settle()
            return {peer.experts()[0]["steps"] for peer in peers} == {taken}

        wait_until(is_shared, "sharing a batch", _WARM_UP)
        for number in range(plan.rounds):
            for side, step in enumerate((step_split, step_whole)):
                began, before = time.perf_counter(), processor_seconds()
                for _ in range(plan.steps):
                    step()
                swarm.settle()
                rates[side].append(plan.steps * plan.batch / (time.perf_counter() - began))
                computed[side].append(max(_TICK, processor_seconds() - before) / plan.steps)
            tell(f"round {number + 1} of {plan.rounds} is over")
    size = sum(each.numel() for each in whole.parameters())
    title = f"{plan.peers} processes share batches of {plan.batch}, {size / 1e6:.3g} M weights"
    return [
        Figure(
            name="split",
            title=f"{title}, against one",
            unit="rows/s",
            values=rates[0],
            baselines=rates[1],
            goal=Goal(bound=_GOAL, at_least=True),
        ),
        Figure(
            name="split_work",
            title="processor time of a step, of all processes, against one",
            unit="s",
            values=computed[0],
            baselines=computed[1],
        ),
    ]


def _step(layer: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    loss = functional.mse_loss(layer(inputs), targets)
    torch.autograd.backward(loss)
    return loss.item()
