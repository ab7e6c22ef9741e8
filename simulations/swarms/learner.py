"""What a participant of a swarm trains: a classifier of digits that is hosted as one layer."""

import hashlib
import random
from dataclasses import dataclass
from typing import Final

import torch
import trio
from torch import nn
from torch.nn import functional

from p2pnode.errors import CheckpointError
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.tensors import buffer_of
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid
from simulations.learning.data import CLASSES, Batches, Images

LAYER: Final = "simulations.swarms.learner:Classifier"
MODULE: Final = "module."  # what a state calls the weights by, before their own names
_FEATURES: Final = 32
_DEADLINE: Final = 3600.0  # virtual seconds; nobody else calls the layer


class Classifier(nn.Module):
    """Two linear layers with a ReLU between them.

    Args:
        hidden_dim: the pixels of an image.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(hidden_dim, _FEATURES)
        self.second = nn.Linear(_FEATURES, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return a score for each digit, of shape (rows, 10)."""
        scores: torch.Tensor = self.second(functional.relu(self.first(pixels)))
        return scores


@dataclass(frozen=True, slots=True)
class Share:
    """The images of one participant: what it trains on, and what it scores on."""

    train: Images
    held_out: Images


def shares_of(images: Images, count: int, held_out: int) -> list[Share]:
    """Deal images out to participants, to each as many.

    Args:
        images: in any order.
        count: how many participants there are.
        held_out: how many of each one's images it scores on.
    """
    each = len(images) // count
    parts = [torch.arange(number * each, (number + 1) * each) for number in range(count)]
    return [Share(images.take(part[held_out:]), images.take(part[:held_out])) for part in parts]


def accuracy(checkpoint: Checkpoint, images: Images) -> float:
    """Return the part of some images that the weights of a state classify right.

    Raises:
        CheckpointError: they are not of such a classifier.
    """
    weights = {
        name.removeprefix(MODULE): each
        for name, each in checkpoint.state.tensors.items()
        if name.startswith(MODULE)
    }
    module = Classifier(images.pixels.shape[1])
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit: {error}") from error
    with torch.no_grad():
        right = module(images.pixels).argmax(dim=1) == images.digits
    return float(right.float().mean())


class ShareLearner:
    """Trains the classifier that a node hosts, on one participant's images: a `Learner`.

    Training calls the layer as everybody does: forward, then backward, which steps its optimiser.

    Args:
        experts: who hosts it.
        uid: the layer.
        caller: who calls.
        share: the images.
        batch: images of a step.
        seconds: that scoring takes, modelled; training takes what the host's device takes.
        rng: decides the order of the images.
    """

    def __init__(
        self,
        experts: ExpertHost,
        uid: Uid,
        caller: PeerId,
        share: Share,
        *,
        batch: int,
        seconds: float,
        rng: random.Random,
    ) -> None:
        self._experts = experts
        self._uid = uid
        self._caller = caller
        self._share = share
        self._batch = batch
        self._seconds = seconds
        self._rng = rng
        order = torch.Generator().manual_seed(rng.getrandbits(63))
        self._batches = Batches(share.train, batch, order)

    @property
    def held_out(self) -> int:
        """See `Learner`."""
        return len(self._share.held_out)

    @property
    def data_digest(self) -> bytes:
        """See `Learner`."""
        return hashlib.sha256(buffer_of(self._share.held_out.pixels)).digest()

    @property
    def is_lasting(self) -> bool:
        """See `Learner`."""
        return True

    async def train(self, samples: int) -> None:
        """See `Learner`."""
        for _ in range(max(1, samples // self._batch)):
            images = self._batches.draw()
            deadline = trio.current_time() + _DEADLINE
            (scores,) = await self._experts.forward(
                self._uid, [images.pixels], caller=self._caller, deadline=deadline
            )
            scores = scores.requires_grad_()
            loss = functional.cross_entropy(scores, images.digits)
            (gradient,) = torch.autograd.grad(loss, scores)
            await self._experts.backward(
                self._uid,
                [images.pixels],
                [gradient],
                caller=self._caller,
                call_id=self._rng.randbytes(16),
                deadline=deadline,
            )

    async def score(self, checkpoint: Checkpoint | None) -> float:
        """See `Learner`."""
        await trio.sleep(self._seconds)
        if checkpoint is None:
            checkpoint = await self._experts.snapshot(self._uid, complete=False)
        return accuracy(checkpoint, self._share.held_out)
