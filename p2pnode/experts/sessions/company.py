"""Whether a session's step waits a moment for other sessions, to be computed with theirs: pure.

Steps that wait for a busy device are joined anyway. An idle one would compute the first step that
comes, and let all others wait for that; but sessions that generate text come back in a rhythm: the
next step follows the answer after about the time it took the last time. So a step waits for the
sessions that are due within the window, and for nobody else: a session that is alone, or whose
company is slow or has paused, never waits.

Inputs: `receive_step`, `receive_answer`, `forget`. Output: `wait_until`. Time is an argument.
"""

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class _Rhythm:
    answered_at: float | None = None  # None while a step is under way
    pause: float | None = None  # between the last answer and the step behind it


class Company:
    """The sessions that run through the same blocks.

    Args:
        window: seconds that a step waits at most.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._rhythms: dict[Hashable, _Rhythm] = {}
        self._gathering_since = 0.0
        self._gathering = 0

    def __len__(self) -> int:
        """Return how many sessions have stepped."""
        return len(self._rhythms)

    def receive_step(self, session: Hashable, now: float) -> None:
        """A step has come; it waits until `wait_until`, and then calls `receive_start`."""
        rhythm = self._rhythms.setdefault(session, _Rhythm())
        if rhythm.answered_at is not None:
            rhythm.pause = now - rhythm.answered_at
        rhythm.answered_at = None
        if not self._gathering:
            self._gathering_since = now
        self._gathering += 1

    def receive_start(self) -> None:
        """A step that waited goes on."""
        self._gathering -= 1

    def receive_answer(self, session: Hashable, now: float) -> None:
        """A step was answered."""
        self._rhythms.setdefault(session, _Rhythm()).answered_at = now

    def forget(self, session: Hashable) -> None:
        """A session has ended."""
        self._rhythms.pop(session, None)

    def wait_until(self, now: float) -> float:
        """Return until when steps that have come wait, unless another one comes first."""
        end = self._gathering_since + self._window
        due = [
            each.answered_at + each.pause
            for each in self._rhythms.values()
            if each.answered_at is not None and each.pause is not None
        ]
        # Who is late by more than the window has changed its rhythm.
        return end if any(now - self._window <= each <= end for each in due) else now
