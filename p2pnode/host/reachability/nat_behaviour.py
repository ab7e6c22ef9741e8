"""How a NAT behaves, from what was seen of it. Pure.

Two questions decide who can reach a node behind one (RFC 4787, sections 4.1 and 5, for UDP; RFC
5382 for TCP; the tests are those of RFC 5780, sections 4.3 and 4.4):

- **Mapping**: does one private endpoint show the same public endpoint to everybody? If so, a peer
  can be told where to find it.
- **Filtering**: whose packets does the NAT let in at that public endpoint?

Each is answered only as far as the observations go. Those that identify brings come from peers
with one port each, so they tell that a mapping depends on the destination, and not on which part
of it; a probe with a helper that has two addresses and two ports tells all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from p2pnode.wire.addresses import IpAddress


class Endpoint(NamedTuple):
    """An IP address and a port."""

    ip: IpAddress
    port: int


class Mapping(Enum):
    """On what the public endpoint of a private one depends."""

    UNKNOWN = "unknown"
    NONE = "none"  # the private endpoint is the public one
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    DEPENDENT = "dependent"  # one of the two above: who saw it did not differ in port alone

    @property
    def is_dependent(self) -> bool:
        """Whether nobody can be told where this node is: it looks different to each."""
        return self in {
            Mapping.ADDRESS_DEPENDENT,
            Mapping.ADDRESS_AND_PORT_DEPENDENT,
            Mapping.DEPENDENT,
        }


class Filtering(Enum):
    """Whose packets come in at a public endpoint."""

    UNKNOWN = "unknown"
    ENDPOINT_INDEPENDENT = "endpoint-independent"  # anybody's
    ADDRESS_DEPENDENT = "address-dependent"  # those of addresses this side has sent to
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"  # those of endpoints it has sent to


class Stranger(Enum):
    """Who tried to come in, seen from a helper that this side had sent to before."""

    OTHER_PORT = "other port"  # the helper's address, another port
    OTHER_ADDRESS = "other address"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One remote endpoint saw one of our endpoints.

    Attributes:
        local: ours, as our socket has it.
        remote: who saw it.
        seen: as what.
    """

    local: Endpoint
    remote: Endpoint
    seen: Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A stranger's packet, or connection, to a public endpoint of ours.

    Attributes:
        stranger: who sent it.
        arrived: whether it came through.
    """

    stranger: Stranger
    arrived: bool


def classify_mapping(sightings: Iterable[Sighting]) -> Mapping:
    """Tell how a NAT maps, by who saw what; of one transport protocol, and one IP version.

    Sightings of several local endpoints add up: each is compared with those of its own kind.
    """
    by_local: dict[Endpoint, dict[Endpoint, Endpoint]] = {}
    for each in sightings:
        by_local.setdefault(each.local, {})[each.remote] = each.seen
    if not by_local:
        return Mapping.UNKNOWN
    if all(local == seen for local, all_seen in by_local.items() for seen in all_seen.values()):
        return Mapping.NONE
    found = [_mapping_of(all_seen) for all_seen in by_local.values()]
    for mapping in (  # one endpoint that depends on more is proof; independence is only not seeing
        Mapping.ADDRESS_AND_PORT_DEPENDENT,
        Mapping.ADDRESS_DEPENDENT,
        Mapping.DEPENDENT,
        Mapping.ENDPOINT_INDEPENDENT,
    ):
        if mapping in found:
            return mapping
    return Mapping.UNKNOWN


def _mapping_of(seen: dict[Endpoint, Endpoint]) -> Mapping:
    """Classify the mapping of one local endpoint, by remote endpoint."""
    by_ip: dict[IpAddress, list[Endpoint]] = {}
    for remote, public in seen.items():
        by_ip.setdefault(remote.ip, []).append(public)
    if any(len(set(publics)) > 1 for publics in by_ip.values()):
        return Mapping.ADDRESS_AND_PORT_DEPENDENT
    if len(by_ip) < 2:
        return Mapping.UNKNOWN
    if len(set(seen.values())) == 1:
        return Mapping.ENDPOINT_INDEPENDENT
    if any(len(publics) > 1 for publics in by_ip.values()):
        return Mapping.ADDRESS_DEPENDENT  # several ports of one address saw the same
    return Mapping.DEPENDENT


def classify_filtering(trials: Iterable[Trial]) -> Filtering:
    """Tell whom a NAT lets in. One packet that arrived is proof; one that did not may be lost.

    Trials are therefore to be repeated by who makes them.
    """
    arrived: dict[Stranger, bool] = {}
    for each in trials:
        arrived[each.stranger] = arrived.get(each.stranger, False) or each.arrived
    if arrived.get(Stranger.OTHER_ADDRESS):
        return Filtering.ENDPOINT_INDEPENDENT
    if Stranger.OTHER_ADDRESS not in arrived or Stranger.OTHER_PORT not in arrived:
        return Filtering.UNKNOWN
    if arrived[Stranger.OTHER_PORT]:
        return Filtering.ADDRESS_DEPENDENT
    return Filtering.ADDRESS_AND_PORT_DEPENDENT
