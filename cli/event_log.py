"""The daemon's log: one line for each event, for people or for machines."""

import dataclasses
import re
import sys
import time
from typing import Any, Final

from cli.output import print_event
from p2pnode.clock import wall_time
from p2pnode.events import Event

LEVELS: Final = ("debug", "info", "warning")


class EventLog:
    """Writes events of a level or above; lines for people go to standard error."""

    def __init__(self, level: str, *, as_json: bool) -> None:
        self._threshold = LEVELS.index(level)
        self._as_json = as_json

    def write(self, event: Event) -> None:
        """Write one event."""
        if LEVELS.index(event.level) < self._threshold:
            return
        facts = {each.name: _plain(getattr(event, each.name)) for each in dataclasses.fields(event)}
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
        if self._as_json:
            print_event(name, time=wall_time(), level=event.level, **facts)
            return
        clock = time.strftime("%H:%M:%S", time.localtime(wall_time()))
        described = "  ".join(f"{name}={value}" for name, value in facts.items())
        line = f"{clock} {event.level:7} {name.replace('_', ' ')}  {described}"
        print(line, file=sys.stderr, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if hasattr(value, "peer_id"):  # a connection
        return str(value.peer_id)
    if isinstance(value, bytes) and type(value) is bytes:
        return value.hex()
    return str(value)
