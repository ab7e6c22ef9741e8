"""A trainer's calls in Python's own logging, under the name `p2pnode.calls`.

A trainer is a library in somebody's script, whose logging is the script's business. Calls that went
well are told at the level DEBUG, and failed ones, which are tried elsewhere, at INFO. Each has the
trace by which the log of its host tells of the same call.
"""

import logging
from typing import Final

from p2pnode.events import EventBus
from p2pnode.rpc.client import CallMade

_log: Final = logging.getLogger("p2pnode.calls")


def log_calls(events: EventBus) -> None:
    """Log the calls that `events` tells of."""
    events.on(CallMade, _write)


def _write(event: CallMade) -> None:
    level = logging.DEBUG if event.error is None else logging.INFO
    if _log.isEnabledFor(level):
        _log.log(
            level,
            "%s of %s at %s: %s after %.1f ms, trace %s",
            event.operation,
            event.uid.name,
            event.peer_id,
            event.error or "ok",
            event.seconds * 1000,
            event.trace.hex() or "none",
            extra={"trace": event.trace.hex()},
        )
