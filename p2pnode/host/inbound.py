"""The connections that others open to this node: where it listens, and how it lets them in."""

from collections.abc import Awaitable, Callable, Sequence

import trio
from multiaddr import Multiaddr

from p2pnode.errors import (
    ConnectionClosedError,
    InvalidAddressError,
    Limit,
    P2PNodeError,
    ResourceLimitError,
)
from p2pnode.events import EventBus
from p2pnode.host.admission import Admission
from p2pnode.host.budgets import ConnectionAccount
from p2pnode.host.interfaces import PeerMisbehaved
from p2pnode.host.local_addresses import LocalAddresses
from p2pnode.host.upgrader import Upgraded, Upgrader
from p2pnode.transport.base import FreshConnection, Listener, Transport
from p2pnode.wire.addresses import split_p2p


class Inbound:
    """Accepts connections for a host.

    Args:
        transports: the first that understands an address listens on it.
        upgrader: runs the handshakes.
        admission: whose budgets are charged.
        local: keeps the listeners, and tells of their addresses.
        events: told of those who break the rules of the handshakes.
        hold: carries and serves a connection until its end.
        network: the nursery that all of it runs in; raises if there is none.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        upgrader: Upgrader,
        *,
        admission: Admission,
        local: LocalAddresses,
        events: EventBus,
        hold: Callable[[Upgraded, ConnectionAccount], Awaitable[None]],
        network: Callable[[], trio.Nursery],
    ) -> None:
        self._transports = transports
        self._upgrader = upgrader
        self._admission = admission
        self._budgets = admission.budgets
        self._local = local
        self._events = events
        self._hold = hold
        self._network = network

    async def listen(self, address: Multiaddr) -> list[Multiaddr]:
        """Accept connections at `address`; returns where others can dial it.

        Raises:
            AddressInUseError: another program listens there.
            InvalidAddressError: no transport of this node can listen there.
        """
        if split_p2p(address)[1] is not None:
            raise InvalidAddressError(f"cannot listen on {address}; leave /p2p/ and the id out")
        transport = next((each for each in self._transports if each.can_dial(address)), None)
        if transport is None:
            raise InvalidAddressError(f"no transport of this node can listen on {address}")
        network = self._network()
        listener = await transport.listen(address)
        self._local.listeners.append(listener)
        network.start_soon(self._accept, listener)
        self._local.update(trio.current_time())
        return listener.addresses

    async def _accept(self, listener: Listener) -> None:
        while True:
            try:
                raw = await listener.accept()
            except trio.ClosedResourceError:
                if listener in self._local.listeners:  # closed by whoever wanted it
                    self._local.listeners.remove(listener)
                    self._local.update(trio.current_time())
                return
            self._network().start_soon(self._receive, raw)

    async def _receive(self, raw: FreshConnection) -> None:
        """Run an inbound connection: its handshakes, then its life."""
        try:
            with self._budgets.accept(raw.remote_address, trio.current_time()) as account:
                self._admission.check_room(account)
                upgraded = await self._greet(raw, account)
                await self._hold(upgraded, account)
        except ResourceLimitError:  # the budgets have counted it, and told of it
            await raw.cut()
        except ConnectionClosedError:
            pass  # it changed its mind
        except P2PNodeError as error:
            self._events.emit(
                PeerMisbehaved(peer_id=None, address=raw.remote_address, reason=str(error))
            )

    async def _greet(self, raw: FreshConnection, account: ConnectionAccount) -> Upgraded:
        """Run the handshakes of an inbound connection, as long as there is room for them."""
        with (
            trio.CancelScope() as scope,
            self._budgets.handshake(raw.remote_address, scope.cancel),
        ):
            return await self._upgrader.inbound(raw)
        raise account.refuse(
            Limit.NODE_HANDSHAKES,
            "its handshakes took the longest when too many others were under way",
            trio.current_time(),
        )
