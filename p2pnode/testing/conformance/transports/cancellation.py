"""What a cancellation at any step of an operation must leave behind: nothing."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.testing.cancellation import Moment, walk
from p2pnode.testing.conformance.transports.suite import TransportSuite
from p2pnode.testing.conformance.transports.traffic import MEGABYTE, accept, connect, cut, dial
from p2pnode.transport.base import Listener, Transport

OPEN_FILES = Path("/proc/self/fd")


class CancellationTests(TransportSuite):
    """No file stays open, whichever step is cancelled."""

    @pytest.mark.usefixtures("_open_files")
    async def test_a_dial_cancelled_anywhere_leaves_no_file_open_and_the_listener_serving(
        self, dialer: Transport, listener: Listener
    ) -> None:
        async def dial_and_cut() -> None:
            await cut(await dial(dialer, listener.addresses[0]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept_and_cut, listener)
            await _walk(dial_and_cut)
            nursery.cancel_scope.cancel()
        await cut(*await connect(dialer, listener))

    @pytest.mark.usefixtures("_open_files")
    async def test_a_listener_cancelled_anywhere_leaves_no_file_open(
        self, listening: Transport
    ) -> None:
        async def listen() -> None:
            listener = await listening.listen(self.listen_address(listening))
            try:
                with trio.move_on_after(0.01):
                    await listener.accept()
            finally:
                with trio.CancelScope(shield=True):
                    await listener.aclose()

        await _walk(listen)

    @pytest.mark.usefixtures("_open_files")
    @pytest.mark.parametrize("operation", ["send", "receive", "close"])
    async def test_a_connection_closed_after_any_cancellation_leaves_no_file_open(
        self, dialer: Transport, listener: Listener, operation: str
    ) -> None:
        async def use() -> None:
            ours, theirs = await connect(dialer, listener)
            try:
                with trio.move_on_after(0.05):
                    if operation == "send":
                        await ours.stream.send_all(MEGABYTE * 8)
                    elif operation == "receive":
                        await ours.stream.receive_some()
                    else:
                        await ours.stream.aclose()
            finally:
                await cut(ours, theirs)

        await _walk(use)


async def _walk(operation: Callable[[], Awaitable[None]]) -> None:
    """Cancel `operation` at each of its steps in turn; no run may leave a file open."""
    await operation()  # what is opened once, such as a thread's wake-up, is open now
    await _settle()
    before = _count_open_files()

    async def settled() -> dict[str, int]:
        await wait_all_tasks_blocked(0.005)
        if _count_open_files() > before:  # or not yet closed by the other side
            await _settle()
        return {"open files": more} if (more := _count_open_files() - before) > 0 else {}

    for moment in Moment:
        assert await walk(operation, settled, moment) > 1


def _count_open_files() -> int:
    """Return how many files this process holds open."""
    return len(list(OPEN_FILES.iterdir()))


async def _settle() -> None:
    """Let what was cut be noticed on both sides."""
    await wait_all_tasks_blocked(0.05)


async def _accept_and_cut(listener: Listener) -> None:
    while True:
        await cut(await accept(listener))
