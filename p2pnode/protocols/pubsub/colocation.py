"""From which network a peer connects, for the score's count of peers there (P6).

Ids cost nothing, addresses do: many peers at one address are likely one. Where many honest nodes
share one, as on this machine or in a whitelisted subnet, they are not counted.
"""

import ipaddress

from multiaddr import Multiaddr

from p2pnode.config import PubSubSettings
from p2pnode.wire.addresses import ip_of


class Networks:
    """Names networks by the prefixes of the settings."""

    def __init__(self, settings: PubSubSettings) -> None:
        self._prefixes = {
            4: settings.ip_colocation_ip4_prefix,
            6: settings.ip_colocation_ip6_prefix,
        }
        self._whitelist = [
            ipaddress.ip_network(each) for each in settings.ip_colocation_factor_whitelist
        ]

    def of(self, address: Multiaddr) -> str | None:
        """Return the network of a peer's address; None if peers there are not counted."""
        ip = ip_of(address)
        if ip is None or any(ip in each for each in self._whitelist):
            return None
        return str(ipaddress.ip_network((ip, self._prefixes[ip.version]), strict=False))
