"""What follows from the facts about a node, in the words of somebody who explains it. Pure."""

from collections.abc import Iterator
from typing import Final

from p2pnode.config.units import GIB, MIB
from p2pnode.daemon.doctor.facts import ClockFacts, DhtFacts, DiskFacts, Facts
from p2pnode.daemon.doctor.findings import Finding, Level
from p2pnode.swarm.index import MAX_SKEW

_FULL: Final = 256 * MIB  # free bytes below which a checkpoint may not fit any more
_TIGHT: Final = 2 * GIB
_COPIES: Final = 3  # of what is there, that a round of checkpoints may need for a while
_SLOW_LOOKUP: Final = 10.0  # seconds


def diagnose(facts: Facts) -> list[Finding]:
    """Judge a node; the most serious findings come first, otherwise in the order of looking."""
    found = [*_peers(facts), _dht(facts.dht), _clock(facts.clock), _disk(facts.disk)]
    return sorted(found, key=lambda each: -each.level)


def _peers(facts: Facts) -> Iterator[Finding]:
    if facts.connections:
        yield Finding(
            level=Level.GOOD,
            subject="peers",
            says=f"Connected to {_count(facts.connections, 'peer')}.",
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
        says=f"A look-up took {dht.lookup_seconds:.1f} s, and {_count(dht.answered, 'peer')} answered"
        f" ({where}).",
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
