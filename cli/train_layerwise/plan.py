"""What is trained how, and who has which part of it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pnode.errors import ConfigError

RUN: Final = "images"
BLOCK: Final = "layers"
HELD_OUT: Final = 0.2  # of a participant's part, never trained on
MIN_LAYERS: Final = 2


@dataclass(frozen=True, slots=True)
class Place:
    """The k-th of n, from 1: a layer of the network, or a part of the data."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read `2/3`.

        Raises:
            ConfigError: it is not such a text.
        """
        number, _, count = text.partition("/")
        if not all(each.isascii() and each.isdecimal() for each in (number, count)):
            raise ConfigError(f"{text!r} is not a place such as 1/3, the first of three")
        found = cls(int(number), int(count))
        if not 1 <= found.number <= found.count:
            raise ConfigError(f"there is no place {text}; they count from 1/{found.count} on")
        return found

    def __str__(self) -> str:
        """Return what `parse` reads."""
        return f"{self.number}/{self.count}"

    @property
    def expert(self) -> str:
        """The name of this layer, without its run."""
        return f"{BLOCK}.{self.number - 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """What all participants of a run must choose alike."""

    mode: str = "best"
    threshold: float = 0.9
    rounds: int = 100
    samples: int = 256  # that a participant trains on in each round
    batch: int = 32
    in_flight: int = 4
    max_staleness: int = 16
    codec: str = "none"

    def flags(self) -> list[str]:
        """Return what `train-layerwise join` is told."""
        values = dataclasses.asdict(self).items()
        return [
            part for name, value in values for part in (f"--{name.replace('_', '-')}", str(value))
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What a user of the demo can choose."""

    agreed: Agreed = Agreed()
    layers: int = MIN_LAYERS
    peers: int = 3  # of each layer
    hidden_dim: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    kill: bool = False
    report: Path = Path("layerwise-report")
    as_json: bool = False

    @property
    def participants(self) -> int:
        """How many processes there are."""
        return self.layers * self.peers

    def place(self, number: int) -> Place:
        """Return which layer a participant hosts; neighbours host different ones."""
        return Place(number % self.layers + 1, self.layers)
