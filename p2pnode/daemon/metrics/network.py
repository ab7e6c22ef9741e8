"""Figures of the network side, which every node has."""

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import Final

import trio
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from p2pnode import __version__
from p2pnode.daemon.owner.core import Decision
from p2pnode.host import ConnectionEnded, PeerMisbehaved
from p2pnode.host.connections import ConnectionInfo, InboundStreamFailed, NetworkConnection
from p2pnode.protocols.kad.queries import DhtLookupEnded
from p2pnode.swarm.gossip.reputation import OffenceSeen
from p2pnode.swarm.network import Network

SECONDS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


class NetworkMetrics(Collector):
    """Connections, streams, refusals, DHT, swarms and relaying.

    Args:
        registry: where they are registered.
        network: what is measured.
        decision: whether the node is paused, and by what.
    """

    def __init__(
        self, registry: CollectorRegistry, network: Network, decision: Callable[[], Decision]
    ) -> None:
        self._network = network
        self._decision = decision
        self._bytes_of_ended: Tally[str] = Tally()
        self._ended = Counter(
            "p2pnode_connections_ended", "Connections that have ended.", registry=registry
        )
        self._misbehaved = Counter(
            "p2pnode_peer_misbehaviours", "Broken rules of protocols.", registry=registry
        )
        self._failed_streams = Counter(
            "p2pnode_inbound_streams_failed",
            "Streams opened by peers that did not come to their proper end.",
            registry=registry,
        )
        self._lookups = Histogram(
            "p2pnode_dht_lookup_seconds",
            "How long look-ups in the DHT took.",
            ["kind"],
            buckets=SECONDS,
            registry=registry,
        )
        self._asked = Counter(
            "p2pnode_dht_peers_asked", "Requests that look-ups sent.", ["kind"], registry=registry
        )
        self._answered = Counter(
            "p2pnode_dht_peers_answered", "Those that were answered.", ["kind"], registry=registry
        )
        self._offences = Counter(
            "p2pnode_offences",
            "What other members of swarms were found to have done.",
            ["offence"],
            registry=registry,
        )
        ProcessCollector(registry=registry)
        registry.register(self)
        events = network.host.events
        events.on(ConnectionEnded, self._receive_ended)
        events.on(PeerMisbehaved, lambda _event: self._misbehaved.inc())
        events.on(InboundStreamFailed, lambda _event: self._failed_streams.inc())
        events.on(OffenceSeen, lambda event: self._offences.labels(event.offence.value).inc())
        events.on(DhtLookupEnded, self._receive_lookup)

    def _receive_ended(self, event: ConnectionEnded) -> None:
        self._ended.inc()
        if isinstance(event.connection, NetworkConnection):
            _add_bytes(self._bytes_of_ended, event.connection.info())

    def _receive_lookup(self, event: DhtLookupEnded) -> None:
        kind = event.kind.name.lower()
        self._lookups.labels(kind).observe(event.seconds)
        self._asked.labels(kind).inc(event.asked)
        self._answered.labels(kind).inc(event.answered)

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand: what `collect` gives is looked at when it is asked for."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Look at what there is now."""
        network = self._network
        host = network.host.info()
        yield InfoMetricFamily(
            "p2pnode",
            "Who this node is.",
            {"version": __version__, "peer_id": str(network.peer_id)},
        )
        yield _gauge("p2pnode_paused", "Whether the node takes no calls.", self._decision().paused)
        tasks = trio.lowlevel.current_statistics().tasks_living
        yield _gauge("p2pnode_tasks", "Tasks of the event loop, idle ones included.", tasks)
        connections = GaugeMetricFamily(
            "p2pnode_connections", "Open connections.", labels=["way", "direction"]
        )
        for (way, direction), count in Tally(
            (each.way.value, each.direction) for each in host.connections
        ).items():
            connections.add_metric([way, direction], count)
        yield connections
        moved = Tally(self._bytes_of_ended)
        for each in host.connections:
            _add_bytes(moved, each)
        carried = CounterMetricFamily(
            "p2pnode_stream_bytes", "Bytes that streams have carried.", labels=["direction"]
        )
        for towards in ("sent", "received"):
            carried.add_metric([towards], moved[towards])
        yield carried
        used = GaugeMetricFamily(
            "p2pnode_budget_used", "What is used of the node's budget.", labels=["resource"]
        )
        allowed = GaugeMetricFamily(
            "p2pnode_budget_limit", "What may be used of it.", labels=["resource"]
        )
        for use in host.budgets.node.uses:
            used.add_metric([use.resource], use.used)
            allowed.add_metric([use.resource], use.limit)
        yield used
        yield allowed
        refused = CounterMetricFamily(
            "p2pnode_refusals", "What budgets have refused.", labels=["limit"]
        )
        for limit, count in host.budgets.refusals.items():
            refused.add_metric([limit.value], count)
        yield refused
        yield _gauge("p2pnode_dht_peers", "Peers in the routing table.", len(network.dht.peers))
        yield _gauge("p2pnode_dht_records", "Records kept for others.", network.dht.record_count)
        yield _gauge("p2pnode_dht_serves", "Whether it answers others.", network.dht.serves)
        yield from self._collect_swarms()
        yield from self._collect_relaying()

    def _collect_swarms(self) -> Iterator[Metric]:
        topics = self._network.pubsub.topics
        yield _gauge("p2pnode_swarms", "Layers' swarms that this node speaks in.", len(topics))
        standings = self._network.reputation.standings(trio.current_time())
        blacklisted = sum(each.is_blacklisted for each in standings)
        yield _gauge("p2pnode_peers_blacklisted", "Peers not heard any more.", blacklisted)

    def _collect_relaying(self) -> Iterator[Metric]:
        if (client := self._network.relay_client) is not None:
            held = client.info().held
            yield _gauge("p2pnode_relays_held", "Relays that this node is reached by.", len(held))
        if (server := self._network.relay_server) is not None:
            info = server.info()
            yield _gauge(
                "p2pnode_relay_reservations", "Reservations given to others.", info.reservations
            )
            yield _gauge("p2pnode_relay_circuits", "Circuits carried for others.", info.circuits)
            yield CounterMetricFamily(
                "p2pnode_relay_bytes", "Bytes carried for others.", value=info.bytes_carried
            )
            yield CounterMetricFamily(
                "p2pnode_relay_requests_refused", "Requests refused.", value=info.refused
            )


def _add_bytes(tally: Tally[str], info: ConnectionInfo) -> None:
    tally["sent"] += info.bytes_sent
    tally["received"] += info.bytes_received


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
