"""What the streams of sessions have in common, whose states a sans-IO core changes.

The core tells the session what has happened to which stream, and the session wakes the stream,
whose reader and writer look at its state then.
"""

from typing import Generic, Protocol, TypeVar

import trio

from p2pnode.errors import P2PNodeError
from p2pnode.transport.session import MuxedStream, StreamAccount
from p2pnode.transport.wakeup import Signal


class _State(Protocol):
    stream_id: int
    finish_wanted: bool  # behind what was sent
    failure: P2PNodeError | None  # nothing can be sent any more
    remote_finished: bool
    receive_failure: P2PNodeError | None  # nothing more will come, and no clean end

    @property
    def account(self) -> StreamAccount: ...


StateT = TypeVar("StateT", bound=_State)


class StatefulStream(MuxedStream, Generic[StateT]):
    """The part of a stream that only its state decides on."""

    def __init__(self, state: StateT) -> None:
        self._state = state
        self._readable = Signal()
        self._writable = Signal()
        self._send_lock = trio.StrictFIFOLock()
        self._receiving = False
        self._closed = False
        self._dependent: trio.CancelScope | None = None

    @property
    def stream_id(self) -> int:
        """The stream's number within its session."""
        return self._state.stream_id

    @property
    def account(self) -> StreamAccount:
        """See `MuxedStream`."""
        return self._state.account

    @property
    def is_live(self) -> bool:
        """See `MuxedStream`."""
        state = self._state
        return not (self._closed or state.remote_finished or state.finish_wanted or state.failure)

    def cancel_when_lost(self, scope: trio.CancelScope | None) -> None:
        """See `MuxedStream`."""
        self._dependent = scope
        self._cancel_if_lost()

    def wake_reader(self) -> None:
        """Data has come, or its end, or a failure."""
        self._readable.set()
        self._cancel_if_lost()

    def wake_writer(self) -> None:
        """There is room to send, or there was a failure."""
        self._writable.set()
        self._cancel_if_lost()

    def _cancel_if_lost(self) -> None:
        if self._dependent is not None and self._state.failure is not None:
            self._dependent.cancel()

    def _check_open_for_sending(self) -> None:
        if self._closed or (self._state.finish_wanted and self._state.failure is None):
            raise trio.ClosedResourceError("the stream's sending side is closed")
        self._check_not_failed()

    def _check_not_failed(self) -> None:
        if self._state.failure is not None:
            raise _again(self._state.failure)

    def _is_at_end(self) -> bool:
        """Whether nothing more will come; raises if that is no clean end."""
        if self._closed:
            raise trio.ClosedResourceError("the stream is closed")
        if self._state.receive_failure is not None:
            raise _again(self._state.receive_failure)
        return self._state.remote_finished


def _again(error: P2PNodeError) -> P2PNodeError:
    """Return a copy of `error` to raise: many tasks may each raise it, more than once."""
    return type(error)(*error.args)
