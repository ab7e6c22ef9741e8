"""The fixtures of the suite, and what a transport declares about itself."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
import trio
from multiaddr import Multiaddr

from p2pnode.testing.conformance.transports.traffic import connect, cut
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.wire.addresses import parse_address


class TransportSuite(ABC):
    """What the parts of the suite share; the dialling and the listening transport may be one.

    Attributes:
        half_close: whether streams can be ended in one direction only.
        resumable: whether a stream can go on after a send on it was cancelled.
        wildcard: an address that means all of this machine's interfaces, with port 0, or None.
        named: an address with a name in it that the transport understands, or None.
        sockets: whether connections are open files of this process.
        foreign: addresses of other transports.
    """

    half_close: ClassVar[bool] = True
    resumable: ClassVar[bool] = True
    wildcard: ClassVar[str | None] = None
    named: ClassVar[str | None] = None
    sockets: ClassVar[bool] = True
    foreign: ClassVar[tuple[str, ...]] = (
        "/ip4/127.0.0.1/udp/1",
        "/unix/tmp",
        "/ip4/127.0.0.1",
        "/dnsaddr/node.example",
        "/ip4/127.0.0.1/tcp/1/tls",
        "/ip4/127.0.0.1/tcp/1/tcp/1",
        "/ip4/127.0.0.1/udp/1/quic-v1",
    )

    @pytest.fixture
    def made(self) -> tuple[Transport, Transport]:
        """The transport that dials and the one that listens."""
        raise NotImplementedError("override this fixture")

    @abstractmethod
    def listen_address(self, transport: Transport) -> Multiaddr:
        """Return an address with port 0 on which the second transport can listen."""

    @pytest.fixture
    def _half_closing(self) -> None:
        if not self.half_close:
            pytest.skip("streams of this transport have no half-close")

    @pytest.fixture
    def _tearable(self) -> None:
        if self.resumable:
            pytest.skip("after a cancelled send this transport goes on with the next one")

    @pytest.fixture
    def _open_files(self) -> None:
        if not self.sockets:
            pytest.skip("connections of this transport are no open files")

    @pytest.fixture
    def wildcard_address(self) -> Multiaddr:
        if self.wildcard is None:
            pytest.skip("this transport has no wildcard address, or none that its peers can trust")
        return parse_address(self.wildcard)

    @pytest.fixture
    def named_address(self) -> Multiaddr:
        if self.named is None:
            pytest.skip("this transport has no names")
        return parse_address(self.named)

    @pytest.fixture
    async def transports(
        self, nursery: trio.Nursery, made: tuple[Transport, Transport]
    ) -> tuple[Transport, Transport]:
        """Both transports, carried until the test ends."""
        for transport in dict.fromkeys(made):
            await nursery.start(transport.run)
        return made

    @pytest.fixture
    def dialer(self, transports: tuple[Transport, Transport]) -> Transport:
        return transports[0]

    @pytest.fixture
    def listening(self, transports: tuple[Transport, Transport]) -> Transport:
        return transports[1]

    @pytest.fixture
    async def listener(self, listening: Transport) -> AsyncIterator[Listener]:
        listener = await listening.listen(self.listen_address(listening))
        yield listener
        await listener.aclose()

    @pytest.fixture
    async def pair(
        self, dialer: Transport, listener: Listener
    ) -> AsyncIterator[tuple[RawConnection, RawConnection]]:
        """Both ends of one connection, closed when the test ends."""
        ours, theirs = await connect(dialer, listener)
        yield ours, theirs
        await cut(ours, theirs)
