"""What is trained how; and for `--demo`, which of three hosts has which blocks.

Each block has two hosts, so that the blocks of any one of the three live on when it is killed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RUN: Final = "lm"
BLOCK: Final = "blocks"
MODEL: Final = "tiny"
LAYERS: Final = (  # of the hosts of a demo; its model has six blocks
    (f"{RUN}/{BLOCK}.[0:4]",),
    (f"{RUN}/{BLOCK}.[2:6]",),
    (f"{RUN}/{BLOCK}.[0:2]", f"{RUN}/{BLOCK}.[4:6]"),
)
LEARNING_RATE: Final = 2e-3  # of the trainer's own layers, and of a demo's blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user can choose."""

    bootstrap: tuple[str, ...] = ()
    run: str = RUN
    invite: str | None = None
    demo: bool = False
    report: Path | None = None  # where report.json goes, and the logs of a demo's hosts
    model: str = MODEL
    dtype: str = "float32"
    text: Path | None = None  # Python's documentation by default
    ends: Path | None = None  # where the trainer's own layers are kept
    steps: int = 200
    batch: int = 16
    context: int = 128
    micro_batches: int = 4
    learning_rate: float = LEARNING_RATE
    seed: int = 0
    prompt: str = "The "
    length: int = 200
    temperature: float = 0.7
    as_json: bool = False

    @property
    def kill_at(self) -> int | None:
        """The step after which a host is killed."""
        return self.steps // 2 if self.demo else None


def host_settings(layers: tuple[str, ...], seed: int) -> dict[str, dict[str, Any]]:
    """Return the settings of a demo's host."""
    return {
        "node": {"layers": list(layers)},
        "hosting": {
            "model": MODEL,
            "optimizer": "adamw",
            "learning_rate": LEARNING_RATE,
            "seed": seed,
            "threads": 1,  # four processes share this machine
            "update_period": 1.0,
        },
    }
