"""Comparing clocks: what is sent, and which time most peers agree on. Pure.

The dialer sends random bytes. The answer repeats them and adds the answerer's wall clock, so that
nobody can answer ahead of time. The peer's clock was read some time between the question and the
answer: half of a round trip is the error. Source: RFC 5905 (NTP), 8; for agreeing, 11.2.1, which is
Marzullo's algorithm (1984).
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ProtocolError

PROTOCOL: Final = "/p2pnode/clock/1.0.0"
QUESTION_BYTES: Final = 16
_TIME: Final = struct.Struct(">Q")  # nanoseconds since the epoch
ANSWER_BYTES: Final = QUESTION_BYTES + _TIME.size
_LAST: Final = 2.0**34  # seconds since the epoch, the year 2514: no clock shows more by mistake


@dataclass(frozen=True, slots=True)
class Offset:
    """How far a clock is ahead of ours.

    Attributes:
        seconds: negative when it is behind.
        error: the truth is at most so many seconds away from that.
    """

    seconds: float
    error: float


def encode_answer(question: bytes, wall: float) -> bytes:
    """Answer a question with the wall-clock time."""
    return question + _TIME.pack(round(wall * 1e9))


def read_answer(question: bytes, answer: bytes) -> float:
    """Return the time that an answer tells, in seconds since the epoch.

    Raises:
        ProtocolError: it answers something else, or tells no time of this age.
    """
    if len(answer) != ANSWER_BYTES or answer[:QUESTION_BYTES] != question:
        raise ProtocolError("the answer about the time is not one to what was asked")
    (nanoseconds,) = _TIME.unpack_from(answer, QUESTION_BYTES)
    seconds = float(nanoseconds / 1e9)
    if seconds > _LAST:
        raise ProtocolError("the peer's clock shows a time in the far future")
    return seconds


def offset_of(told: float, asked_at: float, round_trip: float) -> Offset:
    """Compare a peer's clock with ours.

    Args:
        told: what it showed, in seconds since the epoch.
        asked_at: what ours showed when we asked.
        round_trip: seconds until the answer was here.
    """
    return Offset(told - (asked_at + round_trip / 2), round_trip / 2)


def agreed(offsets: Iterable[Offset]) -> Offset | None:
    """Find what most peers agree on.

    Returns:
        The middle of the narrowest interval that most of the peers' intervals share; None when no
        more than half of them share one, as when there are none. Fewer than half of them, whatever
        they say, cannot move it out of what an honest one says.
    """
    edges: list[tuple[float, int]] = []
    count = 0
    for each in offsets:
        count += 1
        edges += (each.seconds - each.error, -1), (each.seconds + each.error, 1)
    edges.sort()  # of two edges at one place, the one that opens comes first
    best, inside, low, high = 0, 0, 0.0, 0.0
    for number, (place, step) in enumerate(edges):
        inside -= step
        if inside > best:
            best, low, high = inside, place, edges[number + 1][0]
    if 2 * best <= count:
        return None
    return Offset((low + high) / 2, (high - low) / 2)
