"""What `node status` tells of relays: those that reach this node, and what it carries itself."""

import dataclasses
from typing import Any

from p2pnode.protocols.relay.client import RelayClient, RelayClientInfo
from p2pnode.protocols.relay.server import RelayServer


def describe_relaying(client: RelayClient | None, server: RelayServer | None) -> dict[str, Any]:
    """Describe both sides of relaying for JSON; None stands for one that is switched off."""
    return {
        "held": None if client is None else _describe_held(client.info()),
        "given": None if server is None else dataclasses.asdict(server.info()),
    }


def _describe_held(info: RelayClientInfo) -> dict[str, Any]:
    return {
        "wanted": info.wanted,
        "known_relays": info.known_relays,
        "reservations": [
            {
                "relay": str(each.relay),
                "addresses": [str(address) for address in each.addresses],
                "seconds_left": each.seconds_left,
                "limited": each.limited,
            }
            for each in info.held
        ],
    }
