"""The peers of the DHT: asked, noted, doubted, dropped and found again.

Rules:
- A peer enters the routing table when identify says that it serves the protocol, or when it
  answers a request.
- It leaves when identify says that it stopped, or when it breaks the protocol or falls silent;
  then it is also banned for a time that doubles, until it answers, or is identified, again.
- A reset stream refuses one request, and says something about the peer only when it was asked
  what any peer can answer: whom it knows.
- Peers that were lost, and those the node joined by, are remembered with their addresses, and tried
  again as their bans end, or at once when no peer is left.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import DhtSettings
from p2pnode.errors import (
    NegotiationError,
    ProtocolError,
    RemoteError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.events import Event
from p2pnode.host import Host, PeerIdentified, PeerMisbehaved
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.messages import Contact, Message, MessageType
from p2pnode.protocols.kad.requester import Requester
from p2pnode.wire.peer_id import PeerId

MAX_REMEMBERED: Final = 64  # enough to find a network again; each costs one dial per try
CHECKS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtPeerAdded(Event):
    """A peer entered the routing table."""

    peer_id: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtPeerLost(Event):
    """A peer left the routing table."""

    peer_id: PeerId
    reason: str


class KadPeers:
    """Keeps the routing table in step with what the network shows."""

    def __init__(self, host: Host, core: KadCore, settings: DhtSettings) -> None:
        self._host = host
        self._core = core
        self._settings = settings
        self._requester = Requester(host, settings)
        self._remembered: OrderedDict[PeerId, list[Multiaddr]] = OrderedDict()
        self._doubted: dict[PeerId, None] = {}  # to be asked for a sign of life

    # --- inputs ---------------------------------------------------------------------------------

    def receive_connections(self) -> None:
        """Note the peers that are connected and identified already."""
        for connection in self._host.connections():
            if self._settings.protocol in self._host.protocols_of(connection.peer_id):
                self.receive_alive(connection.peer_id)

    def receive_identified(self, event: PeerIdentified) -> None:
        """Note what a peer says it serves."""
        if self._settings.protocol in event.protocols:
            self._core.bans.pardon(event.peer_id)
            self.receive_alive(event.peer_id)
        else:
            self._drop(event.peer_id, "it does not serve the protocol")

    def receive_alive(self, peer: PeerId) -> None:
        """Note a sign of life of a peer that serves the protocol."""
        known = peer in self._core.table
        doubted = self._core.table.receive_alive(peer, trio.current_time())
        if doubted is not None:
            self._doubted[doubted] = None
        if not known and peer in self._core.table:
            self._host.events.emit(DhtPeerAdded(peer_id=peer))

    def learn(self, contacts: Iterable[Contact]) -> list[PeerId]:
        """Take in the peers an answer names; returns those worth asking."""
        now, found = trio.current_time(), []
        for contact in contacts:
            peer = contact.peer_id
            if peer == self._host.peer_id or self._core.bans.is_banned(peer, now):
                continue
            if contact.addresses:
                self._host.add_addresses(peer, contact.addresses, 1800.0)
            elif not self._host.connection_to(peer) and not self._host.addresses_of(peer):
                continue
            found.append(peer)
        return found

    def remember(self, peer: PeerId, addresses: Sequence[Multiaddr]) -> None:
        """Remember where a peer is or was, in case it has to be found again."""
        known = self._remembered.setdefault(peer, [])
        known += [address for address in addresses if address not in known]
        self._remembered.move_to_end(peer)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def report(self, peer: PeerId, reason: str) -> None:
        """Tell that an answer broke a rule; the host itself reports requests that do."""
        self._host.events.emit(
            PeerMisbehaved(
                peer_id=peer, address=None, reason=f"{self._settings.protocol}: {reason}"
            )
        )

    # --- requests -------------------------------------------------------------------------------

    def contact_of(self, peer: PeerId) -> Contact:
        """Describe a peer, or this node itself, as messages do."""
        if peer == self._host.peer_id:
            return Contact(peer, tuple(self._host.addresses), connected=True)
        connected = self._host.connection_to(peer) is not None
        # What others told us of it may be wrong, or meant for somebody whom all shall knock at.
        return Contact(peer, tuple(self._host.addresses_of(peer, hearsay=False)), connected)

    async def ask(self, peer: PeerId, message: Message) -> Message:
        """Send a request, and note what its outcome says about the peer.

        Raises:
            RemoteError: there was no proper answer in time.
        """
        try:
            answer = await self._requester.request(peer, message)
        except ResourceLimitError:
            raise
        except NegotiationError:
            self._drop(peer, "it does not serve the protocol")
            raise
        except RemoteError as error:
            if isinstance(error, StreamResetError) and message.type is not MessageType.FIND_NODE:
                raise
            if isinstance(error, ProtocolError):
                self.report(peer, str(error))
            self._core.bans.receive_failure(peer, trio.current_time())
            if peer in self._core.table:
                self.remember(peer, self._host.addresses_of(peer))
            self._drop(peer, str(error))
            raise
        self._core.bans.receive_success(peer)
        self.receive_alive(peer)
        return answer

    async def check(self, peer: PeerId) -> bool:
        """Ask a peer for a sign of life, and for whom it knows near us."""
        message = Message(type=MessageType.FIND_NODE, key=bytes(self._host.peer_id))
        try:
            self.learn((await self.ask(peer, message)).closer)
        except RemoteError:
            return False
        return True

    async def join_by(
        self, peer: PeerId, addresses: Sequence[Multiaddr], *, insist: bool = False
    ) -> None:
        """Connect to a peer and ask it for whom it knows near us.

        Args:
            peer: whom to ask.
            addresses: where, besides those already known.
            insist: whether to dial even addresses that failed lately.

        Raises:
            RemoteError: it cannot be reached, or does not answer.
        """
        await self._host.connect(
            peer, addresses, timeout=self._settings.query_timeout, insist=insist
        )
        message = Message(type=MessageType.FIND_NODE, key=bytes(self._host.peer_id))
        self.learn((await self.ask(peer, message)).closer)

    async def rejoin(self, *, banned_too: bool) -> int:
        """Try the remembered peers that the table does not know; returns how many answered."""
        now = trio.current_time()
        lost = [
            (peer, addresses)
            for peer, addresses in self._remembered.items()
            if not self._core.table.knows(peer)
            and (banned_too or not self._core.bans.is_banned(peer, now))
        ]
        answered: list[PeerId] = []
        limiter = trio.CapacityLimiter(CHECKS_AT_ONCE)

        async def attempt(peer: PeerId, addresses: Sequence[Multiaddr]) -> None:
            async with limiter:
                try:
                    await self.join_by(peer, addresses)
                except RemoteError:
                    self._core.bans.receive_failure(peer, trio.current_time())
                else:
                    answered.append(peer)

        async with trio.open_nursery() as nursery:
            for peer, addresses in lost:
                nursery.start_soon(attempt, peer, list(addresses))
        return len(answered)

    async def recall(self, peers: Sequence[PeerId]) -> int:
        """Try peers of an earlier session; returns how many answered.

        All are remembered, except who does not speak this protocol.
        """
        answered: list[PeerId] = []
        limiter = trio.CapacityLimiter(CHECKS_AT_ONCE)

        async def attempt(peer: PeerId) -> None:
            async with limiter:
                try:
                    await self.join_by(peer, ())
                except NegotiationError:
                    self._remembered.pop(peer, None)
                except RemoteError:
                    self._core.bans.receive_failure(peer, trio.current_time())
                else:
                    answered.append(peer)

        for peer in peers:
            self.remember(peer, self._host.addresses_of(peer))
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(attempt, peer)
        return len(answered)

    async def check_doubted(self) -> None:
        """Ask those not heard of for long, or whose place others want, for a sign of life."""
        unheard = self._core.table.unheard(trio.current_time(), self._settings.liveness_interval)
        doubted = [peer for peer in self._doubted if peer in self._core.table]
        self._doubted.clear()
        limiter = trio.CapacityLimiter(CHECKS_AT_ONCE)

        async def check(peer: PeerId) -> None:
            async with limiter:
                await self.check(peer)

        async with trio.open_nursery() as nursery:
            for peer in dict.fromkeys((*doubted, *unheard)):
                nursery.start_soon(check, peer)

    async def close_idle(self) -> None:
        """End streams that were not used for a while."""
        await self._requester.close_idle(trio.current_time())

    def reset_idle(self) -> None:
        """End all kept streams at once."""
        self._requester.reset_idle()

    def _drop(self, peer: PeerId, reason: str) -> None:
        if self._core.table.remove(peer):
            self._host.events.emit(DhtPeerLost(peer_id=peer, reason=reason))
