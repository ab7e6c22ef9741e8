"""A node's way into the swarm: host, DHT, directory of experts and pub/sub, put together.

A daemon serves the DHT and takes part in pub/sub; a trainer only asks.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import Settings
from p2pnode.errors import NoPeersError
from p2pnode.events import EventBus
from p2pnode.host import ConnectionEnded, Host, PeerIdentified
from p2pnode.host.node import NetworkHost
from p2pnode.host.portmap import PortMappingService
from p2pnode.protocols.autonat.service import ReachabilityService
from p2pnode.protocols.clock.service import ClockService
from p2pnode.protocols.dcutr.service import DcutrService
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.protocols.kad.service import KadDht
from p2pnode.protocols.kad.validators import PublicKeyValidator
from p2pnode.protocols.mdns.service import MdnsService
from p2pnode.protocols.perf.service import PerfService
from p2pnode.protocols.ping.service import PingService
from p2pnode.protocols.pubsub import PubSub
from p2pnode.protocols.relay.client import RelayClient
from p2pnode.protocols.relay.server import RelayServer
from p2pnode.protocols.relay.transport import RelayTransport
from p2pnode.security.tls import TlsIdentity
from p2pnode.security.tokens import verify_token
from p2pnode.swarm import description
from p2pnode.swarm.gossip.reputation import Reputation
from p2pnode.swarm.gossip.saved_reputation import SavedReputation
from p2pnode.swarm.index import EntryCache, IndexValidator
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.places import NAMESPACE
from p2pnode.transport.base import Transport
from p2pnode.transport.tcp import TcpTransport
from p2pnode.transport.websocket import WebSocketTransport
from p2pnode.wire.addresses import parse_address, peer_address, split_p2p, with_p2p
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

_MAX_RECALLED: Final = 32  # peers met before that are tried on rejoining; some still run


class Network:
    """The parts of a node that talk to others; they work while `run` runs.

    Args:
        key: the node's identity.
        settings: of the whole node.
        transports: TCP and WebSocket by default.
        rng: the source of chance.
        events: where everything below emits.
        peers_file: where addresses of known peers are kept, if anywhere.
        table_file: where the routing table of the DHT is kept, if anywhere.
        reputation_file: where it is kept what peers were found to have done, if anywhere.
    """

    def __init__(
        self,
        key: PrivateKey,
        settings: Settings,
        *,
        transports: Sequence[Transport] | None = None,
        rng: random.Random | None = None,
        events: EventBus | None = None,
        peers_file: Path | None = None,
        table_file: Path | None = None,
        reputation_file: Path | None = None,
    ) -> None:
        rng = rng or random.Random()
        events = events or EventBus()
        self.key = key
        self._settings = settings
        self.host = NetworkHost(
            key,
            transports=_transports(key, settings, events) if transports is None else transports,
            settings=settings.network,
            limits=settings.limits,
            rng=rng,
            announce=[split_p2p(parse_address(each))[0] for each in settings.node.announce],
            events=events,
            peerstore_path=peers_file,
        )
        self.identify = IdentifyService(self.host, settings.network)
        self.ping = PingService(self.host, settings.network)
        self.clock = ClockService(self.host, settings.network)
        self.perf = PerfService(self.host, settings.perf)
        self.reachability = ReachabilityService(self.host, settings.reachability, rng)
        self.mdns = MdnsService(self.host, settings.mdns, rng) if settings.mdns.enabled else None
        relays = RelayTransport(self.host, settings.relay)
        self.host.add_transport(relays)
        self.relay_client = (
            RelayClient(self.host, relays, settings.relay, rng)
            if settings.relay.client != "never"
            else None
        )
        self.relay_server = (
            RelayServer(self.host, settings.relay, settings.limits)
            if settings.relay.server != "never"
            else None
        )
        self.dcutr = (
            DcutrService(self.host, settings.dcutr, rng) if settings.dcutr.enabled else None
        )
        # Other transports than ours lead through other networks than this machine's.
        self.portmap = (
            PortMappingService(self.host, settings.portmap, rng)
            if settings.portmap.mode == "auto" and transports is None
            else None
        )
        self.dht, self.directory = build_dht(self.host, settings, rng, table_file=table_file)
        self.reputation = Reputation(settings.gossip)
        self._saved_reputation = SavedReputation(
            reputation_file, self.reputation, settings.gossip, events.emit
        )
        self.pubsub = PubSub(
            self.host,
            key,
            settings.pubsub,
            rng=rng,
            app_score=lambda peer_id: self.reputation.score(peer_id, trio.current_time()),
        )
        self._listens = trio.Event()
        self.agents: dict[PeerId, str] = {}  # what connected peers say they run
        self.host.events.on(PeerIdentified, self._receive_identified)
        self.host.events.on(ConnectionEnded, self._receive_ended)

    @property
    def peer_id(self) -> PeerId:
        """Who this node is."""
        return self.key.peer_id

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the parts until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.host.run)
            await nursery.start(self.identify.run)
            await nursery.start(self.ping.run)
            await nursery.start(self.clock.run)
            if self._settings.perf.serve:
                await nursery.start(self.perf.run)
            await nursery.start(self.dht.run)  # listens to what reachability finds
            if self._settings.gossip.enabled:
                await nursery.start(self._saved_reputation.run)
                await nursery.start(self.pubsub.run)
            if self.relay_server is not None:
                await nursery.start(self.relay_server.run)
            if self.relay_client is not None:
                nursery.start_soon(self._use_relays, self.relay_client)
            if self.dcutr is not None:
                await nursery.start(self.dcutr.run)
            await nursery.start(self.reachability.run)
            if self.mdns is not None:
                await nursery.start(self.mdns.run)
            if self.portmap is not None:
                await nursery.start(self.portmap.run)
            task_status.started()

    async def _use_relays(self, client: RelayClient) -> None:
        """Ask relays once this node listens.

        The connections to them are to leave from the port that it listens on, for them to see
        where holes can be punched to it.
        """
        await self._listens.wait()
        await client.run(lambda: self.reachability.state)

    def _receive_identified(self, event: PeerIdentified) -> None:
        if self.host.connection_to(event.peer_id) is not None:
            self.agents[event.peer_id] = event.agent

    def _receive_ended(self, event: ConnectionEnded) -> None:
        if self.host.connection_to(event.connection.peer_id) is None:
            self.agents.pop(event.connection.peer_id, None)

    async def listen(self, addresses: Sequence[str]) -> None:
        """Listen on all of `addresses`.

        Raises:
            InvalidAddressError: one cannot be read, or no transport takes it.
            AddressInUseError: one is taken by another program.
        """
        for address in [parse_address(each) for each in addresses]:
            await self.host.listen(address)
        self._listens.set()

    async def join(self, bootstrap: Sequence[str]) -> None:
        """Join the swarm by any of the addresses given; by none, this node is the first.

        Raises:
            InvalidAddressError: one cannot be read or names no peer.
            NoPeersError: none of them answers.
        """
        peers = [peer_address(each) for each in bootstrap]
        for peer_id, address in peers:
            if peer_id != self.peer_id:
                self.host.peerstore.configure(peer_id, [address])
        timeout = self._settings.node.bootstrap_timeout
        with trio.move_on_after(timeout) as scope:
            await self.dht.bootstrap(peers)
        if scope.cancelled_caught:
            raise NoPeersError(
                f"no bootstrap peer answered within {timeout:g} s: {', '.join(bootstrap)}; check "
                "the addresses and that one of these nodes runs"
            )

    async def rejoin(self) -> int:
        """Look for the swarm where this node met it before its last stop.

        That is at the peers of its routing table, and others it reached. Those that do not answer
        are tried again from time to time.

        Returns:
            How many answered.
        """
        known = self.host.peerstore.met(_MAX_RECALLED, trio.current_time())
        with trio.move_on_after(self._settings.node.bootstrap_timeout):
            return await self.dht.rejoin(known)
        return 0

    async def leave(self) -> None:
        """Hand over what this node keeps for others, before it ends."""
        await self.dht.leave()

    def full_addresses(self) -> list[str]:
        """List the addresses to give to others, the peer id at their end."""
        return [str(with_p2p(address, self.peer_id)) for address in self.host.addresses]

    def resolve(self, peer: str) -> tuple[PeerId, list[Multiaddr]]:
        """Read a peer id, or an address that ends in one.

        Raises:
            InvalidAddressError, InvalidKeyError: it is neither.
        """
        if peer.startswith("/"):
            peer_id, address = peer_address(peer)
            return peer_id, [address]
        return PeerId.from_text(peer), []


def build_dht(
    host: Host,
    settings: Settings,
    rng: random.Random,
    cache: EntryCache | None = None,
    *,
    table_file: Path | None = None,
) -> tuple[KadDht, ExpertDirectory]:
    """Put a DHT that keeps the index of experts on a host, and a directory that reads it.

    Nodes that share a process may share a cache of verified entries.
    """
    index = IndexValidator(_verify_host, cache)
    dht = KadDht(
        host,
        settings.dht,
        rng,
        {
            PublicKeyValidator.NAMESPACE: PublicKeyValidator(),
            NAMESPACE: index,
            description.NAMESPACE: description.DescriptionValidator(),
        },
        table_file=table_file,
    )
    return dht, ExpertDirectory(host, dht, index, settings.swarm)


def _transports(key: PrivateKey, settings: Settings, events: EventBus) -> list[Transport]:
    network = settings.network
    found = [TcpTransport(network), WebSocketTransport(network, events=events)]
    if network.quic:
        # Its library takes a tenth of a second to import, which others need not wait for.
        from p2pnode.transport.quic import QuicTransport  # noqa: PLC0415

        found.append(QuicTransport(TlsIdentity(key), network))
    return found


def _verify_host(token: bytes, run_id: str, peer_id: PeerId, now: float) -> float:
    return verify_token(token, run_id, peer_id, "host", now)
