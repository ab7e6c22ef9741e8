"""What the doctor knows of a node when it judges: plain data, gathered by `examination`."""

from dataclasses import dataclass, field

from p2pnode.protocols.clock.core import Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """Where some peers see this node.

    Attributes:
        local: the address of ours that their connections lead to or come from.
        seen: what it looks like from there.
        observers: how many of them, far enough apart to count, say so.
    """

    local: str
    seen: str
    observers: int


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
class Facts:
    """One node, looked at once.

    Attributes:
        bootstrap: the addresses it was told to join by.
        listening: the addresses it listens on.
        told: the addresses that others are told.
        sightings: where others see it.
        connections: how many peers are connected.
        clock: how its clock compares.
        dht: how the DHT does.
        disk: where it keeps what must last.
    """

    bootstrap: tuple[str, ...] = ()
    listening: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    connections: int = 0
    clock: ClockFacts = field(default_factory=ClockFacts)
    dht: DhtFacts
    disk: DiskFacts
