"""Streams that have carried a call to its end, kept for the next call.

To open a stream costs both sides about as much as all the rest of a small call, and one that was
used has the receive window that calls of its kind need. The stream of a very large call is given
up instead: its window is others' room.
"""

from collections import deque
from weakref import WeakKeyDictionary

import trio

from p2pnode.config import RpcSettings
from p2pnode.host import Connection, Stream


class KeptStreams:
    """Idle streams by connection, the one used last taken first; all else ends them in time."""

    def __init__(self, settings: RpcSettings) -> None:
        self._settings = settings
        self._kept: WeakKeyDictionary[Connection, deque[tuple[float, Stream]]] = WeakKeyDictionary()

    async def take(self, connection: Connection) -> Stream | None:
        """Return a stream on which a call may be sent; None: open one."""
        kept = self._kept.get(connection)
        while kept:
            until, stream = kept.pop()
            if stream.is_live and trio.current_time() < until:
                return stream
            await stream.aclose()
        return None

    async def keep(self, stream: Stream) -> None:
        """Keep a stream, whose last call has been answered, or end it if there are enough."""
        kept = self._kept.setdefault(stream.connection, deque())
        now = trio.current_time()
        while kept and (kept[0][0] <= now or not kept[0][1].is_live):
            await kept.popleft()[1].aclose()
        if len(kept) < self._settings.kept_streams:
            kept.append((now + self._settings.keep_stream_for, stream))
        else:
            await stream.aclose()
