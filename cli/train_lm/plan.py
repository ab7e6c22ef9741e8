"""What is trained how; and for `--demo`, which of three hosts has which blocks.

Two hosts serve half of the blocks each. The third keeps replicas of all of them, a moment behind,
and takes over the half of the one that is killed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RUN: Final = "lm"
BLOCK: Final = "blocks"
MODEL: Final = "tiny"
SERVED: Final = (f"{RUN}/{BLOCK}.[0:3]", f"{RUN}/{BLOCK}.[3:6]")  # of the demo's six blocks
REPLICAS: Final = f"{RUN}/{BLOCK}.[0:6]"
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
    micro_batches: int = 1
    learning_rate: float = LEARNING_RATE
    codec: str = "none"
    seed: int = 0
    prompt: str = "The "
    length: int = 200
    temperature: float = 0.7
    as_json: bool = False

    @property
    def kill_at(self) -> int | None:
        """The step after which a host is killed."""
        return self.steps // 2 if self.demo else None


def host_settings(number: int, seed: int, micro_batches: int = 1) -> dict[str, dict[str, Any]]:
    """Return the settings of one of a demo's hosts, for batches in so many parts."""
    stands_by = number == len(SERVED)
    return {
        "node": {"layers": [REPLICAS if stands_by else SERVED[number]]},
        "hosting": {
            "model": MODEL,
            "optimizer": "adamw",
            "learning_rate": LEARNING_RATE / micro_batches,  # each of them is a step there
            "seed": seed,
            "threads": 1,  # four processes share this machine
            "update_period": 1.0,
            "standby": stands_by,
            "standby_interval": 1.0,
        },
    }
