"""What the demo runs: its sizes, which daemon hosts what, and when the one is killed.

Losing a daemon should cost a sample one of its four experts, not all of them. The best experts of
a product-key gate share coordinates, so whole rows or columns on one daemon would be the worst
split. Here expert (row, column) is on daemon (row + column) mod 4: each row and each column is
spread over all daemons, as in a Latin square.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RUN: Final = "digits"
BLOCKS: Final = ("ffn0", "ffn1")
GRID: Final = (4, 4)
DAEMONS: Final = 4
VICTIM: Final = 2  # any but the bootstrap node, whose address the replacement is given
EXPERTS: Final = len(BLOCKS) * GRID[0] * GRID[1]
K_BEST: Final = 4

HIDDEN_DIM: Final = 64
DEFAULT_STEPS: Final = 180
BATCH: Final = 128
LEARNING_RATE: Final = 3e-3  # of the trainer's own layers, falling to zero along a cosine
VALIDATION_INTERVAL: Final = 10  # steps

REQUIRED_ACCURACY: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user can choose."""

    steps: int = DEFAULT_STEPS
    seed: int = 0
    report: Path = Path("demo-report")
    data_dir: Path | None = None  # of the daemons; a temporary one by default
    as_json: bool = False

    @property
    def kill_at(self) -> int:
        """The step before which a daemon is killed."""
        return self.steps // 3

    @property
    def return_at(self) -> int:
        """The step before which its replacement is started."""
        return 2 * self.steps // 3

    @property
    def needed_at(self) -> int:
        """The step before which the replacement must serve: it has to train a while, too."""
        return 5 * self.steps // 6


def experts_of(daemon: int) -> list[str]:
    """Name the experts a daemon hosts, with their run."""
    return [
        f"{RUN}/{block}.{row}.{(daemon - row) % DAEMONS}"
        for block in BLOCKS
        for row in range(GRID[0])
    ]


def hosting_settings(seed: int) -> dict[str, Any]:
    """Return the `[hosting]` settings of the daemons, and of the local comparison."""
    return {
        "layer": "ffn",
        "hidden_dim": HIDDEN_DIM,
        "optimizer": "adam",
        "learning_rate": 3e-4,
        "seed": seed,
        "threads": 1,  # five processes share this machine
        "update_period": 1.0,
        "checkpoint_interval": 1.0,
    }
