"""What the doctor says: findings, the most serious first. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How serious a finding is; from `WARNING` on somebody should do something."""

    GOOD = 0
    NOTE = 1
    WARNING = 2
    PROBLEM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: how serious it is.
        subject: what was looked at, in a word or two.
        says: what was found, in one sentence.
        advice: what to do about it; empty when there is nothing to do.
    """

    level: Level
    subject: str
    says: str
    advice: str = ""


def worst(findings: Iterable[Finding]) -> Level:
    """Return the level of the most serious finding; `GOOD` when there is none."""
    return max((each.level for each in findings), default=Level.GOOD)
