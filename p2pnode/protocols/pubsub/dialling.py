"""Whom pub/sub itself dials: direct peers, always, and peers that others told of.

Source: libp2p/specs, gossipsub 1.1, "Explicit Peering" and "Peer Exchange".
"""

from collections.abc import Sequence
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import PubSubSettings
from p2pnode.errors import P2PNodeError, ProtocolError
from p2pnode.host import Host
from p2pnode.protocols.pubsub.state import Dial
from p2pnode.wire.addresses import peer_address
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.records import PeerRecord

DIRECT_TAG: Final = "pubsub:direct"


class Dialling:
    """Keeps direct peers connected while `run` runs, and follows hints.

    Raises:
        InvalidAddressError: a direct peer's address is malformed or lacks its `/p2p` part.
    """

    def __init__(self, host: Host, settings: PubSubSettings) -> None:
        self._host = host
        self._settings = settings
        self._under_way = 0
        self.direct: dict[PeerId, list[Multiaddr]] = {}
        for text in settings.direct_peers:
            peer_id, address = peer_address(text)
            self.direct.setdefault(peer_id, []).append(address)

    async def run(self) -> None:
        """Protect direct peers, and connect to those that are not connected, until cancelled."""
        for peer_id in self.direct:
            self._host.protect(peer_id, DIRECT_TAG)
        try:
            while True:
                for peer_id, addresses in self.direct.items():
                    if self._host.connection_to(peer_id) is None:
                        await self._connect(peer_id, addresses)
                await trio.sleep(self._settings.direct_connect_interval)
        finally:
            for peer_id in self.direct:
                self._host.unprotect(peer_id, DIRECT_TAG)

    def follow(self, hint: Dial, nursery: trio.Nursery) -> None:
        """Dial a peer that another one told of, unless too many are being dialled already."""
        if self._under_way < self._settings.max_px_dials:
            self._under_way += 1
            nursery.start_soon(self._follow, hint)

    async def _follow(self, hint: Dial) -> None:
        try:
            addresses: Sequence[Multiaddr] = ()
            if hint.record:
                record = PeerRecord.open(hint.record)
                if record.peer_id != hint.peer_id:
                    return
                addresses = record.addresses
            await self._connect(hint.peer_id, addresses)
        except ProtocolError:
            return  # it may have been told in good faith
        finally:
            self._under_way -= 1

    async def _connect(self, peer_id: PeerId, addresses: Sequence[Multiaddr]) -> None:
        try:
            await self._host.connect(peer_id, addresses)
        except P2PNodeError:
            return  # it is not there now; there are others, or another time
