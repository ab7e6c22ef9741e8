"""Relayed connections as a transport: `/…/p2p/<relay>/p2p-circuit`.

A dial asks the relay for a circuit to the peer; who listens takes the circuits that relays bring.
Either way the stream to the relay becomes a raw connection, and is upgraded like any other: the
relay sees nothing but ciphertext.

Source: libp2p/specs, relay/circuit-v2.
"""

from collections.abc import Callable, Iterable

import trio
from multiaddr import Multiaddr

from p2pnode.config import RelaySettings
from p2pnode.errors import (
    DialError,
    InvalidAddressError,
    ProtocolError,
    RelayRefusedError,
)
from p2pnode.host import Connection
from p2pnode.host.node import NetworkHost
from p2pnode.host.ranking import is_relayed
from p2pnode.protocols.relay.addresses import CIRCUIT, Way, split_way, through
from p2pnode.protocols.relay.exchanges import CircuitStream, ask_hop
from p2pnode.protocols.relay.messages import (
    HOP_PROTOCOL,
    HopMessage,
    HopType,
    Limit,
    Status,
    describe,
)
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.wire.peer_id import PeerId


class RelayTransport(Transport):
    """Dials through relays, and listens at those where reservations are held.

    Args:
        host: which reaches the relays; the transport is one of its own.
        settings: times and sizes.

    Attributes:
        listener: where inbound circuits go, once the host listens on `/p2p-circuit`.
    """

    def __init__(self, host: NetworkHost, settings: RelaySettings | None = None) -> None:
        self.listener: RelayListener | None = None
        self._host = host
        self._settings = settings or RelaySettings()

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Transport`."""
        return is_relayed(address)

    async def dial(
        self,
        address: Multiaddr,
        *,
        reuse_port: bool = True,  # noqa: ARG002  # the host dials the relay, and sees to that
    ) -> RawConnection:
        """See `Transport`; the address must end in `/p2p/<id>`, for the relay to know whom to call.

        Raises:
            RelayRefusedError: the relay does not connect this node to the peer.
            ProtocolError: the relay answers wrongly.
            DialError: the relay, or the peer beyond it, cannot be reached in time.
        """
        try:
            way = split_way(address)
        except InvalidAddressError as error:
            raise DialError(str(error)) from error
        if way.target is None:
            raise DialError(f"{address} does not say whom the relay is to call")
        if self._host.peer_id in {way.relay, way.target}:
            raise DialError("a node needs no relay to itself")
        raw = None
        with trio.move_on_after(self._settings.connect_timeout):
            raw = await self._dial(way, way.target)
        if raw is None:
            raise DialError(
                f"the relay {way.relay} did not connect this node to it within "
                f"{self._settings.connect_timeout:g} s"
            )
        return raw

    async def _dial(self, way: Way, target: PeerId) -> RawConnection:
        where = [way.where] if way.where.to_bytes() else []
        connection = await self._host.connect(way.relay, where, direct=True)
        stream = await connection.open_stream([HOP_PROTOCOL])
        answer = None
        try:
            answer = await ask_hop(stream, HopMessage(type=HopType.CONNECT, peer=target))
            check_status(answer, way.relay, "connect this node to that peer")
        except BaseException:
            stream.reset()
            raise
        place = way.where if where else connection.remote_address
        return raw_connection(
            CircuitStream(stream), through(place, way.relay), limit=answer.limit, peer_id=target
        )

    async def listen(self, address: Multiaddr) -> "RelayListener":
        """See `Transport`; the only address to listen on is `/p2p-circuit`.

        It is empty until somebody keeps reservations; see `p2pnode.protocols.relay.client`.
        """
        await trio.lowlevel.checkpoint()
        if address != CIRCUIT:
            raise InvalidAddressError(
                f"cannot listen on {address}; name the relay in [relay] relays instead"
            )
        if self.listener is None or self.listener.is_closed:
            self.listener = RelayListener(self._settings.max_pending_circuits)
        return self.listener


class RelayListener(Listener):
    """Takes the circuits that relays bring.

    Args:
        limit: how many may wait for their handshakes to begin.

    Attributes:
        reached_at: tells at which addresses others reach this node through relays.
    """

    def __init__(self, limit: int) -> None:
        self.reached_at: Callable[[], Iterable[Multiaddr]] = tuple
        self.is_closed = False
        self._arrivals, self._waiting = trio.open_memory_channel[RawConnection](limit)

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Listener`."""
        return [] if self.is_closed else list(self.reached_at())

    @property
    def has_room(self) -> bool:
        """Whether another circuit can be taken."""
        state = self._arrivals.statistics()
        return not self.is_closed and state.current_buffer_used < state.max_buffer_size

    def take(self, raw: RawConnection) -> bool:
        """Hand a circuit to whoever accepts; returns whether there is room for it."""
        if not self.has_room:
            return False
        self._arrivals.send_nowait(raw)
        return True

    async def accept(self) -> RawConnection:
        """See `Listener`."""
        try:
            return await self._waiting.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("this listener was closed") from None

    async def aclose(self) -> None:
        """See `Listener`."""
        self.is_closed = True
        self._arrivals.close()
        while True:
            try:
                raw = self._waiting.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
            await raw.cut()
        await trio.lowlevel.checkpoint()


def raw_connection(
    circuit: CircuitStream, address: Multiaddr, *, limit: Limit, peer_id: PeerId
) -> RawConnection:
    """Make a raw connection of the stream to a relay.

    Args:
        circuit: where what the relay says has been read, and no byte behind it.
        address: the relay's, as others write it.
        limit: what the relay carries.
        peer_id: who is beyond it, as the relay says; somebody else will not get through.
    """
    return RawConnection(
        stream=circuit,
        local_address=CIRCUIT,
        remote_address=address,
        is_limited=bool(limit),
        peer_id=peer_id,
    )


def relay_address(connection: Connection) -> Multiaddr:
    """Return the address that leads through the relay at the other end of `connection`."""
    return through(connection.remote_address, connection.peer_id)


def check_status(answer: HopMessage, relay: PeerId, request: str) -> None:
    """Check that a relay agrees.

    Args:
        answer: what it said.
        relay: who it is.
        request: what it was to do, to be told to a person.

    Raises:
        RelayRefusedError: it does not agree.
        ProtocolError: it does not say.
    """
    if answer.type is not HopType.STATUS:
        raise ProtocolError(f"the relay {relay} answered with a request")
    if answer.status != Status.OK:
        raise RelayRefusedError(
            f"the relay {relay} does not {request}: {describe(answer.status)}", answer.status
        )
