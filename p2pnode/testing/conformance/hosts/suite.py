"""What the parts of the suite share, and what a host's own suite overrides."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import pytest
import trio
from trio.abc import Clock

from p2pnode.host import Connection, Host, Stream

ECHO = "/test/echo/1.0.0"
WITHIN = 10.0


class HostSuite(ABC):
    """Each test gets two hosts that can reach each other and are not connected yet."""

    @abstractmethod
    def run_pair(self) -> contextlib.AbstractAsyncContextManager[tuple[Host, Host]]:
        """Run two hosts that know nothing of each other."""

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[Host, Host, Connection]]:
        """Run two hosts, the other one with an echo, and connect them."""
        async with self.run_pair() as (ours, theirs):
            theirs.set_handler(ECHO, echo)
            with trio.fail_after(WITHIN):
                yield ours, theirs, await ours.connect(theirs.peer_id, theirs.addresses)

    @pytest.fixture
    def clock(self) -> Clock | None:
        """Return the clock to run on; override it to run in virtual time."""
        return None


@contextlib.asynccontextmanager
async def within() -> AsyncIterator[None]:
    """Fail what takes longer than any of these tests should."""
    with trio.fail_after(WITHIN):
        yield


async def echo(stream: Stream) -> None:
    """Send back what comes."""
    while data := await stream.receive_some():
        await stream.send_all(data)
