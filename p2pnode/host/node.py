"""The network host: one task tree that holds the listeners, the dials and the connections.

```
run ── upkeep (idle connections, peerstore)
 └─ network ── transport, one task each
             ├ accept, one task for each listen address
             ├ dial, one task for each peer being dialled
             └ connection, one task each ── muxer ── reader, writer, timer
                                          └ stream handlers, one task each
```

What happens in a connection's task ends that connection at most; what a peer does wrong becomes
an event. An exception that is not the network's is a bug, and ends the node.
"""

import dataclasses
import random
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import DcutrSettings, LimitSettings, NetworkSettings
from p2pnode.events import EventBus
from p2pnode.host.admission import Admission
from p2pnode.host.backoff import DialBackoff
from p2pnode.host.budgets import ConnectionAccount
from p2pnode.host.connections import ConnectionTable, NetworkConnection
from p2pnode.host.inbound import Inbound
from p2pnode.host.info import HostInfo
from p2pnode.host.interfaces import (
    Connection,
    ConnectionEnded,
    ConnectionOpened,
    Host,
    PeerIdentified,
    StreamHandler,
)
from p2pnode.host.local_addresses import LocalAddresses
from p2pnode.host.outbound import Outbound
from p2pnode.host.pacing import Bandwidth
from p2pnode.host.peerstore import Peerstore
from p2pnode.host.ranking import is_relayed
from p2pnode.host.reachability.nat_behaviour import Sighting
from p2pnode.host.reachability.observed import Place
from p2pnode.host.saved_peers import SavedPeers
from p2pnode.host.strangers import StrangerDials
from p2pnode.host.upgrader import Upgraded, Upgrader
from p2pnode.transport.base import Listener, Transport
from p2pnode.transport.resolver import Resolver
from p2pnode.wire.addresses import split_p2p
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

MAX_UPKEEP_INTERVAL: Final = 5.0  # seconds; how late an idle connection may be noticed


class NetworkHost(Host):
    """A host over real transports; `await nursery.start(host.run)` brings it up.

    Args:
        key: the node's identity.
        transports: the first that understands an address is used.
        settings: timeouts and sizes.
        limits: how much peers may use.
        rng: chance; seeds make a run repeatable.
        announce: told to others instead of the listen addresses, if not empty.
        events: where this host emits, shared with the rest of the node.
        peerstore_path: where known addresses survive a restart, or None.
    """

    def __init__(
        self,
        key: PrivateKey,
        *,
        transports: Sequence[Transport],
        settings: NetworkSettings | None = None,
        limits: LimitSettings | None = None,
        rng: random.Random | None = None,
        announce: Sequence[Multiaddr] = (),
        events: EventBus | None = None,
        peerstore_path: Path | None = None,
    ) -> None:
        self.key = key
        self.peer_id = key.peer_id
        self.settings = settings or NetworkSettings()
        self.events = events or EventBus()
        self.peerstore = Peerstore(self.settings)
        self._saved_peers = SavedPeers(peerstore_path, self.peerstore, self.events.emit)
        self._rng = rng or random.Random()
        self._transports = list(transports)
        self._handlers: dict[str, StreamHandler] = {}
        self._backoff = DialBackoff(self.settings, self._rng)
        self._local = LocalAddresses(
            self.settings, announce, self.events.emit, moved=self._backoff.clear
        )
        self._connections = ConnectionTable(self.peer_id, self.settings)
        self._admission = Admission(limits or LimitSettings(), self._connections, self.events.emit)
        self._budgets = self._admission.budgets
        self._bandwidth = Bandwidth(limits or LimitSettings())
        self._resolver = Resolver(self.settings)
        self._upgrader = Upgrader(key, self.settings)
        self._strangers = StrangerDials(
            self._transports, self._admission, self.settings, self.events, self._rng
        )
        self._outbound = Outbound(
            self.peer_id,
            self._transports,
            self._resolver,
            self._upgrader,
            backoff=self._backoff,
            connections=self._connections,
            admission=self._admission,
            peerstore=self.peerstore,
            events=self.events,
            settings=self.settings,
            own_addresses=self._own_addresses,
            hold=self._hold,
            network=self._running,
        )
        self._inbound = Inbound(
            self._transports,
            self._upgrader,
            admission=self._admission,
            local=self._local,
            events=self.events,
            hold=self._hold_connection,
            network=self._running,
        )
        self._network: trio.Nursery | None = None

    # --- life -----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry the network side until cancelled; then say goodbye to every peer.

        The connections are shielded from the cancellation until that is done, which takes
        `close_timeout` at most.
        """
        await self._saved_peers.load()
        self._backoff.be_alone()
        undo = self.events.on(PeerIdentified, self._receive_identified)
        try:
            async with trio.open_nursery() as nursery:
                with trio.CancelScope(shield=True):  # cancelled, it would wait for its task's end
                    network: trio.Nursery = await nursery.start(self._hold_network)
                self._network = network
                task_status.started()
                try:
                    await self._keep_up()
                finally:
                    try:
                        await self._shut_down()
                    finally:
                        network.cancel_scope.cancel()
        finally:
            self._network = None
            undo()

    async def _hold_network(self, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as network:
                for transport in self._transports:
                    await network.start(transport.run)
                task_status.started(network)
                await trio.sleep_forever()

    async def _shut_down(self) -> None:
        with trio.CancelScope(shield=True):
            listeners = tuple(self._local.listeners)
            self._local.listeners.clear()
            await self._close_all(listeners)
            await self._close_all(self._connections)  # there are no new ones from here on
            await self._saved_peers.save()

    async def _close_all(self, closing: Iterable[Listener | NetworkConnection]) -> None:
        with trio.move_on_after(self.settings.close_timeout):
            async with trio.open_nursery() as nursery:
                for each in closing:
                    nursery.start_soon(each.aclose)

    async def _keep_up(self) -> None:
        interval = min(
            self.settings.duplicate_linger, self.settings.idle_timeout, MAX_UPKEEP_INTERVAL
        )
        saved_at: float | None = None
        while True:
            await trio.sleep(interval * self._rng.uniform(0.8, 1.2))  # not in step with others
            now = trio.current_time()
            for connection in self._connections.to_close(now, self._admission.protected):
                connection.leaving = "this side closed it, since it was idle"
                self._running().start_soon(connection.aclose)
            self._trim()
            self._budgets.refusals.tell(now)
            self.peerstore.expire(now)
            # The first peers are saved at once, for a node that crashes to find them again.
            due = saved_at is None or now - saved_at >= self.settings.peerstore_save_interval
            if due and len(self.peerstore):
                saved_at = now
                await self._saved_peers.save()
            self._local.update(now)

    # --- addresses and handlers -----------------------------------------------------------------

    def add_transport(self, transport: Transport) -> None:
        """Use one more transport, such as one that needs this host; before it runs."""
        if self._network is not None:
            raise RuntimeError("the host runs already")
        self._transports.append(transport)

    def update_addresses(self) -> None:
        """Look at the listeners' addresses now, since some have changed, and tell others."""
        self._local.update(trio.current_time())

    async def listen(self, address: Multiaddr) -> list[Multiaddr]:
        """Accept connections at `address`; returns where others can dial it.

        Raises:
            AddressInUseError: another program listens there.
            InvalidAddressError: no transport of this node can listen there.
        """
        return await self._inbound.listen(address)

    @property
    def addresses(self) -> list[Multiaddr]:
        """See `Host`."""
        return self._local.all

    @property
    def listening(self) -> list[Multiaddr]:
        """The addresses this node listens on, those of each interface of a wildcard."""
        return self._local.listening

    @property
    def relayed(self) -> list[Multiaddr]:
        """The addresses at which relays take connections for this node."""
        return self._local.relayed

    @property
    def observed(self) -> list[Multiaddr]:
        """The addresses at which enough others see this node."""
        return self._local.observed

    @property
    def candidate_addresses(self) -> list[Multiaddr]:
        """See `Host`."""
        return self._local.candidates

    def judge_addresses(
        self, verified: Collection[Multiaddr], refuted: Collection[Multiaddr]
    ) -> None:
        """See `Host`."""
        self._local.judge(verified, refuted, trio.current_time())

    def seen_by(self) -> dict[tuple[int, str], list[Sighting]]:
        """List who sees this node where, by IP version and `tcp` or `udp`."""
        return self._local.seen_by(trio.current_time())

    def sightings(self) -> list[tuple[Place, Place, int]]:
        """List where each place we listen at is seen, and by how many observers."""
        return self._local.sightings(trio.current_time())

    @property
    def mapped(self) -> list[Multiaddr]:
        """The addresses at which a router has promised to let others in."""
        return list(self._local.mapped)

    def set_mapped(self, addresses: Sequence[Multiaddr]) -> None:
        """Tell others of the addresses at which a router has promised to let them in."""
        self._local.set_mapped(addresses, trio.current_time())

    @property
    def protocols(self) -> list[str]:
        """See `Host`."""
        return list(self._handlers)

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """See `Host`."""
        fresh = protocol not in self._handlers
        self._handlers[protocol] = handler
        if fresh:
            self._local.tell()

    def remove_handler(self, protocol: str) -> None:
        """See `Host`."""
        if self._handlers.pop(protocol, None) is not None:
            self._local.tell()

    def receive_observation(self, connection: Connection, observed: Multiaddr) -> None:
        """Take a peer's word for where it sees this node, as one vote among others."""
        self._local.observe(connection, observed, trio.current_time())

    # --- peers ----------------------------------------------------------------------------------

    def add_addresses(self, peer_id: PeerId, addresses: Sequence[Multiaddr], ttl: float) -> None:
        """See `Host`."""
        if peer_id != self.peer_id:
            bare = [split_p2p(address)[0] for address in addresses]
            self.peerstore.add_addresses(peer_id, bare, ttl, trio.current_time())

    def addresses_of(self, peer_id: PeerId, *, hearsay: bool = True) -> list[Multiaddr]:
        """See `Host`."""
        return self.peerstore.addresses_of(peer_id, trio.current_time(), hearsay=hearsay)

    def protocols_of(self, peer_id: PeerId) -> frozenset[str]:
        """See `Host`."""
        return self.peerstore.protocols_of(peer_id)

    def connection_to(self, peer_id: PeerId) -> NetworkConnection | None:
        """See `Host`."""
        return self._connections.best(peer_id)

    def connections(self) -> list[Connection]:
        """See `Host`."""
        return [each for each in self._connections if not each.is_closed]

    def protect(self, peer_id: PeerId, tag: str) -> None:
        """See `Host`."""
        self._admission.protected.protect(peer_id, tag)

    def unprotect(self, peer_id: PeerId, tag: str) -> bool:
        """See `Host`."""
        return self._admission.protected.unprotect(peer_id, tag)

    def is_protected(self, peer_id: PeerId) -> bool:
        """See `Host`."""
        return peer_id in self._admission.protected

    def info(self) -> HostInfo:
        """Describe the network side as it is now."""
        return HostInfo(
            peer_id=self.peer_id,
            addresses=tuple(self.addresses),
            listening=tuple(self.listening),
            observed=tuple(self.observed),
            protocols=tuple(self.protocols),
            connections=tuple(each.info() for each in self._connections),
            known_peers=len(self.peerstore),
            dials=self._outbound.dials,
            handshakes=self._budgets.handshakes,
            budgets=self._budgets.report(),
        )

    def _receive_identified(self, event: PeerIdentified) -> None:
        self.peerstore.set_protocols(event.peer_id, event.protocols)
        now = trio.current_time()
        if event.record is not None:
            self.peerstore.certify(event.peer_id, event.seq, event.addresses, event.record, now)
        else:
            self.peerstore.identify(event.peer_id, event.addresses, now)

    # --- outbound -------------------------------------------------------------------------------

    async def connect(
        self,
        peer_id: PeerId,
        addresses: Sequence[Multiaddr] = (),
        *,
        timeout: float | None = None,
        insist: bool = False,
        direct: bool = False,
    ) -> NetworkConnection:
        """See `Host`."""
        return await self._outbound.connect(
            peer_id, addresses, timeout=timeout, insist=insist, direct=direct
        )

    def can_dial(self, address: Multiaddr) -> bool:
        """See `Host`."""
        return self._strangers.transport_for(address) is not None

    def dial_anew(
        self, peer_id: PeerId, address: Multiaddr, *, timeout: float
    ) -> AbstractAsyncContextManager[NetworkConnection]:
        """See `Host`."""
        return self._strangers.open(peer_id, address, self._running(), timeout=timeout)

    def can_punch(self, address: Multiaddr) -> bool:
        """Tell whether `punch` may lead to `address`."""
        return self._outbound.can_punch(address)

    async def punch(
        self,
        peer_id: PeerId,
        addresses: Sequence[Multiaddr],
        *,
        is_client: bool,
        settings: DcutrSettings,
    ) -> NetworkConnection:
        """See `Outbound.punch`."""
        return await self._outbound.punch(
            peer_id, addresses, is_client=is_client, settings=settings
        )

    def _own_addresses(self) -> list[Multiaddr]:
        """Where this node is, as far as its own sockets show it."""
        direct = [each for each in self._connections if not each.is_relayed]
        return self.listening + [each.local_address for each in direct]

    # --- connections ----------------------------------------------------------------------------

    async def _hold(self, upgraded: Upgraded, account: ConnectionAccount) -> None:
        await self._running().start(self._hold_connection, upgraded, account)

    async def _hold_connection(
        self,
        upgraded: Upgraded,
        account: ConnectionAccount,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Carry and serve a connection from its handshakes to its end.

        Raises:
            ResourceLimitError: a budget has no room for it.
        """
        if not is_relayed(upgraded.raw.remote_address):  # else the way to the relay is paced
            paced = self._bandwidth.pace(upgraded.muxer)
            upgraded = dataclasses.replace(upgraded, muxer=paced)
        connection = NetworkConnection(
            upgraded, settings=self.settings, account=account, events=self.events
        )
        try:
            with account:
                await self._admission.admit(upgraded, account)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.carry)
                    self._add(connection)
                    task_status.started()
                    reason = "this node is shutting down"
                    try:
                        reason = await connection.serve(nursery, self._handlers)
                    finally:
                        self._remove(connection, connection.leaving or reason)
                    # Handlers have seen their streams fail; they get a moment to tidy up.
                    nursery.cancel_scope.deadline = (
                        trio.current_time() + self.settings.close_timeout
                    )
        finally:
            connection.ended.set()
            await upgraded.raw.cut()

    def _trim(self) -> None:
        for connection in self._admission.trim():
            self._running().start_soon(connection.aclose)

    def _add(self, connection: NetworkConnection) -> None:
        peer_id = connection.peer_id
        self._connections.add(connection)
        self._backoff.meet(peer_id)
        self.peerstore.pin(peer_id)
        self.peerstore.set_key(peer_id, connection.public_key)
        if connection.direction == "outbound" and not connection.is_punched:
            self.peerstore.prefer(peer_id, connection.remote_address, trio.current_time())
        self._outbound.receive(connection)
        self._trim()
        self.events.emit(ConnectionOpened(connection=connection))

    def _remove(self, connection: NetworkConnection, reason: str) -> None:
        self._connections.remove(connection)
        self._local.end(connection, trio.current_time())
        if connection.peer_id not in self._connections:
            self.peerstore.unpin(connection.peer_id, trio.current_time())
        if not len(self._connections):
            self._backoff.be_alone()
        self.events.emit(ConnectionEnded(connection=connection, reason=reason))

    def _running(self) -> trio.Nursery:
        if self._network is None:
            raise RuntimeError("the host does not run")
        return self._network
