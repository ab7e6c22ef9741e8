import dataclasses

import pytest

from p2pnode.config.units import GIB, MIB
from p2pnode.daemon.doctor.diagnosis import diagnose
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
from p2pnode.daemon.doctor.findings import Finding, Level, worst
from p2pnode.host import Reachability
from p2pnode.host.connections import Way
from p2pnode.host.reachability.nat_behaviour import Mapping
from p2pnode.protocols.clock.core import Offset

HEALTHY = Facts(
    bootstrap=("/ip4/192.0.2.1/tcp/4001/p2p/12D3",),
    listening=("/ip4/10.0.0.2/tcp/4001",),
    told=("/ip4/203.0.113.7/tcp/4001/p2p/12D3",),
    ports=(4001,),
    reachability=ReachabilityFacts(state=Reachability.PUBLIC, servers=5, reached=4),
    ways=tuple(
        WayFacts(peer_id=f"12D3{number}", way=Way.DIRECT, note="", age=9.0) for number in range(12)
    ),
    clock=ClockFacts(asked=5, offset=Offset(0.02, 0.05)),
    dht=DhtFacts(mode="server", peers=90, lookup_seconds=0.8, answered=20),
    disk=DiskFacts(
        path="/data", free=90 * GIB, total=200 * GIB, used_by_node=MIB, is_writable=True
    ),
)


def _but(**changes):
    return dataclasses.replace(HEALTHY, **changes)


def _disk(**changes):
    return _but(disk=dataclasses.replace(HEALTHY.disk, **changes))


def _device(**facts):
    return _but(device=DeviceFacts(**facts))


def _private(**changes):
    return _but(
        reachability=ReachabilityFacts(state=Reachability.PRIVATE, servers=5, failed=4), **changes
    )


def _nat(mapping):
    seen = {"203.0.113.7 port 4001": 3, "203.0.113.7 port 999": 1}
    return _but(nats=(NatFacts(family="IPv4 tcp", mapping=mapping, seen=seen),))


def _clock(seconds, error=0.1, asked=5):
    return _but(clock=ClockFacts(asked=asked, offset=Offset(seconds, error)))


def test_a_healthy_node_needs_nothing():
    findings = diagnose(HEALTHY)
    assert worst(findings) is Level.GOOD
    assert not any(each.advice for each in findings)
    assert worst([]) is Level.GOOD


@pytest.mark.parametrize(
    ("facts", "level", "subject", "words"),
    [
        (_but(ways=()), Level.PROBLEM, "peers", "192.0.2.1"),
        (_but(ways=(), bootstrap=()), Level.WARNING, "peers", "203.0.113.7"),
        (
            _but(dht=DhtFacts(mode="client", peers=3, error="none answers")),
            Level.PROBLEM,
            "DHT",
            "none answers",
        ),
        (_but(dht=DhtFacts(mode="client", peers=0, error="alone")), Level.NOTE, "DHT", "alone"),
        (
            _but(dht=DhtFacts(mode="server", peers=9, lookup_seconds=25.0, answered=2)),
            Level.WARNING,
            "DHT",
            "2 peers answered",
        ),
        (_private(), Level.WARNING, "reachability", "Forward TCP port 4001"),
        (
            _private(
                relays=RelayFacts(wanted=2, held=2, limited=2, known=4),
                nats=_nat(Mapping.DEPENDENT).nats,
            ),
            Level.WARNING,
            "reachability",
            "too little for training",
        ),
        (_but(reachability=ReachabilityFacts()), Level.NOTE, "reachability", "no peer"),
        (
            _but(reachability=ReachabilityFacts(servers=2)),
            Level.NOTE,
            "reachability",
            "2 peers can be asked",
        ),
        (_nat(Mapping.DEPENDENT), Level.NOTE, "NAT, IPv4 tcp", "port 4001, 203.0.113.7 port 999"),
        (_nat(Mapping.ENDPOINT_INDEPENDENT), Level.GOOD, "NAT, IPv4 tcp", "endpoint-independent"),
        (
            _but(portmap=PortMappingFacts(is_on=True, failure="the router does not answer")),
            Level.NOTE,
            "port mapping",
            "does not answer",
        ),
        (
            _but(portmap=PortMappingFacts(is_on=True, protocol="PCP", mappings=("tcp port 4001",))),
            Level.GOOD,
            "port mapping",
            "by PCP: tcp port 4001",
        ),
        (
            _but(relays=RelayFacts(wanted=2, known=1)),
            Level.WARNING,
            "relays",
            "0 of 2 reservations",
        ),
        (_but(relays=RelayFacts(wanted=2, held=1, known=1)), Level.NOTE, "relays", "1 of 2"),
        (_clock(4.0), Level.PROBLEM, "clock", "4.0 s behind"),
        (_clock(-4.0), Level.PROBLEM, "clock", "4.0 s ahead"),
        (_clock(2.0), Level.WARNING, "clock", "2.0 s behind"),
        (_clock(4.0, error=3.9), Level.GOOD, "clock", "agrees"),  # the network is that slow
        (_but(clock=ClockFacts(asked=4)), Level.NOTE, "clock", "do not agree"),
        (_but(clock=ClockFacts()), Level.NOTE, "clock", "Too few"),
        (_disk(is_writable=False), Level.PROBLEM, "disk", "cannot be written"),
        (_disk(free=10 * MIB), Level.PROBLEM, "disk", "10 MiB free"),
        (_disk(used_by_node=40 * GIB), Level.WARNING, "disk", "40.0 GiB are this node's"),
        (_disk(free=GIB), Level.NOTE, "disk", "1.0 GiB free"),
        (_device(free_memory=99 * MIB), Level.WARNING, "device", "99 MiB of memory free"),
        (_device(cores=2, load=5.0), Level.NOTE, "device", "load 5.0 of 2 cores"),
        (_device(name="cuda:0", experts=3), Level.GOOD, "device", "3 experts on cuda:0"),
    ],
)
def test_what_is_wrong_is_said_first_and_with_advice(facts, level, subject, words):
    findings = diagnose(facts)
    finding = findings[0] if level > Level.GOOD else _about(subject, findings)
    assert (finding.level, finding.subject) == (level, subject)
    assert words in finding.says + finding.advice
    assert bool(finding.advice) == (level >= Level.WARNING)


def _about(subject, findings) -> Finding:
    return next(each for each in findings if each.subject == subject)


def test_one_peer_is_no_peers():
    assert _about("peers", diagnose(_but(ways=HEALTHY.ways[:1]))).says == "Connected to 1 peer."


def test_peers_are_counted_by_the_way_they_are_connected():
    later = [WayFacts(peer_id="12D4", way=way, note="", age=1.0) for way in reversed(Way)][:-1]
    ways = (*HEALTHY.ways[:2], *later)  # what was relayed at first, and then punched
    found = _about("peers", diagnose(_but(ways=ways)))
    assert found.says == "Connected to 3 peers: 2 direct, 1 punched."


@pytest.mark.parametrize(("limited", "words"), [(1, "too little"), (0, "through 1 relay.")])
def test_who_is_reached_through_a_relay_is_told_what_it_carries(limited, words):
    found = diagnose(_private(relays=RelayFacts(wanted=1, held=1, limited=limited, known=3)))
    finding = _about("reachability", found)
    assert finding.level is Level.NOTE
    assert words in finding.says
    assert "Forward TCP port 4001" in finding.advice
