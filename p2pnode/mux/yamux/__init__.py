"""Yamux: many streams on one channel.

`frames` is the wire, `core` the session as a state machine, `service` its tasks and streams.
"""

from p2pnode.mux.yamux.frames import INITIAL_WINDOW, PROTOCOL
from p2pnode.mux.yamux.service import YamuxConnection, YamuxStream

__all__ = ["INITIAL_WINDOW", "PROTOCOL", "YamuxConnection", "YamuxStream"]
