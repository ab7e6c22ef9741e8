"""What a transport is: it connects addresses.

Most give byte streams, with no idea of who is at the other end. Those with security and streams of
their own, as QUIC, give sessions, and have proven who is there.

Every transport passes `p2pnode.testing.conformance.transports`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import trio
from multiaddr import Multiaddr

from p2pnode.errors import DialError
from p2pnode.transport.session import MuxedSession
from p2pnode.wire.keys import PublicKey
from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class RawConnection:
    """A fresh byte stream and the addresses of its two ends.

    Half-close is not asked of the stream: what runs above it ends its streams by frames of its
    own, and neither WebSocket nor TLS has it.
    """

    stream: trio.abc.Stream
    local_address: Multiaddr
    remote_address: Multiaddr
    is_limited: bool = False  # a relay carries it, and only so many bytes, or for so long
    settle: Callable[[], object] | None = None  # see `Transport.punch`
    peer_id: PeerId | None = None  # who a relay says is there; nobody else may be

    async def cut(self) -> None:
        """End it at once, without a word."""
        await trio.aclose_forcefully(self.stream)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuredConnection:
    """A fresh session with a peer that has proven who it is; it does not run yet."""

    session: MuxedSession
    public_key: PublicKey
    local_address: Multiaddr
    remote_address: Multiaddr
    is_limited: bool = False  # see `RawConnection`

    async def cut(self) -> None:
        """End it at once, without a word."""
        await trio.aclose_forcefully(self.session)


FreshConnection = RawConnection | SecuredConnection


class Listener(ABC):
    """Accepts connections at one listen address until it is closed."""

    @property
    @abstractmethod
    def addresses(self) -> list[Multiaddr]:
        """Where others can dial now: real ports, and each interface of a wildcard address."""

    @abstractmethod
    async def accept(self) -> FreshConnection:
        """Wait for the next connection; shortages of this machine are waited out inside.

        Raises:
            trio.ClosedResourceError: the listener was closed.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Stop listening; connections already accepted live on."""


class Transport(ABC):
    """Dials and listens at the multiaddrs of one kind, written without their `/p2p` part."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry what this transport does in the background until cancelled, which ends it.

        The owner starts it before it dials or listens. A transport without tasks of its own has
        nothing to carry.
        """
        task_status.started()
        await trio.sleep_forever()

    @abstractmethod
    def can_dial(self, address: Multiaddr) -> bool:
        """Tell whether this transport can dial `address`, or will once its name is resolved."""

    @abstractmethod
    async def dial(self, address: Multiaddr, *, reuse_port: bool = True) -> FreshConnection:
        """Connect to an address with an IP address in it, such as a `Resolver` finds.

        Args:
            address: where to; that of a relay ends in who is to be reached through it.
            reuse_port: whether the connection may come from a port this transport listens on,
                if it knows how; see `p2pnode.transport.reuse`.

        Raises:
            DialError: nobody answers there.
            SimultaneousOpenError: the same connection was dialled from the other end.
        """

    def can_punch(self, _address: Multiaddr, /) -> bool:
        """Tell whether `punch` knows how to reach `address`."""
        return False

    async def punch(self, address: Multiaddr, *, is_client: bool) -> FreshConnection:  # noqa: ARG002  # of those that can
        """Connect to an address from which this node is dialled at the same moment.

        It is dialled from the port listened on, from which alone the other end expects it. Until
        the connection's `settle` is called it is reset, not closed, when it turns out to be of no
        use: else the system would bar the pair of endpoints from the next attempt for a minute.

        Args:
            address: where to.
            is_client: whether this side begins the handshakes. Where only one side dials, the other
                one prepares its NAT for that until it is cancelled, and its listener has the
                connection.

        Raises:
            DialError: it was refused; another try a moment later may well succeed.
        """
        raise DialError(f"no hole can be punched to {address}")

    @abstractmethod
    async def listen(self, address: Multiaddr) -> Listener:
        """Listen at `address`; port 0 lets the system choose one.

        Raises:
            AddressInUseError: another program listens there.
            InvalidAddressError: this machine cannot listen there.
        """
