"""The daemon's log: one line for each event, for people or for machines.

What a stranger can cause, it can cause often. Of each kind of event so many lines are written in
so many seconds, and one that says that others were left out. And whoever reads the log may stop:
what the pipe does not take then is lost, and counted, so that the daemon never stands still.
"""

import dataclasses
import re
import select
import sys
import time
from typing import Any, Final

import trio

from cli.output import as_one_line, print_json, print_note
from p2pnode.clock import wall_time
from p2pnode.events import Event

LEVELS: Final = ("debug", "info", "warning")
MAX_LINES: Final = 100  # of one kind, in each period
PERIOD: Final = 10.0  # seconds


@dataclasses.dataclass(slots=True)
class _Quota:
    ends: float
    lines: int = 0


class EventLog:
    """Writes events of a level or above; lines for people go to standard error.

    Machines are promised the daemon's `ready` as the first line: what happens before is held back
    for them until `release`.
    """

    def __init__(self, level: str, *, as_json: bool) -> None:
        self._threshold = LEVELS.index(level)
        self._as_json = as_json
        self._held: list[dict[str, Any]] | None = [] if as_json else None
        self._quotas: dict[str, _Quota] = {}
        self._lost = 0  # lines that nobody took

    def write(self, event: Event) -> None:
        """Write one event."""
        if LEVELS.index(event.level) < self._threshold:
            return
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
        lines = self._count(name)
        if lines < MAX_LINES:
            facts = {
                each.name: _plain(getattr(event, each.name)) for each in dataclasses.fields(event)
            }
            self._put(name, event.level, facts)
        elif lines == MAX_LINES:
            self._put("left_out", event.level, {"kind": name, "seconds": PERIOD})

    def release(self) -> None:
        """Write what was held back, and hold nothing back from now on."""
        held, self._held = self._held or [], None
        for line in held:
            print_json(line)

    def _count(self, name: str) -> int:
        """Count a line; returns how many of its kind this period has had before."""
        now = trio.current_time()
        quota = self._quotas.get(name)
        if quota is None or now >= quota.ends:
            quota = self._quotas[name] = _Quota(ends=now + PERIOD)
        quota.lines += 1
        return quota.lines - 1

    def _put(self, name: str, level: str, facts: dict[str, Any]) -> None:
        if self._held is None and not self._has_room():
            self._lost += 1
            return
        if lost := self._lost:
            self._lost = 0
            self._say("lost", "warning", {"lines": lost})
        self._say(name, level, facts)

    def _say(self, name: str, level: str, facts: dict[str, Any]) -> None:
        now = wall_time()
        if self._as_json:
            line = {"event": name, "time": now, "level": level, **facts}
            if self._held is None:
                print_json(line)
            else:
                self._held.append(line)
            return
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        described = "  ".join(f"{key}={value}" for key, value in facts.items() if value is not None)
        print_note(as_one_line(f"{clock} {level:7} {name.replace('_', ' ')}  {described}"))

    def _has_room(self) -> bool:
        """Tell whether a line (below 4 KiB) can be written without waiting for who reads them."""
        try:
            file = (sys.stdout if self._as_json else sys.stderr).fileno()
            return bool(select.select([], [file], [], 0)[1])
        except (OSError, ValueError):  # it is no file of the system's, or one that cannot be asked
            return True


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if hasattr(value, "peer_id"):  # a connection
        return str(value.peer_id)
    if isinstance(value, bytes) and type(value) is bytes:
        return value.hex() or None  # such as the trace of a call that has none
    return str(value)
