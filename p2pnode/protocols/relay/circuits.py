"""Carrying a circuit: bytes are copied both ways until it ends, or must end.

A piece is read when the one before has been taken by the other side's flow control, so a slow
reader slows the sender down, and a circuit never holds more than a piece of its own each way,
besides what the windows of its two streams have promised.
"""

import math

import trio

from p2pnode.errors import P2PNodeError
from p2pnode.host import Stream
from p2pnode.host.pacing import Pace
from p2pnode.protocols.relay.core import Circuit
from p2pnode.protocols.relay.exchanges import CHUNK, send_hop
from p2pnode.protocols.relay.messages import HopMessage


class Carriage:
    """One circuit being carried; `run` ends with it.

    Args:
        circuit: what is counted and limited.
        ends: the streams to the source and to the target.
        pace: what all circuits share.
        idle_timeout: seconds without a byte after which it ends.
    """

    def __init__(
        self, circuit: Circuit, ends: tuple[Stream, Stream], *, pace: Pace, idle_timeout: float
    ) -> None:
        self._circuit = circuit
        self._ends = ends
        self._pace = pace
        self._idle_timeout = idle_timeout
        self._scope = trio.CancelScope()
        self._moved_at = -math.inf
        self._reason: str | None = None

    async def run(self, greeting: HopMessage) -> str:
        """Carry it until it ends; then both streams have ended.

        Args:
            greeting: tells the source that it stands, in front of the first bytes.

        Returns:
            Why it ended.
        """
        self._moved_at = trio.current_time()
        is_whole = False
        try:
            with self._scope:
                async with trio.open_nursery() as watch:
                    watch.start_soon(self._watch)
                    await self._greet(greeting)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._copy, 0)
                        nursery.start_soon(self._copy, 1)
                    watch.cancel_scope.cancel()
                is_whole = self._reason is None
        finally:
            if not is_whole:
                for each in self._ends:
                    each.reset()
        if is_whole:
            await self._ends[1].aclose()  # the host closes the other one, whose handler this is
            return "both ends have finished"
        assert self._reason is not None  # nothing else has cancelled this scope
        return self._reason

    async def _watch(self) -> None:
        """End it when its time is over; a clock for it, which costs the bytes nothing."""
        limit = self._circuit.limit.duration
        over_at = self._moved_at + limit if limit else math.inf
        while True:
            idle_at = self._moved_at + self._idle_timeout
            await trio.sleep_until(min(over_at, idle_at))
            now = trio.current_time()
            if now >= over_at:
                self._end("its time was over")
            elif now >= self._moved_at + self._idle_timeout:
                self._end("nothing moved on it for too long")

    async def _greet(self, greeting: HopMessage) -> None:
        try:
            await send_hop(self._ends[0], greeting)
        except P2PNodeError as error:
            self._end(f"the source: {error}")

    async def _copy(self, way: int) -> None:
        source, target = self._ends[way], self._ends[1 - way]
        try:
            while pieces := await source.receive_pieces(self._most(way)):
                if not self._circuit.room(way, 1):
                    self._end("it has carried all that it may")
                    return
                size = sum(map(len, pieces))
                self._circuit.carried[way] += size
                await self._wait_for_turn(size)
                await target.send_pieces(pieces)
                self._moved_at = trio.current_time()
            await target.send_eof()
        except P2PNodeError as error:
            self._end(f"{'the source' if source is self._ends[0] else 'the target'}: {error}")

    def _most(self, way: int) -> int:
        """How much to read at once; one byte, where none may pass, shows whether more comes."""
        return max(1, self._circuit.room(way, self._pace.chunk(CHUNK)))

    async def _wait_for_turn(self, size: int) -> None:
        now = trio.current_time()
        at = self._pace.reserve(size, now)
        if at > now:
            await trio.sleep_until(at)

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._scope.cancel()
