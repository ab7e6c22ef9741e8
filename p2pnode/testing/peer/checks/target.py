"""Who is checked, and how a check fails."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from multiaddr import Multiaddr

from p2pnode.host import Connection, Stream
from p2pnode.host.node import NetworkHost
from p2pnode.testing.peer.node import Peer
from p2pnode.wire.peer_id import PeerId

RETRY_INTERVAL: Final = 0.05  # seconds; what another process does, no event here tells

Facts = dict[str, Any]


class CheckFailedError(Exception):
    """The peer is reachable, and does something else than it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Who is checked.

    Attributes:
        peer: this side.
        peer_id: the other side.
        address: where it listens.
        connect: brings up a connection between both, whichever of them dials.
    """

    peer: Peer
    peer_id: PeerId
    address: Multiaddr
    connect: Callable[[], Awaitable[None]]

    @property
    def host(self) -> NetworkHost:
        """This side's host."""
        return self.peer.network.host

    @property
    def connection(self) -> Connection:
        """The connection between both.

        Raises:
            CheckFailedError: there is none any more.
        """
        connection = self.host.connection_to(self.peer_id)
        expect(connection is not None, "the connection is gone")
        assert connection is not None
        return connection

    async def open(self, *protocols: str) -> Stream:
        """Open a stream, on the connection there is."""
        return await self.connection.open_stream(protocols)


def expect(fact: bool, failure: str) -> None:  # reads like assert
    """Fail the check unless `fact` holds.

    Raises:
        CheckFailedError: it does not.
    """
    if not fact:
        raise CheckFailedError(failure)
