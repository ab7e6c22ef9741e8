"""One process that trains the same network alone, to compare with.

The same first weights, optimiser, micro-batches and examples as the participants have together, and
the same rule to stop: accuracy on the hold-out, looked at after as many examples as a participant
trains on in a round. It is plain PyTorch; nothing is hosted.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from cli.train_layerwise.plan import DemoOptions
from cli.train_layerwise.record import Look
from p2pnode.config import Settings
from p2pnode.experts.backend import build_backend
from p2pnode.experts.optimizers import build_optimizer
from p2pnode.trainer.layerwise.data import Batches, Examples, Part
from p2pnode.trainer.layerwise.layers import layer_names
from p2pnode.wire.uids import Uid


def train_alone(
    options: DemoOptions, parts: Sequence[Part], test: Examples, tell: Callable[[Look], None]
) -> float:
    """Train until the threshold, or as many rounds as the swarms may take, for each of their parts.

    Args:
        options: of the demo.
        parts: what the participants have, with one hold-out for all.
        test: looked at once, in the end.
        tell: told of each look at the hold-out.

    Returns:
        The accuracy on the test set.
    """
    agreed = options.agreed
    settings = Settings().replace(
        hosting={
            "hidden_dim": options.hidden_dim,
            "learning_rate": options.learning_rate,
            "seed": options.seed,
        }
    )
    modules = []
    for number, name in enumerate(layer_names(options.layers)):
        hosting = settings.replace(hosting={"layer": name}).hosting
        modules.append(build_backend(Uid("alone", options.place(number).expert), hosting).module)
    network = nn.Sequential(*modules)
    optimizer = build_optimizer(list(network.parameters()), settings.hosting)
    assert optimizer is not None, "an optimiser is configured"
    train = _join([each.train for each in parts])
    batches = Batches(train, options.seed)
    began, samples = time.monotonic(), 0
    for number in range(1, agreed.rounds * len(parts) + 1):
        while samples < number * agreed.samples:
            batch = batches.draw(min(agreed.batch, number * agreed.samples - samples))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(batch.inputs), batch.targets)
            torch.autograd.backward(loss)
            optimizer.step()
            samples += len(batch)
        score = _accuracy(network, parts[0].held_out)
        tell(Look(seconds=time.monotonic() - began, samples=samples, score=score))
        if score >= agreed.threshold:
            break
    return _accuracy(network, test)


def _accuracy(network: nn.Module, examples: Examples) -> float:
    with torch.no_grad():
        right = network(examples.inputs).argmax(dim=1) == examples.targets
    return int(right.sum()) / len(examples)  # exact, as participants' scores are


def _join(pieces: Sequence[Examples]) -> Examples:
    return Examples(
        torch.cat([each.inputs for each in pieces]), torch.cat([each.targets for each in pieces])
    )
