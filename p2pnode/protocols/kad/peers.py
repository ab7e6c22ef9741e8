"""The peers of the DHT: asked, noted, doubted and dropped.

Rules:
- A peer enters the routing table when identify says that it serves the protocol, or when it
  answers a request.
- It leaves when identify says that it stopped, or when it breaks the protocol or falls silent;
  then it is also banned for a time that doubles, until it answers, or is identified, again. One
  that was not reached at all is asked even so when somebody tells of an address not tried yet: it
  may have been a liar who told of the others.
- A reset stream refuses one request, and says something about the peer only when it was asked
  what any peer can answer: whom it knows.
- Whoever was not heard of for a while is asked for a sign of life: rarely while a connection
  stands, whose own keepalive notices when the other machine is gone. When a connection ends after
  a long silence, it was most likely closed for being idle, and its peer is asked after half the
  time; when it ends in the middle of things, at once.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
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
from p2pnode.host import ConnectionEnded, Host, PeerIdentified, PeerMisbehaved
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.diversity import group_of
from p2pnode.protocols.kad.lookup import Named
from p2pnode.protocols.kad.messages import Contact, Message, MessageType
from p2pnode.protocols.kad.requester import Requester
from p2pnode.wire.peer_id import PeerId

CHECKS_AT_ONCE: Final = 8
LIVELY: Final = 60.0  # a connection that ends so soon after the last answer was not idle
CONTACTS_AGE: Final = 30.0  # seconds
MAX_UNREACHED: Final = 1024  # peers
MAX_TRIED: Final = 64  # addresses of each
MAX_CONTACTS: Final = 1024  # more than a table holds; others are asked for by name


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
    """Keeps the routing table in step with what the network shows.

    Args:
        host: the node's network side.
        core: the table, and who is banned.
        settings: limits and intervals.
        lost: told of each peer that fell silent while it was in the table.
        changed: called when a check of some peer may be due earlier than was told before.
    """

    def __init__(
        self,
        host: Host,
        core: KadCore,
        settings: DhtSettings,
        *,
        lost: Callable[[PeerId], None],
        changed: Callable[[], None],
    ) -> None:
        self._host = host
        self._core = core
        self._settings = settings
        self._lost = lost
        self._changed = changed
        self._requester = Requester(host, settings)
        self._doubted: dict[PeerId, None] = {}  # to be asked for a sign of life at once
        self._tried: OrderedDict[PeerId, tuple[Multiaddr, ...]] = OrderedDict()  # where in vain
        self._contacts: dict[PeerId, Contact] = {}  # as told to others
        self._contacts_until = float("-inf")
        self._check_at = float("inf")  # nobody is to be checked before

    # --- inputs ---------------------------------------------------------------------------------

    def receive_connections(self) -> None:
        """Note the peers that are connected and identified already."""
        for connection in self._host.connections():
            if connection.is_limited:
                continue
            if self._settings.protocol in self._host.protocols_of(connection.peer_id):
                self.receive_alive(connection.peer_id)

    def receive_identified(self, event: PeerIdentified) -> None:
        """Note what a peer says it serves."""
        self._contacts.pop(event.peer_id, None)
        if self._settings.protocol in event.protocols:
            connection = self._host.connection_to(event.peer_id)
            if connection is not None and connection.is_limited:
                return  # it cannot be asked this way, and perhaps in none
            self._core.bans.pardon(event.peer_id)
            self.receive_alive(event.peer_id)
        else:
            self._drop(event.peer_id, "it does not serve the protocol")

    def receive_ended(self, event: ConnectionEnded) -> None:
        """Note that a connection ended: its peer may be gone."""
        peer = event.connection.peer_id
        self._contacts.pop(peer, None)
        if peer in self._core.table and self._host.connection_to(peer) is None:
            now, interval = trio.current_time(), self._settings.liveness_interval
            if now - self._core.table.heard_of(peer) < min(LIVELY, interval):
                self._doubted[peer] = None
            else:
                self._core.table.receive_alive(peer, now - interval / 2)
                self._check_at = min(self._check_at, now + interval / 2)
            self._changed()

    def receive_alive(self, peer: PeerId) -> None:
        """Note a sign of life of a peer that serves the protocol."""
        table, now = self._core.table, trio.current_time()
        if table.renew(peer, now):
            return
        doubted = table.receive_alive(peer, now, self.group_of(peer))
        if doubted is not None:
            self._doubted[doubted] = None
            self._changed()
        if peer in table:
            self._check_at = min(self._check_at, now + self._interval(peer))
            self._host.events.emit(DhtPeerAdded(peer_id=peer))

    def worth_asking(self, contacts: Iterable[Contact], now: float) -> list[Named]:
        """Choose, of the peers that an answer names, those to ask; each with its network."""
        host = self._host
        private_too = self._settings.limit_private_networks
        return [
            (contact, group_of(contact.addresses, private_too=private_too))
            for contact in contacts
            if contact.peer_id != host.peer_id
            and not self._is_avoided(contact, now)
            and (
                contact.addresses
                or host.connection_to(contact.peer_id)
                or host.addresses_of(contact.peer_id)
            )
        ]

    def group_of(self, peer: PeerId) -> bytes | None:
        """Return the network of a peer: where it is connected, or else where it is said to be."""
        connection = self._host.connection_to(peer)
        addresses = [connection.remote_address] if connection else self._host.addresses_of(peer)
        return group_of(addresses, private_too=self._settings.limit_private_networks)

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
        known = self._contacts.get(peer)
        if known is not None:
            return known
        if peer == self._host.peer_id:
            return Contact(peer, tuple(self._host.addresses), connected=True)
        connected = self._host.connection_to(peer) is not None
        # What others told us of it may be wrong, or meant for somebody whom all shall knock at.
        addresses = tuple(self._host.addresses_of(peer, hearsay=False))
        contact = self._contacts[peer] = Contact(peer, addresses, connected)
        return contact

    def forget_contacts(self, now: float) -> None:
        """Describe peers anew, if the descriptions are old: addresses end without a word."""
        if now >= self._contacts_until or len(self._contacts) > MAX_CONTACTS:
            self._contacts.clear()
            self._contacts_until = now + CONTACTS_AGE

    async def ask(
        self, peer: PeerId, message: Message, addresses: Sequence[Multiaddr] = ()
    ) -> Message:
        """Send a request, and note what its outcome says about the peer.

        Args:
            peer: whom to ask.
            message: the request.
            addresses: where it may be, besides what the host knows.

        Raises:
            RemoteError: there was no proper answer in time.
        """
        try:
            answer = await self._requester.request(peer, message, addresses)
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
            self._note_tried(peer, addresses)
            if peer in self._core.table:
                self._lost(peer)
            self._drop(peer, str(error))
            raise
        self._core.bans.receive_success(peer)
        self._tried.pop(peer, None)
        self.receive_alive(peer)
        return answer

    async def check(self, peer: PeerId) -> bool:
        """Ask a peer for a sign of life."""
        try:
            # Not a PING, which the specification has given up. The answer tells nothing new; but
            # the question tells the peer of us.
            message = Message(type=MessageType.FIND_NODE, key=bytes(self._host.peer_id))
            await self.ask(peer, message)
        except RemoteError:
            return False
        return True

    async def join_by(
        self, peer: PeerId, addresses: Sequence[Multiaddr], *, insist: bool = False
    ) -> None:
        """Connect to a peer that may serve the DHT, and ask it for a sign of life.

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
        await self.ask(
            peer, Message(type=MessageType.FIND_NODE, key=bytes(self._host.peer_id)), addresses
        )

    # --- upkeep ---------------------------------------------------------------------------------

    def next_check(self, now: float) -> float:
        """Return when a peer is to be asked for a sign of life next; infinity for never."""
        if self._doubted:
            return now
        if self._check_at <= now:  # most have been heard of since: look again
            due = (heard + self._interval(peer) for peer, heard in self._core.table.heard())
            self._check_at = min(due, default=float("inf"))
        return self._check_at

    async def check_doubted(self) -> None:
        """Ask those not heard of for long, or whose place others want, for a sign of life."""
        now = trio.current_time()
        unheard = [
            (heard, peer)
            for peer, heard in self._core.table.heard()
            if heard + self._interval(peer) <= now
        ]
        doubted = [peer for peer in self._doubted if peer in self._core.table]
        self._doubted.clear()
        limiter = trio.CapacityLimiter(CHECKS_AT_ONCE)

        async def check(peer: PeerId) -> None:
            async with limiter:
                await self.check(peer)

        async with trio.open_nursery() as nursery:
            for peer in dict.fromkeys((*doubted, *(peer for _, peer in sorted(unheard)))):
                nursery.start_soon(check, peer)

    def next_idle(self) -> float:
        """Return when `close_idle` has something to do; infinity for never."""
        return self._requester.next_idle()

    async def close_idle(self) -> None:
        """End streams that were not used for a while."""
        await self._requester.close_idle(trio.current_time())

    def reset_idle(self) -> None:
        """End all kept streams at once."""
        self._requester.reset_idle()

    def _is_avoided(self, contact: Contact, now: float) -> bool:
        if not self._core.bans.is_banned(contact.peer_id, now):
            return False
        tried = self._tried.get(contact.peer_id)
        return tried is None or set(contact.addresses).issubset(tried)

    def _note_tried(self, peer: PeerId, addresses: Sequence[Multiaddr]) -> None:
        """Note where a peer was not found; of one that was reached, nothing."""
        tried = self._tried.pop(peer, ())
        if self._host.connection_to(peer) is None:
            tried = tuple(dict.fromkeys((*tried, *addresses, *self._host.addresses_of(peer))))
            self._tried[peer] = tried[-MAX_TRIED:]
            if len(self._tried) > MAX_UNREACHED:
                self._tried.popitem(last=False)

    def _interval(self, peer: PeerId) -> float:
        if self._host.connection_to(peer) is None:
            return self._settings.liveness_interval
        return self._settings.connected_liveness_interval

    def _drop(self, peer: PeerId, reason: str) -> None:
        successors = self._core.table.remove(peer)
        if successors is None:
            return
        for each in successors:  # it may have waited for hours: see whether it lives
            self._doubted[each] = None
            self._host.events.emit(DhtPeerAdded(peer_id=each))
        self._host.events.emit(DhtPeerLost(peer_id=peer, reason=reason))
