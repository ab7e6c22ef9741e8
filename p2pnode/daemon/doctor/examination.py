"""Gathering the facts about a running node: a look-up, the time at some peers, the disk."""

import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import Settings
from p2pnode.config.units import KIB
from p2pnode.daemon.doctor.facts import (
    ClockFacts,
    DeviceFacts,
    DhtFacts,
    DiskFacts,
    Facts,
    NatFacts,
    PortMappingFacts,
    ReachabilityFacts,
    RelayFacts,
    WayFacts,
)
from p2pnode.errors import P2PNodeError
from p2pnode.host.portmap.service import PortMappingService
from p2pnode.host.reachability.nat_behaviour import Sighting, classify_mapping
from p2pnode.protocols.autonat.service import ReachabilityInfo
from p2pnode.protocols.clock.core import PROTOCOL as CLOCK
from p2pnode.protocols.clock.core import Offset, agreed
from p2pnode.protocols.relay.client import RelayClient
from p2pnode.swarm.network import Network
from p2pnode.wire.peer_id import PeerId

CLOCKS_ASKED: Final = 9  # peers; enough for a majority of honest ones
LOOKUP_KEY_BYTES: Final = 32
PROBES_TOLD: Final = 5  # of those that tell whether others reach this node
_MEMORY: Final = Path("/proc/meminfo")
MAX_FILES: Final = 100_000  # whose sizes are added up


async def examine(
    network: Network, settings: Settings, data_dir: Path, rng: random.Random, *, experts: int = 0
) -> Facts:
    """Gather what `diagnose` judges; takes as long as a look-up does.

    Args:
        network: the running node's.
        settings: the node's.
        data_dir: where it keeps what must last.
        rng: chance.
        experts: how many it hosts.
    """
    clock, dht, disk = ClockFacts(), None, None

    async def ask_clocks() -> None:
        nonlocal clock
        clock = await _compare_clocks(network, rng)

    async def look_up() -> None:
        nonlocal dht
        dht = await _look_up(network, rng)

    async def look_at_disk() -> None:
        nonlocal disk
        disk = await trio.to_thread.run_sync(_look_at_disk, data_dir)

    async with trio.open_nursery() as nursery:
        for look in (ask_clocks, look_up, look_at_disk):
            nursery.start_soon(look)
    assert dht is not None
    assert disk is not None
    host = network.host
    return Facts(
        bootstrap=tuple(settings.node.bootstrap),
        listening=tuple(map(str, host.listening)),
        told=tuple(network.full_addresses()),
        ports=_tcp_ports(host.listening),
        nats=tuple(_describe_nat(family, seen) for family, seen in host.seen_by().items()),
        reachability=_describe_reachability(network.reachability.info()),
        portmap=_describe_portmap(network.portmap),
        relays=_describe_relays(network.relay_client),
        ways=tuple(
            WayFacts(peer_id=str(each.peer_id), way=each.way, note=each.note, age=each.age)
            for each in host.info().connections
        ),
        clock=clock,
        dht=dht,
        disk=disk,
        device=DeviceFacts(
            name=settings.hosting.device,
            experts=experts,
            cores=os.cpu_count() or 1,
            load=os.getloadavg()[0],
            free_memory=_free_memory(),
        ),
    )


def _tcp_ports(listening: Iterable[Multiaddr]) -> tuple[int, ...]:
    ports = [each.value_for_protocol("tcp") for each in listening if "/tcp/" in str(each)]
    return tuple(sorted({int(port) for port in ports if port is not None}))


def _describe_nat(family: tuple[int, str], sightings: Sequence[Sighting]) -> NatFacts:
    version, kind = family
    seen = Counter(f"{each.seen.ip} port {each.seen.port}" for each in sightings)
    mapping = classify_mapping(sightings)
    return NatFacts(family=f"IPv{version} {kind}", mapping=mapping, seen=dict(seen))


def _describe_reachability(info: ReachabilityInfo) -> ReachabilityFacts:
    findings = [*info.families.values(), *info.addresses.values()]
    return ReachabilityFacts(
        state=info.state,
        is_forced=info.is_forced,
        servers=info.servers,
        reached=max((each.reached for each in findings), default=0),
        failed=max((each.failed for each in findings), default=0),
        last=tuple(
            f"{each.peer_id}: {each.result.value}" + (f" ({each.text})" if each.text else "")
            for each in list(reversed(info.evidence))[:PROBES_TOLD]
        ),
    )


def _describe_portmap(portmap: PortMappingService | None) -> PortMappingFacts:
    if portmap is None:
        return PortMappingFacts()
    return PortMappingFacts(
        is_on=True,
        protocol=portmap.protocol or "",
        mappings=tuple(
            f"{each.port.kind} port {each.port.number} is {each.external_ip}:{each.external_port}"
            for each in portmap.mappings
        ),
        failure=portmap.failure,
    )


def _describe_relays(client: RelayClient | None) -> RelayFacts:
    if client is None:
        return RelayFacts()
    info = client.info()
    return RelayFacts(
        wanted=info.wanted,
        held=len(info.held),
        limited=sum(each.limited for each in info.held),
        known=info.known_relays,
    )


async def _compare_clocks(network: Network, rng: random.Random) -> ClockFacts:
    host = network.host
    able = sorted(
        {each.peer_id for each in host.connections() if CLOCK in host.protocols_of(each.peer_id)}
    )
    chosen: Sequence[PeerId] = rng.sample(able, min(CLOCKS_ASKED, len(able)))
    offsets: list[Offset] = []

    async def ask(peer_id: PeerId) -> None:
        try:
            offsets.append(await network.clock.compare(peer_id))
        except P2PNodeError:
            return  # one less to believe

    async with trio.open_nursery() as nursery:
        for each in chosen:
            nursery.start_soon(ask, each)
    return ClockFacts(asked=len(offsets), offset=agreed(offsets))


async def _look_up(network: Network, rng: random.Random) -> DhtFacts:
    dht = network.dht
    mode, started = "server" if dht.serves else "client", trio.current_time()
    try:
        found = await dht.closest_peers(rng.randbytes(LOOKUP_KEY_BYTES))
    except P2PNodeError as error:
        return DhtFacts(mode=mode, peers=len(dht.peers), error=str(error))
    seconds = trio.current_time() - started
    return DhtFacts(mode=mode, peers=len(dht.peers), lookup_seconds=seconds, answered=len(found))


def _free_memory() -> int | None:
    try:
        lines = _MEMORY.read_text("ascii").splitlines()
    except OSError:  # not Linux
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * KIB
    return None


def _look_at_disk(path: Path) -> DiskFacts:
    found = os.statvfs(path)
    used = 0
    for number, file in enumerate(path.rglob("*")):
        if number == MAX_FILES:
            break
        try:
            used += file.lstat().st_size
        except OSError:  # it went meanwhile
            continue
    return DiskFacts(
        path=str(path),
        free=found.f_bavail * found.f_frsize,
        total=found.f_blocks * found.f_frsize,
        used_by_node=used,
        is_writable=os.access(path, os.W_OK) and not found.f_flag & os.ST_RDONLY,
    )
