"""Yamux: many streams on one channel.

`frames` is the wire, `core` the session as a state machine with its `outbox`, `service` its tasks,
and `stream` what their users hold.
"""

from p2pnode.mux.yamux.frames import INITIAL_WINDOW, PROTOCOL
from p2pnode.mux.yamux.service import YamuxConnection
from p2pnode.mux.yamux.stream import YamuxStream

__all__ = ["INITIAL_WINDOW", "PROTOCOL", "YamuxConnection", "YamuxStream"]
