"""Layers of which each tells what it costs: how long devices compute is modelled by that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
import trio
from torch import nn

from p2pnode.config import HostingSettings, Settings
from p2pnode.experts.layers import register_layer
from p2pnode.trainer.layerwise.layers import Entry, Exit, pixel_rows
from simulations.simulation import Simulation

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds that a layer takes, as measured: so many at once, and so many for each row."""

    forward: float
    forward_row: float
    step: float  # forward again, backward and the optimiser, as one backward call is
    step_row: float

    def of(self, rows: int, *, learns: bool) -> float:
        """Return the seconds of one pass."""
        if learns:
            return (self.step + self.step_row * rows) / 1000
        return (self.forward + self.forward_row * rows) / 1000


class Meter:
    """Adds up what layers say that they would have taken."""

    def __init__(self) -> None:
        self._costs: dict[type[nn.Module], Cost] = {}
        self._seconds = 0.0

    def begin(self, parameters: Mapping[str, Any]) -> None:
        """Take in what layers cost, from the `compute.` parameters."""
        self._costs = {
            kind: Cost(
                **{
                    name: parameters[f"compute.{layer}_{name}"]
                    for name in ("forward", "forward_row", "step", "step_row")
                }
            )
            for kind, layer in zip(_KINDS, ("entry", "exit"), strict=True)
        }

    def price(self, kind: type[nn.Module], cost: Cost) -> None:
        """Take in what one kind of layer costs."""
        self._costs[kind] = cost

    def receive(self, layer: nn.Module, rows: int) -> None:
        """A layer has computed some rows."""
        self._seconds += self._costs[type(layer)].of(rows, learns=torch.is_grad_enabled())

    def take(self) -> float:
        """Return the seconds since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


METER: Final = Meter()


@register_layer("metered-entry", inputs=pixel_rows)
class MeteredEntry(Entry):
    """The first layer, which tells what it costs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `Entry`."""
        METER.receive(self, len(x))
        return super().forward(x)


@register_layer("metered-exit")
class MeteredExit(Exit):
    """The last layer, which tells what it costs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `Exit`."""
        METER.receive(self, len(x))
        return super().forward(x)


_KINDS: Final = (MeteredEntry, MeteredExit)


class MeteredDevice:
    """A host's device: computes at once, and is busy for as long as that would have taken.

    Args:
        overhead: seconds that each piece of work takes besides.
    """

    def __init__(self, overhead: float) -> None:
        self._overhead = overhead

    async def __call__(self, work: Callable[[], T]) -> T:
        """See `p2pnode.experts.runtime.Compute`."""
        METER.take()
        result = work()
        with trio.CancelScope(shield=True):  # what was begun is finished
            await trio.sleep(self._overhead + METER.take())
        return result


def hosting_of(sim: Simulation, rate: float) -> list[HostingSettings]:
    """Return how each layer is built."""
    chosen = sim.parameters
    settings = Settings().replace(
        hosting={
            "hidden_dim": chosen["hidden"],
            "optimizer": "adam",
            "learning_rate": rate,
            "seed": sim.rng_for("weights").getrandbits(31),
            "threads": 1,
            "max_step_rows": chosen["batch"],  # so that each micro-batch is a step of its own
        }
    )
    names = [f"{__name__}:{kind.__name__}" for kind in _KINDS]
    return [settings.replace(hosting={"layer": name}).hosting for name in names]
