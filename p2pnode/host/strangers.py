"""Dialling a peer as a stranger would, to see whether a stranger can.

A connection that a NAT or a firewall knows already proves nothing. So such a dial comes from a
port that this node does not listen on, and under an identity made for it alone, lest either side
take the connection for one of those between the two. It serves no protocols and counts nowhere
but in the budgets; both sides forget it when it ends. (libp2p/specs, autonat v2: a server should
not reuse its listening port, and may have another peer id.)

QUIC proves identities within its own handshake, and with the node's own key: there only the port
is a stranger's.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import trio
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import DialError
from p2pnode.events import EventBus
from p2pnode.host.admission import Admission
from p2pnode.host.connections import NetworkConnection
from p2pnode.host.upgrader import Upgraded, Upgrader
from p2pnode.transport.base import Transport
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId


class StrangerDials:
    """Opens connections that are a host's for the length of a block.

    Args:
        transports: the first that understands an address is used.
        admission: whose budgets are charged.
        settings: times and sizes.
        events: told what peers do wrong.
        rng: makes the identities. Nothing rests on their being secret: they prove only that both
            ends of a handshake know what they say.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        admission: Admission,
        settings: NetworkSettings,
        events: EventBus,
        rng: random.Random,
    ) -> None:
        self._transports = transports
        self._admission = admission
        self._settings = settings
        self._events = events
        self._rng = rng

    def transport_for(self, address: Multiaddr) -> Transport | None:
        """Return what dials `address`, or None."""
        return next((each for each in self._transports if each.can_dial(address)), None)

    @contextlib.asynccontextmanager
    async def open(
        self, peer_id: PeerId, address: Multiaddr, network: trio.Nursery, *, timeout: float
    ) -> AsyncIterator[NetworkConnection]:
        """Hold a connection to a peer at one address; see `Host.dial_anew`.

        Args:
            peer_id: who must answer.
            address: where.
            network: carries the connection.
            timeout: seconds until the handshakes must be over.
        """
        with self._admission.budgets.dial(peer_id) as account:
            self._admission.check_room(account)
            upgraded = await self._reach(peer_id, address, timeout)
            try:
                account.locate(upgraded.raw.remote_address, trio.current_time())
                account.identify(peer_id, trio.current_time())
                connection = NetworkConnection(
                    upgraded, settings=self._settings, account=account, events=self._events
                )
                network.start_soon(connection.carry)
                network.start_soon(connection.serve, network, {})
                try:
                    yield connection
                finally:
                    with trio.move_on_after(self._settings.close_timeout, shield=True):
                        await connection.aclose()
            finally:
                await upgraded.raw.cut()

    async def _reach(self, peer_id: PeerId, address: Multiaddr, timeout: float) -> Upgraded:
        transport = self.transport_for(address)
        if transport is None:
            raise DialError(f"this node has no transport for {address}")
        stranger = Upgrader(PrivateKey.from_seed(self._rng.randbytes(32)), self._settings)
        with trio.move_on_after(timeout):
            raw = await transport.dial(address, reuse_port=False)
            return await stranger.outbound(raw, peer_id)
        raise DialError(f"{address} did not answer within {timeout:g} s")
