"""Work that several callers wait for together, and that ends when nobody waits any more.

A search runs as a task of the DHT, not of a caller: concurrent look-ups of one key share it, and
one caller's cancellation does not hurt the others. Requests still under way when its result is
known, to peers too slow to be waited for, go on within the search until they end by themselves, so
that a silent peer is found out.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import trio

from p2pnode.errors import ConnectionClosedError, P2PNodeError

T = TypeVar("T")

Work = Callable[[trio.Nursery], Awaitable[T]]  # gets the nursery for its requests


class Search(Generic[T]):
    """One search: `wait` for its result, or look for it when `is_done`."""

    def __init__(self, work: Work[T]) -> None:
        self._work = work
        self._done = trio.Event()
        self._outcome: tuple[T] | P2PNodeError = ConnectionClosedError("the DHT has stopped")
        self._scope = trio.CancelScope()
        self._waiters = 0
        self._detached = False

    @property
    def is_done(self) -> bool:
        """Whether the result is known."""
        return self._done.is_set()

    @property
    def is_joinable(self) -> bool:
        """Whether one more waiter would get a result that is still to come."""
        return not self._done.is_set() and not self._scope.cancel_called

    def detach(self) -> None:
        """Let the search come to its end even when nobody waits for it."""
        self._detached = True

    def result(self) -> T:
        """Return the result of a finished search, or raise its error."""
        if isinstance(
            self._outcome, P2PNodeError
        ):  # each waiter gets a copy with its own traceback
            raise type(self._outcome)(*self._outcome.args) from self._outcome
        return self._outcome[0]

    async def run(self) -> None:
        """Do the work; the task of the search."""
        try:
            with self._scope:
                async with trio.open_nursery() as requests:
                    try:
                        self._outcome = (await self._work(requests),)
                    except P2PNodeError as error:
                        self._outcome = error
                    self._done.set()
        finally:
            self._done.set()

    async def wait(self) -> T:
        """Wait for the result; the last waiter to be cancelled ends the search."""
        self._waiters += 1
        try:
            await self._done.wait()
        finally:
            self._waiters -= 1
            if not self._waiters and not self._detached and not self._done.is_set():
                self._scope.cancel()
        return self.result()


class Searches:
    """The searches of a DHT that is running: `nursery` is set while it is."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None
        self._shared: dict[tuple[str, bytes], Search[Any]] = {}

    def __len__(self) -> int:
        """Count the searches that others may join."""
        return len(self._shared)

    def start(self, work: Work[T]) -> Search[T]:
        """Start work of its own.

        Raises:
            ConnectionClosedError: the DHT is not running.
        """
        return self._run(Search(work))

    def share(self, kind: str, key: bytes, work: Work[T]) -> Search[T]:
        """Join the search of that kind and key that is under way, or start it.

        Raises:
            ConnectionClosedError: the DHT is not running.
        """
        search = self._shared.get((kind, key))
        if search is not None and search.is_joinable:
            return search

        async def tracked(requests: trio.Nursery) -> T:
            try:
                return await work(requests)
            finally:
                if self._shared.get((kind, key)) is fresh:
                    del self._shared[kind, key]

        fresh = self._run(Search(tracked))
        self._shared[kind, key] = fresh
        return fresh

    def _run(self, search: Search[T]) -> Search[T]:
        if self.nursery is None:
            raise ConnectionClosedError("the DHT is not running")
        self.nursery.start_soon(search.run)
        return search
