"""One trio run in one background thread, for callers that are ordinary synchronous code.

`Portal` owns the thread from `start` to `close`. A call blocks its caller like any function, in a
way that Ctrl-C can interrupt, and an interrupted call is cancelled in trio too. When the run
ends, for whatever reason, every call under way ends with an error: nobody waits for a thread that
is gone.
"""

import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import trio

from p2pnode.errors import ConnectionClosedError, P2PNodeError, first_leaf

T = TypeVar("T")
Served = TypeVar("Served")


class _Outcome(Generic[T]):
    """What a call has come to, told once, by one thread to another.

    A `concurrent.futures.Future` does it as well, with a condition and callbacks, and takes
    several times as long.
    """

    __slots__ = ("_error", "_told", "_value", "is_known")

    def __init__(self) -> None:
        self.is_known = False
        self._value: T
        self._error: BaseException | None = None
        self._told = threading.Lock()
        self._told.acquire()

    def set(self, value: T) -> None:
        self._value = value
        self._tell()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._tell()

    def _tell(self) -> None:
        self.is_known = True
        self._told.release()

    def wait(self) -> T:
        """Return the value or raise the error, once; Ctrl-C interrupts."""
        self._told.acquire()
        if self._error is not None:
            raise self._take_error()
        return self._value

    def _take_error(self) -> BaseException:
        """Let go of the error, whose traceback leads to whoever raises it, and so to us."""
        assert self._error is not None
        error, self._error = self._error, None
        return error


class Portal(Generic[Served]):
    """Runs a service in a thread of its own, and functions beside it.

    Args:
        service: called with `task_status`; it reports a value once it is ready, and then runs
            until it is cancelled.
        name: of the thread.
    """

    def __init__(self, service: Callable[..., Awaitable[None]], *, name: str) -> None:
        self._service = service
        self._thread = threading.Thread(target=self._run, name=name)
        self._process = os.getpid()
        self._ready: _Outcome[Served] = _Outcome()
        self._was_ready = False
        self._crash: BaseException | None = None
        self._lock = threading.Lock()  # over the three below, which both sides use
        self._token: trio.lowlevel.TrioToken | None = None
        self._closing = False
        self._pending: set[_Outcome[Any]] = set()
        self._scope = trio.CancelScope()
        self._calls: trio.Nursery | None = None

    def start(self) -> Served:
        """Start the thread, and return what the service reports when it is ready.

        Raises:
            BaseException: what the service raised instead; the thread has ended then.
        """
        try:
            self._thread.start()
            return self._ready.wait()
        except BaseException:  # Ctrl-C as well
            self.close()
            raise

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run an async function in the trio thread and return its result.

        Any thread but trio's own may call, and several at once.

        Raises:
            ConnectionClosedError: the portal is closed, or was closed during the call; or this is
                a child process, to which a fork has not brought the thread.
            BaseException: what the function raised.
        """
        if os.getpid() != self._process:
            raise ConnectionClosedError(
                "the trainer's connection belongs to another process; call its experts there, or"
                " connect in this one (a DataLoader worker is a process of its own)"
            )
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError("a blocking call from inside the trio thread would wait for itself")
        outcome: _Outcome[T] = _Outcome()
        scope = trio.CancelScope()
        try:
            self._submit(function, args, outcome, scope)
            return outcome.wait()
        except BaseException:
            if not outcome.is_known:  # the caller was interrupted, by Ctrl-C for example
                self._soon(scope.cancel)
            raise
        finally:
            self._pending.discard(outcome)

    def close(self) -> None:
        """End the run and join its thread; does nothing the second time.

        Raises:
            BaseException: what the service crashed with after it had been ready.
        """
        with self._lock:
            self._closing = True
        self._soon(self._scope.cancel)
        if self._thread.ident is not None:
            self._thread.join()
        if self._crash is not None and self._was_ready:
            crash, self._crash = self._crash, None
            raise crash

    def _submit(
        self,
        function: Callable[..., Awaitable[T]],
        args: tuple[Any, ...],
        outcome: _Outcome[T],
        scope: trio.CancelScope,
    ) -> None:
        with self._lock:
            if self._token is None or self._closing:
                raise self._ended("is closed")
            self._pending.add(outcome)
            self._token.run_sync_soon(self._spawn, function, args, outcome, scope)

    def _soon(self, function: Callable[[], object]) -> None:
        with self._lock, contextlib.suppress(trio.RunFinishedError):
            if self._token is not None:
                self._token.run_sync_soon(function)

    # --- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001  # handed to the caller's thread
            self._crash = _leaf(error)
        with self._lock:
            self._closing = True
            pending = list(self._pending)
        if not self._ready.is_known:
            self._ready.fail(self._crash or self._ended("was closed while it started"))
        for each in pending:
            if not each.is_known:
                each.fail(self._ended("was closed during the call"))

    async def _main(self) -> None:
        with self._lock:
            self._token = trio.lowlevel.current_trio_token()
            if self._closing:
                return
        with self._scope:
            async with trio.open_nursery() as services:
                served: Served = await services.start(self._service)
                async with trio.open_nursery() as self._calls:
                    self._was_ready = True
                    self._ready.set(served)
                    await trio.sleep_forever()

    def _spawn(
        self,
        function: Callable[..., Awaitable[T]],
        args: tuple[Any, ...],
        outcome: _Outcome[T],
        scope: trio.CancelScope,
    ) -> None:
        assert self._calls is not None, "calls are taken only once the service is ready"
        self._calls.start_soon(self._complete, function, args, outcome, scope)

    async def _complete(
        self,
        function: Callable[..., Awaitable[T]],
        args: tuple[Any, ...],
        outcome: _Outcome[T],
        scope: trio.CancelScope,
    ) -> None:
        with scope:
            try:
                value = await function(*args)
            except Exception as error:  # noqa: BLE001  # raised again in the caller's thread
                outcome.fail(_leaf(error))
            else:
                outcome.set(value)

    def _ended(self, how: str) -> BaseException:
        error = ConnectionClosedError(
            f"the trainer {how}; use its experts inside the `with` block of connect"
        )
        error.__cause__ = self._crash
        return error


def _leaf(error: BaseException) -> BaseException:
    """Return the one error of this package in a group of them, or `error` itself.

    A nursery wraps what its tasks raise; callers are promised the typed error.
    """
    if isinstance(error, BaseExceptionGroup):
        expected, others = error.split(P2PNodeError)
        if expected is not None and others is None:
            return first_leaf(expected)
    return error
