"""What the doctor knows of a node when it judges: plain data, gathered by `examination`."""

import dataclasses
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from p2pnode.host import Reachability
from p2pnode.host.connections import Way
from p2pnode.host.reachability.nat_behaviour import Mapping
from p2pnode.protocols.clock.core import Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class NatFacts:
    """What a router makes of this node, for one IP version and one of TCP and UDP.

    Attributes:
        family: such as `IPv4 tcp`.
        mapping: how it translates ports.
        seen: where peers see this node, and how many of them do.
    """

    family: str
    mapping: Mapping
    seen: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachabilityFacts:
    """Whether others can dial this node.

    Attributes:
        state: the verdict.
        is_forced: whether the settings say so, and nobody was asked.
        servers: how many peers can be asked.
        reached: how many networks say that they reached it.
        failed: how many say that they could not.
        last: the newest probes in words, the newest first.
    """

    state: Reachability = Reachability.UNKNOWN
    is_forced: bool = False
    servers: int = 0
    reached: int = 0
    failed: int = 0
    last: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMappingFacts:
    """What the router lets in because this node asked it to.

    Attributes:
        is_on: whether it is asked at all.
        protocol: how; empty as long as it does not answer.
        mappings: port of ours and address outside, in words.
        failure: why there are none, or too few.
    """

    is_on: bool = False
    protocol: str = ""
    mappings: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFacts:
    """How others reach this node through relays.

    Attributes:
        wanted: how many reservations it wants now.
        held: how many it has.
        limited: how many of these carry too little for the main job.
        known: how many relays it knows.
    """

    wanted: int = 0
    held: int = 0
    limited: int = 0
    known: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WayFacts:
    """How one peer is connected.

    Attributes:
        peer_id: who.
        way: which way it goes.
        note: why, in words, if there is something to say.
        age: seconds since.
    """

    peer_id: str
    way: Way
    note: str
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFacts:
    """How this machine's clock compares.

    Attributes:
        asked: how many peers told the time.
        offset: what most of them agree on, or None when they do not.
    """

    asked: int = 0
    offset: Offset | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtFacts:
    """How the DHT does.

    Attributes:
        mode: server or client.
        peers: in the routing table.
        lookup_seconds: how long a look-up took just now, or None when it failed.
        answered: how many peers answered in it.
        error: why it failed.
    """

    mode: str
    peers: int
    lookup_seconds: float | None = None
    answered: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """The file system of the data directory; sizes are in bytes."""

    path: str
    free: int
    total: int
    used_by_node: int
    is_writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What this node computes with.

    Attributes:
        name: as the settings call it, such as `cpu` or `cuda:0`.
        experts: how many it hosts there.
        cores: of this machine.
        load: tasks that want one of them, over the last minute.
        free_memory: bytes that programs can still have, or None where the system does not tell.
    """

    name: str = "cpu"
    experts: int = 0
    cores: int = 1
    load: float = 0.0
    free_memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One node, looked at once.

    Attributes:
        bootstrap: the addresses it was told to join by.
        listening: the addresses it listens on.
        told: the addresses that others are told.
        ports: the TCP ports it listens on.
        nats: what others see of it, where that differs from what it sees itself.
        reachability: whether others can dial it.
        portmap: what its router lets in.
        relays: how others reach it otherwise.
        ways: how each connected peer is connected.
        clock: how its clock compares.
        dht: how the DHT does.
        disk: where it keeps what must last.
        device: what it computes with.
    """

    bootstrap: tuple[str, ...] = ()
    listening: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    nats: tuple[NatFacts, ...] = ()
    reachability: ReachabilityFacts = field(default_factory=ReachabilityFacts)
    portmap: PortMappingFacts = field(default_factory=PortMappingFacts)
    relays: RelayFacts = field(default_factory=RelayFacts)
    ways: tuple[WayFacts, ...] = ()
    clock: ClockFacts = field(default_factory=ClockFacts)
    dht: DhtFacts
    disk: DiskFacts
    device: DeviceFacts = field(default_factory=DeviceFacts)


def as_plain(facts: Facts) -> dict[str, Any]:
    """Return facts for JSON."""
    return dataclasses.asdict(
        facts,
        dict_factory=lambda pairs: {
            name: value.value if isinstance(value, Enum) else value for name, value in pairs
        },
    )
