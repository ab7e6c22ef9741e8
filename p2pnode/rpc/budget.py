"""Bytes and calls in flight, charged before anything is allocated: pure.

Refusing is cheap and leaves the caller free to go elsewhere; waiting for room would hold a
stream, and let one slow peer park work that others pay for.
"""

from collections import Counter
from types import TracebackType
from typing import Self

from p2pnode.config import RpcSettings
from p2pnode.errors import OverloadedError
from p2pnode.wire.peer_id import PeerId


class Budget:
    """What all calls of a node, and those of each peer, hold now."""

    def __init__(self, settings: RpcSettings) -> None:
        self._settings = settings
        self._calls: Counter[PeerId] = Counter()
        self._bytes: Counter[PeerId] = Counter()
        self.bytes_in_flight = 0

    @property
    def calls_in_flight(self) -> int:
        """The calls being served, of all peers."""
        return self._calls.total()

    def call(self, peer_id: PeerId) -> "Charge":
        """Admit one call of a peer, to be used as a context manager.

        Raises:
            OverloadedError: the peer has too many calls under way.
        """
        if self._calls[peer_id] >= self._settings.max_calls_per_peer:
            raise OverloadedError(
                f"{self._settings.max_calls_per_peer} calls of yours are under way here;"
                " wait for one of them"
            )
        self._calls[peer_id] += 1
        return Charge(self, peer_id)

    def charge(self, peer_id: PeerId, size: int) -> None:
        """Take `size` bytes from the peer's and the node's budgets.

        Raises:
            OverloadedError: one of them does not have as many left; nothing is taken.
        """
        settings = self._settings
        if self._bytes[peer_id] + size > settings.max_bytes_in_flight_per_peer:
            raise OverloadedError(
                f"your calls would hold more than {settings.max_bytes_in_flight_per_peer} bytes"
                " here; wait for one of them"
            )
        if self.bytes_in_flight + size > settings.max_bytes_in_flight:
            raise OverloadedError("the host's memory for calls is full; try again or elsewhere")
        self._bytes[peer_id] += size
        self.bytes_in_flight += size

    def release(self, peer_id: PeerId, size: int) -> None:
        """End a call that held `size` bytes."""
        self.bytes_in_flight -= size
        for counter, amount in ((self._bytes, size), (self._calls, 1)):
            counter[peer_id] -= amount
            if not counter[peer_id]:
                del counter[peer_id]  # a peer without calls leaves no trace


class Charge:
    """What one call holds; released when the block ends."""

    __slots__ = ("_budget", "_peer_id", "held")

    def __init__(self, budget: Budget, peer_id: PeerId) -> None:
        self._budget = budget
        self._peer_id = peer_id
        self.held = 0

    def add(self, size: int) -> None:
        """Charge `size` more bytes.

        Raises:
            OverloadedError: a budget does not have as many left.
        """
        self._budget.charge(self._peer_id, size)
        self.held += size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._budget.release(self._peer_id, self.held)
