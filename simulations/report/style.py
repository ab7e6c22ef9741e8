"""Colours of plots and pages, for light and for dark surroundings, and how numbers are written.

The series' colours are told apart by people with any of the usual colour-vision deficiencies; they
follow Okabe and Ito, darkened for thin lines on white and lightened on black.
"""

import math
import re
from typing import Final

# Of each pair, the first is for light surroundings and the second for dark ones.
PALETTE: Final = (
    ("#0072b2", "#56b4e9"),  # blue
    ("#c84b00", "#ff8f4d"),  # vermilion
    ("#00805e", "#3ccda0"),  # bluish green
    ("#a3508a", "#e29dc9"),  # reddish purple
    ("#8a6400", "#e8b64a"),  # ochre
)
INK: Final = ("#24292e", "#dfe3e8")
FAINT_INK: Final = ("#5a6370", "#9aa4b0")
GRID: Final = ("#e4e8ec", "#30363d")
PAPER: Final = ("#ffffff", "#14171a")

_DASHES: Final = ("solid", (0, (5, 2)), (0, (1, 1.5)))


def line_of(number: int) -> tuple[str, str | tuple[float, tuple[float, ...]]]:
    """Return colour and dashes of the n-th label; they repeat after fifteen."""
    colour = PALETTE[number % len(PALETTE)][0]
    return colour, _DASHES[number // len(PALETTE) % len(_DASHES)]


def number_text(value: float) -> str:
    """Write a number for a reader: four digits that mean something, thousands apart."""
    if value < 0:
        return f"\N{MINUS SIGN}{number_text(-value)}"
    if value == int(value) and value < 1e15:
        return f"{int(value):,}"
    digits = 4 - 1 - math.floor(math.log10(value))
    if digits <= 0:
        return f"{value:,.0f}"
    return f"{value:,.{digits}f}".rstrip("0").rstrip(".") if digits <= 7 else f"{value:.3g}"


def file_name(name: str) -> str:
    """Return a name that any file system takes: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
