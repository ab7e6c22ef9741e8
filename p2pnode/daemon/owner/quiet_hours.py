"""Hours in which the node stands aside, as its owner writes them: pure.

    [DAY[-DAY]] HH:MM-HH:MM         mon-fri 09:00-17:00, sat 22:00-02:00, 23:30-07:00

Without days it is every day. A span that does not end after it begins goes on into the next day,
and belongs to the day on which it begins. What counts is what a clock on the wall shows: on the
night on which clocks are set back, a span of 02:00-03:00 comes twice, and on the night on which
they are set forward it does not come.
"""

import datetime as dt
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ConfigError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTE: Final = 60.0  # seconds; spans begin and end with a minute
_DAY: Final = 24 * 60  # minutes
_HORIZON: Final = 8 * _DAY  # what has not changed in a week and a day never will
_SPAN: Final = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))? +)?"
    r"(?P<begin>[0-9]{2}:[0-9]{2})-(?P<end>[0-9]{2}:[0-9]{2})"
)


@dataclass(frozen=True, slots=True)
class Span:
    """One span of each of some days.

    Attributes:
        days: on which it begins, numbered from Monday, 0.
        begin: minutes since midnight.
        end: minutes since midnight; the span ends before it, on the next day if `end <= begin`.
    """

    days: frozenset[int]
    begin: int
    end: int

    def covers(self, weekday: int, minute: int) -> bool:
        """Whether a minute of a day of the week lies within it."""
        if self.begin < self.end:
            return weekday in self.days and self.begin <= minute < self.end
        if minute >= self.begin:
            return weekday in self.days
        return minute < self.end and (weekday - 1) % len(DAYS) in self.days


def parse_span(text: str) -> Span:
    """Read one span.

    Raises:
        ConfigError: it is none; the text says how one looks.
    """
    found = _SPAN.fullmatch(text.strip().lower())
    days = None if found is None else _days(found["first"], found["last"])
    if found is not None and days is not None:
        begin, end = _minutes(found["begin"]), _minutes(found["end"])
        if begin is not None and end is not None and begin != end and begin < _DAY:
            return Span(days, begin, end)
    raise ConfigError(
        f"{text!r} is no span of quiet hours; write one as 'mon-fri 09:00-17:00', or '22:00-07:00'"
        " for every day"
    )


def _days(first: str | None, last: str | None) -> frozenset[int] | None:
    if first is None:
        return frozenset(range(len(DAYS)))
    if first not in DAYS or (last or first) not in DAYS:
        return None
    begin, end = DAYS.index(first), DAYS.index(last or first)
    return frozenset((begin + each) % len(DAYS) for each in range((end - begin) % len(DAYS) + 1))


def _minutes(text: str) -> int | None:
    hours, minutes = int(text[:2]), int(text[3:])
    found = hours * 60 + minutes
    return found if minutes < 60 and found <= _DAY else None


class QuietHours:
    """All spans of one node.

    Args:
        texts: the spans as they were written.
        zone: whose clock counts; None for the machine's own.

    Raises:
        ConfigError: one of the texts is no span.
    """

    def __init__(self, texts: Iterable[str], zone: dt.tzinfo | None = None) -> None:
        self._spans = [parse_span(each) for each in texts]
        self._zone = zone

    def __bool__(self) -> bool:
        return bool(self._spans)

    def covers(self, moment: float) -> bool:
        """Whether the node is to be quiet at a moment, in seconds since the epoch."""
        shown = dt.datetime.fromtimestamp(moment, self._zone)
        minute = shown.hour * 60 + shown.minute
        return any(span.covers(shown.weekday(), minute) for span in self._spans)

    def next_change(self, moment: float) -> float | None:
        """Return when `covers` next changes, in seconds since the epoch; None if it never does.

        Each minute of a week is looked at: some days have 23 hours, others 25, and which ones is
        known to the operating system alone. It takes a few milliseconds at most.
        """
        if not self._spans:
            return None
        before = self.covers(moment)
        minute = moment // MINUTE * MINUTE
        for _ in range(_HORIZON):
            minute += MINUTE
            if self.covers(minute) != before:
                return minute
        return None
