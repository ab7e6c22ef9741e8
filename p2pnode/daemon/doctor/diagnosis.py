"""What follows from the facts about a node, in the words of somebody who explains it. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from p2pnode.config.units import GIB, MIB
from p2pnode.daemon.doctor.facts import (
    ClockFacts,
    DeviceFacts,
    DhtFacts,
    DiskFacts,
    Facts,
    NatFacts,
    PortMappingFacts,
    RelayFacts,
    WayFacts,
)
from p2pnode.daemon.doctor.findings import Finding, Level
from p2pnode.host import Reachability
from p2pnode.host.connections import Way
from p2pnode.swarm.index import MAX_SKEW

_FULL: Final = 256 * MIB  # free bytes below which a checkpoint may not fit any more
_TIGHT: Final = 2 * GIB
_COPIES: Final = 3  # of what is there, that a round of checkpoints may need for a while
_SLOW_LOOKUP: Final = 10.0  # seconds
_SHORT: Final = 256 * MIB  # of memory, below which the system may end programs
_BUSY: Final = 2.0  # tasks for each core, from which on calls wait


def diagnose(facts: Facts) -> list[Finding]:
    """Judge a node; the most serious findings come first, otherwise in the order of looking."""
    found = [
        *_peers(facts),
        _reachability(facts),
        *map(_nat, facts.nats),
        *_portmap(facts.portmap),
        *_relays(facts.relays),
        _dht(facts.dht),
        _clock(facts.clock),
        _disk(facts.disk),
        _device(facts.device),
    ]
    return sorted(found, key=lambda each: -each.level)


def _peers(facts: Facts) -> Iterator[Finding]:
    if facts.ways:
        yield Finding(
            level=Level.GOOD,
            subject="peers",
            says=f"Connected to {_by_way(facts.ways)}.",
        )
    elif facts.bootstrap:
        yield Finding(
            level=Level.PROBLEM,
            subject="peers",
            says="No peer is connected, although this node was given addresses to join by.",
            advice="Check that this machine is online, and that one of these runs: "
            + ", ".join(facts.bootstrap),
        )
    else:
        yield Finding(
            level=Level.WARNING,
            subject="peers",
            says="No peer is connected: this node was given no address to join by.",
            advice="Give it one: `node join --bootstrap ADDRESS`, or give its own to others: "
            + ", ".join(facts.told),
        )


def _by_way(ways: Iterable[WayFacts]) -> str:
    """Count peers; of one with several connections the best counts, as it is used."""
    order = list(Way)
    best: dict[str, Way] = {}
    for each in ways:
        best[each.peer_id] = min(best.get(each.peer_id, each.way), each.way, key=order.index)
    counts = Counter(best.values())
    total = _count(len(best), "peer")
    if set(counts) == {Way.DIRECT}:
        return total
    return f"{total}: " + ", ".join(f"{number} {way}" for way, number in counts.most_common())


def _reachability(facts: Facts) -> Finding:
    found, relays = facts.reachability, facts.relays
    word = " (the settings say so)" if found.is_forced else ""
    if found.state is Reachability.PUBLIC:
        networks = f", as {_count(found.reached, 'network')} have" if found.reached else ""
        return Finding(
            level=Level.GOOD,
            subject="reachability",
            says=f"Others can dial this node{networks}{word}.",
        )
    if found.state is Reachability.UNKNOWN:
        asked = (
            f"{_count(found.servers, 'peer')} can be asked, and what they say settles nothing yet"
            if found.servers
            else "no peer with a public address can be asked"
        )
        return Finding(
            level=Level.NOTE,
            subject="reachability",
            says=f"It is not known whether others can dial this node: {asked}.",
        )
    served = relays.held > relays.limited
    hidden = any(each.mapping.is_dependent for each in facts.nats)  # few holes lead there
    says = f"Others cannot dial this node{word}"
    says += f"; {_count(found.failed, 'network')} tried in vain." if found.failed else "."
    if relays.held:
        says += f" They reach it through {_count(relays.held, 'relay')}"
        says += "." if served else ", which carry too little for training unless a hole is punched."
    return Finding(
        level=Level.NOTE if relays.held and (served or not hidden) else Level.WARNING,
        subject="reachability",
        says=says,
        advice=_how_to_be_reached(facts),
    )


def _how_to_be_reached(facts: Facts) -> str:
    ports = " and ".join(map(str, facts.ports)) or "the port of --listen"
    which = "port" if len(facts.ports) == 1 else "ports"
    return (
        f"Forward TCP {which} {ports} to this machine in the router's settings, or switch on UPnP"
        " or NAT-PMP there."
    )


def _nat(nat: NatFacts) -> Finding:
    subject, seen = f"NAT, {nat.family}", ", ".join(nat.seen)
    if nat.mapping.is_dependent:
        return Finding(
            level=Level.NOTE,
            subject=subject,
            says="The router shows this node at another port to each peer (a symmetric NAT), so"
            f" holes cannot be punched to it from behind another such router: {seen}.",
        )
    return Finding(
        level=Level.GOOD,
        subject=subject,
        says=f"The router shows this node to others as {seen}; its mapping is {nat.mapping.value}.",
    )


def _portmap(portmap: PortMappingFacts) -> Iterator[Finding]:
    if not portmap.is_on:
        return
    if portmap.mappings:
        says = f"The router lets others in, by {portmap.protocol}: {', '.join(portmap.mappings)}."
        yield Finding(level=Level.GOOD, subject="port mapping", says=says)
    elif portmap.failure:
        yield Finding(
            level=Level.NOTE, subject="port mapping", says=f"There is none: {portmap.failure}."
        )


def _relays(relays: RelayFacts) -> Iterator[Finding]:
    if relays.wanted <= relays.held:
        return
    yield Finding(
        level=Level.WARNING if not relays.held else Level.NOTE,
        subject="relays",
        says=f"{relays.held} of {_count(relays.wanted, 'reservation')} wanted are held;"
        f" {_count(relays.known, 'relay')} are known.",
        advice=""
        if relays.held
        else "Name one that you trust: `--set relay.relays=ADDRESS`; `node relay` runs one.",
    )


def _dht(dht: DhtFacts) -> Finding:
    where = f"{_count(dht.peers, 'peer')} in the table, {dht.mode} mode"
    if dht.error:
        return Finding(
            level=Level.PROBLEM if dht.peers else Level.NOTE,
            subject="DHT",
            says=f"A look-up failed ({where}): {dht.error}.",
            advice="Wait a minute and look again; if it stays so, restart the node."
            if dht.peers
            else "",
        )
    assert dht.lookup_seconds is not None  # there is one or the other
    slow = dht.lookup_seconds > _SLOW_LOOKUP
    return Finding(
        level=Level.WARNING if slow else Level.GOOD,
        subject="DHT",
        says=f"A look-up took {dht.lookup_seconds:.1f} s, and"
        f" {_count(dht.answered, 'peer')} answered ({where}).",
        advice="Many peers do not answer: look at this node's uplink." if slow else "",
    )


def _clock(clock: ClockFacts) -> Finding:
    if clock.offset is None:
        says = (
            f"The {clock.asked} peers that were asked do not agree on the time."
            if clock.asked > 1
            else "Too few peers tell the time to compare it."
        )
        return Finding(level=Level.NOTE, subject="clock", says=says)
    ahead, error = -clock.offset.seconds, clock.offset.error
    least = max(abs(ahead) - error, 0.0)
    which = "ahead" if ahead > 0 else "behind"
    if least <= MAX_SKEW / 2:
        return Finding(
            level=Level.GOOD,
            subject="clock",
            says=f"It agrees with {_count(clock.asked, 'peer')} to {abs(ahead) + error:.1f} s.",
        )
    return Finding(
        level=Level.PROBLEM if least > MAX_SKEW else Level.WARNING,
        subject="clock",
        says=f"It is {abs(ahead):.1f} s {which}, by the word of {_count(clock.asked, 'peer')}; from"
        f" {MAX_SKEW:g} s on, others do not see this node's experts, or it does not see theirs.",
        advice="Set the clock: switch on time synchronisation (`timedatectl set-ntp true`).",
    )


def _disk(disk: DiskFacts) -> Finding:
    free = f"{_size(disk.free)} free of {_size(disk.total)} at {disk.path}"
    if not disk.is_writable:
        return Finding(
            level=Level.PROBLEM,
            subject="disk",
            says=f"The data directory cannot be written ({free}).",
            advice=f"Check who owns {disk.path}, and that its file system is not read-only.",
        )
    needed = max(_FULL, _COPIES * disk.used_by_node)
    if disk.free < needed:
        return Finding(
            level=Level.PROBLEM if disk.free < _FULL else Level.WARNING,
            subject="disk",
            says=f"There is little room for checkpoints: {free};"
            f" {_size(disk.used_by_node)} are this node's.",
            advice="Free some space, or move the data directory (--data-dir).",
        )
    level = Level.NOTE if disk.free < _TIGHT else Level.GOOD
    return Finding(level=level, subject="disk", says=f"{free}.")


def _device(device: DeviceFacts) -> Finding:
    says = f"{_count(device.experts, 'expert')} on {device.name}; load {device.load:.1f} of"
    says += f" {_count(device.cores, 'core')}"
    if device.free_memory is not None:
        says += f", {_size(device.free_memory)} of memory free"
    short = device.free_memory is not None and device.free_memory < _SHORT
    busy = device.load > _BUSY * device.cores
    return Finding(
        level=Level.WARNING if short else Level.NOTE if busy else Level.GOOD,
        subject="device",
        says=f"{says}.",
        advice="Close other programs, or host fewer experts." if short else "",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
