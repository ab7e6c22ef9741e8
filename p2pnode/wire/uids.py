"""Names of experts: `digits/ffn0.1.2` is run `digits`, block `ffn0`, grid position (1, 2).

A uid is `run/block.i.j…` with one coordinate for each dimension of the block's grid; coordinates
are decimal without leading zeros. A prefix is a uid's name cut behind any of its parts (`ffn0`,
`ffn0.1`): the DHT lists the live experts under each prefix. A pattern stands for many uids and
may hold half-open ranges, `digits/ffn0.[0:4].[0:4]`.

The run is the name people use, or the run's id where it has been resolved; this module does not
tell them apart.
"""

import functools
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import InvalidUidError

MAX_UID_CHARS: Final = 256  # a uid is sent in every call; longer ones only cost
MAX_DIMENSIONS: Final = 8  # each adds a level of records in the DHT and a step to beam search
MAX_COORDINATE: Final = 2**31 - 1
MAX_EXPANSION: Final = 4096  # experts of one pattern, as `hosting.max_experts`

_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:-]*", re.ASCII)
_BLOCK: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_COORDINATE: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_RANGE: Final = re.compile(r"\[(0|[1-9][0-9]{0,9}):(0|[1-9][0-9]{0,9})\]", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Uid:
    """The name of one expert in one run; `str` gives `run/name`, and `parse` reads it back."""

    run: str
    name: str

    def __post_init__(self) -> None:
        check_run(self.run)
        if not _split(self.name)[1]:
            raise InvalidUidError(
                f"{self.name!r} names a block, not an expert; add coordinates, as in {self.name}.0"
            )
        if len(self.run) + 1 + len(self.name) > MAX_UID_CHARS:
            raise InvalidUidError(f"a uid has at most {MAX_UID_CHARS} characters")

    @staticmethod
    def parse(text: str, run: str | None = None) -> "Uid":
        """Read `run/block.i.j`, or `block.i.j` when a default `run` is given.

        Raises:
            InvalidUidError: it is not such a text.
        """
        return _parse(text, run)

    @property
    def block(self) -> str:
        """The part before the first coordinate."""
        return self.name.partition(".")[0]

    @property
    def coordinates(self) -> tuple[int, ...]:
        """The position in the block's grid."""
        return tuple(int(part) for part in self.name.split(".")[1:])

    @property
    def prefix(self) -> str:
        """The name without its last coordinate."""
        return self.name.rpartition(".")[0]

    @property
    def coordinate(self) -> int:
        """The last coordinate."""
        return int(self.name.rpartition(".")[2])

    @property
    def prefixes(self) -> tuple[tuple[str, int], ...]:
        """Each prefix with the coordinate that follows it, the shortest first."""
        found = []
        prefix = self.block
        for coordinate in self.coordinates:
            found.append((prefix, coordinate))
            prefix = f"{prefix}.{coordinate}"
        return tuple(found)

    def span(self, length: int) -> tuple["Uid", ...]:
        """Return this uid and the ones after it in the last coordinate, `length` in all.

        Raises:
            InvalidUidError: `length` is not positive, or there are no coordinates that high.
        """
        return (self,) if length == 1 else _span(self, length)

    def in_run(self, run: str) -> "Uid":
        """Return the uid of the same name in another run, or under the run's id."""
        return _in_run(self, run)

    def __str__(self) -> str:
        """Return `run/name`."""
        return f"{self.run}/{self.name}"


# Every call names its expert twice, and most calls name one that was named a moment ago.
@functools.lru_cache(maxsize=4096)
def _parse(text: str, run: str | None) -> Uid:
    return Uid(*_split_run(text, run))


@functools.lru_cache(maxsize=4096)
def _in_run(uid: Uid, run: str) -> Uid:
    return Uid(run, uid.name)


@functools.lru_cache(maxsize=1024)  # a stack of layers is called by the same few spans all the time
def _span(first: Uid, length: int) -> tuple[Uid, ...]:
    start = first.coordinate
    if length < 1 or start + length - 1 > MAX_COORDINATE:
        raise InvalidUidError(f"there are no {length} uids from {first.name} on")
    return tuple(
        Uid(first.run, f"{first.prefix}.{coordinate}")
        for coordinate in range(start, start + length)
    )


def check_run(text: str) -> str:
    """Return `text` when it can name a run.

    Raises:
        InvalidUidError: it cannot.
    """
    if len(text) > MAX_UID_CHARS or not _RUN.fullmatch(text):
        raise InvalidUidError(
            f"{text[:MAX_UID_CHARS]!r} cannot name a run; use letters, digits, '_', '-' and ':'"
        )
    return text


def check_prefix(text: str) -> str:
    """Return `text` when it is a prefix: a block, and maybe some coordinates.

    Raises:
        InvalidUidError: it is not.
    """
    _split(text)
    return text


def expand(pattern: str, run: str | None = None, *, limit: int = MAX_EXPANSION) -> list[Uid]:
    """List the uids of a pattern, the last coordinate running fastest.

    Args:
        pattern: a uid in which `[a:b]` may stand for the coordinates a, a+1, …, b-1.
        run: the run of a pattern that does not name one.
        limit: the most uids a pattern may stand for.

    Raises:
        InvalidUidError: the pattern cannot be read, or stands for no uid or too many.
    """
    run, name = _split_run(pattern, run)
    block, *parts = name.split(".")
    if len(parts) > MAX_DIMENSIONS:
        raise InvalidUidError(f"{pattern!r} has more than {MAX_DIMENSIONS} coordinates")
    axes = [_axis(part, pattern) for part in parts]
    count = math.prod(len(axis) for axis in axes)
    if count > limit:
        raise InvalidUidError(f"{pattern!r} stands for {count} experts; at most {limit} are taken")
    return [
        Uid(run, ".".join((block, *map(str, position)))) for position in itertools.product(*axes)
    ]


def expand_all(
    patterns: Sequence[str], run: str | None = None, *, limit: int = MAX_EXPANSION
) -> list[Uid]:
    """List the uids of several patterns, each once, in order of first appearance.

    Raises:
        InvalidUidError: a pattern cannot be read, or there are more than `limit` uids.
    """
    found = dict.fromkeys(uid for each in patterns for uid in expand(each, run, limit=limit))
    if len(found) > limit:
        raise InvalidUidError(f"the patterns stand for {len(found)} experts; at most {limit} fit")
    return list(found)


def _axis(part: str, pattern: str) -> Sequence[int]:
    if found := _RANGE.fullmatch(part):
        start, stop = int(found[1]), int(found[2])
        if start >= stop:
            raise InvalidUidError(f"the range {part} in {pattern!r} is empty")
        if stop - 1 > MAX_COORDINATE:
            raise InvalidUidError(f"the range {part} in {pattern!r} exceeds {MAX_COORDINATE}")
        return range(start, stop)
    return (_coordinate(part, pattern),)


def _coordinate(part: str, text: str) -> int:
    if not _COORDINATE.fullmatch(part) or int(part) > MAX_COORDINATE:
        raise InvalidUidError(
            f"{part[:20]!r} in {text[:MAX_UID_CHARS]!r} is not a coordinate:"
            f" a whole number from 0 to {MAX_COORDINATE} without leading zeros"
        )
    return int(part)


def _split_run(text: str, run: str | None) -> tuple[str, str]:
    if len(text) > MAX_UID_CHARS:
        raise InvalidUidError(f"a uid has at most {MAX_UID_CHARS} characters")
    head, slash, tail = text.partition("/")
    if slash:
        return head, tail
    if run is None:
        raise InvalidUidError(f"{text!r} does not say its run, as in digits/{text}")
    return run, text


def _split(name: str) -> tuple[str, tuple[int, ...]]:
    if len(name) > MAX_UID_CHARS:
        raise InvalidUidError(f"a uid has at most {MAX_UID_CHARS} characters")
    block, *parts = name.split(".")
    if not _BLOCK.fullmatch(block):
        raise InvalidUidError(
            f"{block!r} in {name!r} cannot name a block; use letters, digits, '_' and '-',"
            " a letter first"
        )
    if len(parts) > MAX_DIMENSIONS:
        raise InvalidUidError(f"{name!r} has more than {MAX_DIMENSIONS} coordinates")
    return block, tuple(_coordinate(part, name) for part in parts)
