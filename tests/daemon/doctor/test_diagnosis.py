import dataclasses

import pytest

from p2pnode.config.units import GIB, MIB
from p2pnode.daemon.doctor.diagnosis import diagnose
from p2pnode.daemon.doctor.facts import ClockFacts, DhtFacts, DiskFacts, Facts
from p2pnode.daemon.doctor.findings import Finding, Level, worst
from p2pnode.protocols.clock.core import Offset

HEALTHY = Facts(
    bootstrap=("/ip4/192.0.2.1/tcp/4001/p2p/12D3",),
    listening=("/ip4/10.0.0.2/tcp/4001",),
    told=("/ip4/203.0.113.7/tcp/4001/p2p/12D3",),
    connections=12,
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
        (_but(connections=0), Level.PROBLEM, "peers", "192.0.2.1"),
        (_but(connections=0, bootstrap=()), Level.WARNING, "peers", "203.0.113.7"),
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
    ],
)
def test_what_is_wrong_is_said_first_and_with_advice(facts, level, subject, words):
    finding = diagnose(facts)[0] if level > Level.GOOD else _about(subject, diagnose(facts))
    assert (finding.level, finding.subject) == (level, subject)
    assert words in finding.says + finding.advice
    assert bool(finding.advice) == (level >= Level.WARNING)


def _about(subject, findings) -> Finding:
    return next(each for each in findings if each.subject == subject)


def test_one_peer_is_no_peers():
    (finding,) = [each for each in diagnose(_but(connections=1)) if each.subject == "peers"]
    assert finding.says == "Connected to 1 peer."
