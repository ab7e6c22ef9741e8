"""How long the way takes: distributions of one-way delays, and a matrix of regions.

A delay is drawn anew for each piece of data, as queues on the way differ from moment to moment.
What differs from one pair of machines to another, but lasts, belongs into a `RegionMatrix` and into
the machines' grades.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from p2pnode.testing.network.machines import Machine

# One way, in milliseconds: half of the usual round trips between the big data centres of each pair
# of regions. Within a region it is what separates two of its cities.
_ONE_WAY_MS: Final = {
    ("eu", "eu"): 10,
    ("eu", "us-east"): 45,
    ("eu", "us-west"): 75,
    ("eu", "asia"): 105,
    ("eu", "south-america"): 102,
    ("eu", "oceania"): 135,
    ("us-east", "us-east"): 8,
    ("us-east", "us-west"): 32,
    ("us-east", "asia"): 85,
    ("us-east", "south-america"): 57,
    ("us-east", "oceania"): 100,
    ("us-west", "us-west"): 8,
    ("us-west", "asia"): 55,
    ("us-west", "south-america"): 88,
    ("us-west", "oceania"): 70,
    ("asia", "asia"): 25,
    ("asia", "south-america"): 130,
    ("asia", "oceania"): 55,
    ("south-america", "south-america"): 15,
    ("south-america", "oceania"): 155,
    ("oceania", "oceania"): 12,
}
REGIONS: Final = tuple(dict.fromkeys(region for pair in _ONE_WAY_MS for region in pair))


class Latency(ABC):
    """What the network between two machines adds to the delays of their own links."""

    @abstractmethod
    def one_way(self, source: "Machine", target: "Machine", rng: random.Random) -> float:
        """Draw the seconds that one piece of data takes from `source` to `target`."""


@dataclass(frozen=True, slots=True)
class Fixed(Latency):
    """Always the same."""

    seconds: float

    def one_way(self, source: "Machine", target: "Machine", rng: random.Random) -> float:  # noqa: ARG002  # the same for all
        """See `Latency`."""
        return self.seconds


@dataclass(frozen=True, slots=True)
class Normal(Latency):
    """Normally distributed; what would be negative is 0."""

    mean: float
    deviation: float

    def one_way(self, source: "Machine", target: "Machine", rng: random.Random) -> float:  # noqa: ARG002  # the same for all
        """See `Latency`."""
        return max(0.0, rng.gauss(self.mean, self.deviation))


@dataclass(frozen=True, slots=True)
class LogNormal(Latency):
    """Log-normally distributed: most near the median, a few far above it.

    Attributes:
        median: half of the draws are below it.
        sigma: the standard deviation of the logarithm.
    """

    median: float
    sigma: float

    def one_way(self, source: "Machine", target: "Machine", rng: random.Random) -> float:  # noqa: ARG002  # the same for all
        """See `Latency`."""
        return self.median * math.exp(rng.gauss(0.0, self.sigma))


@dataclass(frozen=True, slots=True)
class Exponential(Latency):
    """Exponentially distributed, as in the experiments of Learning@home (2020)."""

    mean: float

    def one_way(self, source: "Machine", target: "Machine", rng: random.Random) -> float:  # noqa: ARG002  # the same for all
        """See `Latency`."""
        return rng.expovariate(1.0 / self.mean) if self.mean > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Drawn(Latency):
    """Whatever a function of the two machines says, at each piece of data anew."""

    draw: "Callable[[Machine, Machine], float]"

    def one_way(self, source: "Machine", target: "Machine", rng: random.Random) -> float:  # noqa: ARG002  # the function has its own
        """See `Latency`."""
        return self.draw(source, target)


def _symmetric() -> dict[tuple[str, str], float]:
    there = {pair: each / 1000 for pair, each in _ONE_WAY_MS.items()}
    return there | {(target, source): each for (source, target), each in there.items()}


@dataclass(frozen=True, slots=True)
class RegionMatrix(Latency):
    """What lies between two machines' regions, times a log-normal factor.

    Attributes:
        one_way_seconds: for each pair of regions, in both orders; by default the `REGIONS` of the
            world.
        sigma: the standard deviation of the factor's logarithm: how much the way differs from
            one piece of data to the next. 0.05 is a few per cent, as on backbones.
    """

    one_way_seconds: Mapping[tuple[str, str], float] = field(default_factory=_symmetric)
    sigma: float = 0.05

    @property
    def regions(self) -> tuple[str, ...]:
        """The names of the regions, in the matrix' order."""
        return tuple(dict.fromkeys(source for source, _ in self.one_way_seconds))

    def one_way(self, source: "Machine", target: "Machine", rng: random.Random) -> float:
        """See `Latency`."""
        seconds = self.one_way_seconds[source.region, target.region]
        return seconds * math.exp(rng.gauss(0.0, self.sigma)) if self.sigma else seconds
