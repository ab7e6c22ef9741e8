"""What `p2pnode status` and `p2pnode peers` show of a network, as plain values for JSON."""

from collections import Counter
from typing import Any

import trio

from p2pnode.daemon.reachability import describe_reachability
from p2pnode.daemon.relaying import describe_relaying
from p2pnode.host.budgets import BudgetReport, ScopeUse
from p2pnode.host.portmap import PortMappingService
from p2pnode.swarm.network import Network


def describe_network(network: Network) -> dict[str, Any]:
    """Describe where a node is reached, what it is connected to, and what peers use of it."""
    host = network.host
    return {
        "peer_id": str(network.peer_id),
        "addresses": network.full_addresses(),
        "listening": [str(address) for address in host.listening],
        "observed": [str(address) for address in host.observed],
        "mapped": [str(address) for address in host.mapped],
        "portmap": _describe_portmap(network.portmap),
        "reachability": describe_reachability(network.reachability.info(), trio.current_time()),
        "connections": len(host.connections()),
        "ways": Counter(info.way for info in host.info().connections),
        "relay": describe_relaying(network.relay_client, network.relay_server),
        "dht": {
            "mode": "server" if network.dht.serves else "client",
            "peers": len(network.dht.peers),
            "records": network.dht.record_count,
        },
        "budget": _describe_budgets(host.info().budgets),
    }


def describe_peers(network: Network) -> list[dict[str, Any]]:
    """Describe each connection."""
    return [
        {
            "peer_id": str(info.peer_id),
            "address": str(info.remote_address),
            "direction": info.direction,
            "way": info.way,
            "note": info.note,
            "age": info.age,
            "streams": info.streams,
            "bytes_sent": info.bytes_sent,
            "bytes_received": info.bytes_received,
            "rtt": info.rtt,
            "agent": network.agents.get(info.peer_id),
        }
        for info in network.host.info().connections
    ]


def _describe_portmap(portmap: PortMappingService | None) -> dict[str, Any] | None:
    if portmap is None:
        return None
    return {
        "protocol": portmap.protocol,
        "failure": portmap.failure,
        "mappings": [
            {
                "port": f"{each.port.kind}/{each.port.number}",
                "external": f"{each.external_ip}:{each.external_port}",
            }
            for each in portmap.mappings
        ],
    }


def _describe_budgets(report: BudgetReport) -> dict[str, Any]:
    return {
        "node": _describe_uses(report.node),
        "top": [
            {"kind": each.kind, "name": each.name, **_describe_uses(each)} for each in report.top
        ],
        "refused": {limit.value: times for limit, times in report.refusals.items()},
    }


def _describe_uses(scope: ScopeUse) -> dict[str, Any]:
    return {each.resource: {"used": each.used, "limit": each.limit} for each in scope.uses}
