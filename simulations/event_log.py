"""The log of a simulation: one line of JSON for each fact, the same to the byte in each replay.

Lines are hashed as they come, and written to a file if there is one, so that a long run costs no
memory. A fact may be a number, text, truth value, None, or a list or dict of these; anything else
is an error, as its text could hold an address in memory. A number that is not finite becomes null,
as in the report: JSON has none.
"""

import hashlib
import json
import math
from collections import Counter
from typing import IO, Any, Final

import trio

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class EventLog:
    """Where a simulation says what happened, and when in virtual time.

    Args:
        file: takes the lines, if anybody wants them.
    """

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.count: Counter[str] = Counter()  # facts by kind

    def record(self, kind: str, /, **facts: Any) -> None:
        """Note that something happened now.

        Args:
            kind: its name, such as `node-crashed`.
            facts: what else there is to say.

        Raises:
            TypeError: a fact is not plain data.
        """
        entry = {"t": round(trio.current_time(), 9), "kind": kind, **facts}
        try:
            text = _ENCODER.encode(entry)
        except ValueError:
            text = _ENCODER.encode(_finite(entry))
        line = text.encode() + b"\n"
        self._hash.update(line)
        self.count[kind] += 1
        if self._file is not None:
            self._file.write(line)

    @property
    def digest(self) -> str:
        """The SHA-256 of all lines so far, in hexadecimal."""
        return self._hash.hexdigest()

    @property
    def lines(self) -> int:
        """How many facts were recorded."""
        return self.count.total()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
