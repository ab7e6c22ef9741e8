"""Trainers that work at the same time on one trunk, and apply their gradients late.

A trainer computes a batch forward and backward while it holds the model (`compute` seconds). The
experts gather their gradients at once. Then it waits for the network, Exp(delay) seconds, and
applies its gradients of the trunk, which others have stepped meanwhile: its *staleness* is how
often. Without delay it applies them before anyone else computes.

The law: n trainers that are hardly ever busy are nearly always waiting, and between a trainer's
computing and its applying each other one applies once on average. So the mean staleness is close to
n - 1 when n times `compute` is small against `delay`, whatever the delay is.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import trio

from simulations.learning.data import Batches, Data
from simulations.learning.model import Classifier


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the held-out images said after some steps.

    Attributes:
        step: how many steps the trunk had taken.
        time: virtual seconds since training began.
        accuracy: between 0 and 1.
        loss: the mean cross-entropy, in nats.
    """

    step: int
    time: float
    accuracy: float
    loss: float


@dataclass(slots=True)
class History:
    """What happened in training, step by step.

    Attributes:
        losses: of the batch of each step.
        staleness: of its gradients.
        evaluations: in order; the first one is of the untrained model.
    """

    losses: list[float] = field(default_factory=list)
    staleness: list[int] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """How many steps the trunk has taken."""
        return len(self.losses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a model is trained.

    Attributes:
        trainers: how many work at the same time.
        batch: images of a step.
        steps: of the trunk, of all trainers together.
        evaluate_every: so many steps.
        delay: mean seconds a gradient is under way, drawn from an exponential distribution.
        compute: seconds that a batch takes, forward and backward.
    """

    trainers: int
    batch: int
    steps: int
    evaluate_every: int
    delay: float
    compute: float


async def train(
    model: Classifier,
    data: Data,
    schedule: Schedule,
    *,
    delays: random.Random,
    order: torch.Generator,
    on_evaluated: Callable[[Evaluation], None],
) -> History:
    """Train a model to the end of its schedule, on trio's clock.

    Args:
        model: changed in place.
        data: what to train and to evaluate on.
        schedule: how.
        delays: decides how long each gradient is under way.
        order: decides the order of the images.
        on_evaluated: is told of each evaluation at once.
    """
    history = History()
    held = trio.StrictFIFOLock()
    batches = Batches(data.train, schedule.batch, order)
    began = trio.current_time()

    def evaluate() -> None:
        accuracy, loss = model.evaluate(data.held_out)
        now = trio.current_time() - began
        history.evaluations.append(Evaluation(history.steps, now, accuracy, loss))
        on_evaluated(history.evaluations[-1])

    def apply(loss: float, gradients: list[torch.Tensor | None], version: int) -> None:
        if history.steps == schedule.steps:
            return  # another trainer took the last step
        model.apply(gradients)
        history.staleness.append(history.steps - version)
        history.losses.append(loss)
        if history.steps % schedule.evaluate_every == 0 or history.steps == schedule.steps:
            evaluate()

    async def work() -> None:
        while True:
            async with held:
                if history.steps == schedule.steps:
                    break
                version = history.steps
                loss, gradients = model.gradients(batches.draw())
                await trio.sleep(schedule.compute)
                if not schedule.delay:
                    apply(loss, gradients, version)
                    continue
            await trio.sleep(delays.expovariate(1 / schedule.delay))
            async with held:
                apply(loss, gradients, version)
        nursery.cancel_scope.cancel()

    evaluate()
    async with trio.open_nursery() as nursery:
        for _ in range(schedule.trainers):
            nursery.start_soon(work)
    return history
