"""Whether others can dial this node: what to ask whom next, and what the answers say. Pure.

Peers that serve AutoNAT dial us when asked to, and say how it went. Some of them err, some lie, so
their words are put to a vote, on each address and on each family (IPv4, IPv6) as a whole:

- A network (IPv4 /24, IPv6 /48) has one vote, its last word. The `window` newest votes count, for
  `verdict_ttl`. However many liars sit in one network, they are one voice.
- The verdict changes only when `confidence` more networks say so than deny it, or all there are if
  those are fewer. Between the two nothing changes: that is the hysteresis. So no minority of the
  networks in the window can turn a verdict around.
- A family is public if one of its addresses is. It is private if the votes on it say so; where no
  address of it is known, servers are asked to try the one that they see us at.
- The node is public if a family is, else private if a family is, else it is unknown.

```
            confidence more say "reached"              … say "not reached"
 unknown ─────────────────────────────────► public ──────────────────────────► private
    ▲  └──────────────────────────────────────────────────────────────────────►   │
    │        … say "not reached"              ◄─────────────────────────────── ───┘
    └── the votes have expired, or we have moved: no IP address is what it was
```

What is not settled is probed at once, by as many networks as it takes and as were not heard yet,
then after pauses that double. What is settled is probed every `refresh_interval`; one word against
the verdict is enough to ask others at once. A server that does not help is left alone for a while
that doubles.

Models: go-libp2p's autonat (a confidence that contradictions wear down) and its tracker of
addresses for autonatv2 (the window, the two levels of confidence, three hours of memory, refusals
that cost no vote). Both count answers; votes by network, as for observed addresses, are ours.
"""

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from multiaddr import Multiaddr

from p2pnode.config import ReachabilitySettings
from p2pnode.host.budgets.rates import plain_ip
from p2pnode.host.interfaces import Reachability
from p2pnode.host.ranking import is_relayed
from p2pnode.host.reachability.probe_servers import ProbeServer, ProbeServers
from p2pnode.host.reachability.votes import Finding, Network, Subject
from p2pnode.wire.addresses import IpAddress
from p2pnode.wire.peer_id import PeerId

FAMILIES: Final = (4, 6)


class Result(Enum):
    """What came of a probe."""

    REACHED = "reached"
    FAILED = "not reached"
    USELESS = "no answer"  # the server refused, left, or broke the rules: it says nothing about us


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One request to one server.

    Attributes:
        peer_id: whom to ask.
        network: whose word the answer is.
        family: 4 or 6.
        subject: the address that it is about, or None if about the family as a whole.
        addresses: what to ask for, the most important first.
    """

    peer_id: PeerId
    network: Network
    family: int
    subject: Multiaddr | None
    addresses: tuple[Multiaddr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A probe and what came of it, for people.

    Attributes:
        at: when the answer came, by trio's clock.
        peer_id: who was asked.
        network: its network.
        family: 4 or 6.
        addresses: what it was asked to dial, or the one that the answer is about.
        result: what came of it.
        text: more about that.
    """

    at: float
    peer_id: PeerId
    network: str
    family: int
    addresses: tuple[Multiaddr, ...]
    result: Result
    text: str


def is_probeable(address: Multiaddr, settings: ReachabilitySettings) -> bool:
    """Tell whether it can be found out, and matters, if others reach `address`."""
    ip = plain_ip(address)
    if ip is None or is_relayed(address) or ip.is_unspecified or ip.is_multicast:
        return False
    return ip.is_global or not settings.public_only


@dataclass(slots=True)
class _Family:
    whole: Subject
    state: Reachability = Reachability.UNKNOWN
    since: float = 0.0
    given: dict[Multiaddr, Subject] = field(default_factory=dict)
    found: dict[Multiaddr, Subject] = field(default_factory=dict)  # that servers have guessed
    places: frozenset[IpAddress] = frozenset()  # where we are, when last known


class ReachabilityTracker:
    """What is known about the ways to this node, and what to do to know more.

    Args:
        settings: intervals and thresholds.
        rng: chooses between servers that would do as well.

    Attributes:
        evidence: the last probes, the newest last.
        listening: the families in which anybody could reach us at all; others are not probed.
    """

    def __init__(self, settings: ReachabilitySettings, rng: random.Random) -> None:
        self.evidence: deque[Evidence] = deque(maxlen=settings.evidence_kept)
        self.listening: frozenset[int | None] = frozenset()
        self._settings = settings
        self._rng = rng
        self._families = {each: _Family(Subject(None, settings)) for each in FAMILIES}
        self._servers = ProbeServers(settings)
        self._settled_at = -math.inf  # no probes before our addresses have settled

    # --- inputs: where we are, whom we can ask ----------------------------------------------------

    def receive_addresses(self, addresses: Iterable[Multiaddr], now: float) -> None:
        """Take in where others may be able to dial us; those that cannot be probed are left out."""
        known = list(addresses)
        self.listening = frozenset(map(_version, known))
        probeable = [each for each in dict.fromkeys(known) if is_probeable(each, self._settings)]
        del probeable[self._settings.max_addresses :]
        changed = False
        for number, family in self._families.items():
            mine = [each for each in probeable if _version(each) == number]
            if mine == list(family.given):
                continue
            changed = True
            before = family.given | family.found
            family.given = {
                each: before.get(each) or Subject(each, self._settings) for each in mine
            }
            family.found = {
                each: one for each, one in family.found.items() if each not in family.given
            }
            family.whole.must_recheck = True
            self._review_places(number, now)
            self._judge(number, now)
        if changed:
            self._settled_at = now + self._settings.settle_delay

    def receive_server(
        self,
        peer_id: PeerId,
        ip: IpAddress,
        *,
        takes_others: bool,
        takes_none: bool,
        guesses: Sequence[Multiaddr],
        now: float,
    ) -> bool:
        """Note a connected peer that serves AutoNAT; returns whether that was news.

        Args:
            peer_id: who.
            ip: its address, on the connection to it.
            takes_others: whether it dials IP addresses that it does not see us at (version 2).
            takes_none: whether it dials us where it sees us when it is told no address.
            guesses: where we might be dialled, by what it sees of us.
            now: trio's clock.
        """
        if not len(self._servers):  # others will come, too
            self._settled_at = max(self._settled_at, now + self._settings.settle_delay)
        plausible = [
            each
            for each in guesses
            if _version(each) == ip.version and is_probeable(each, self._settings)
        ]
        is_news = self._servers.receive(
            peer_id, ip, takes_others=takes_others, takes_none=takes_none, guesses=plausible
        )
        if is_news:
            self._review_places(ip.version, now)
        return is_news

    def receive_disconnected(self, peer_id: PeerId) -> None:
        """Note that a peer sees us no more; it can still be asked, over a new connection."""
        self._servers.receive_disconnected(peer_id)

    def forget_server(self, peer_id: PeerId) -> None:
        """Ask a peer no more."""
        self._servers.forget(peer_id)

    def _review_places(self, number: int, now: float) -> None:
        """Check anew when we are at an IP address that is new; forget all if all are."""
        family = self._families[number]
        addresses = [*family.given]
        for server in self._servers.connected_by(number):
            addresses += server.guesses
        places = frozenset(ip for ip in map(plain_ip, addresses) if ip is not None)
        if not places:
            return
        if family.places and not places <= family.places:
            if family.places.isdisjoint(places):
                family.whole.clear(now)
                family.found.clear()
                self._judge(number, now)
            for subject in (family.whole, *family.given.values(), *family.found.values()):
                subject.must_recheck = True
            self._settled_at = max(self._settled_at, now + self._settings.settle_delay)
        family.places = places

    # --- inputs: answers --------------------------------------------------------------------------

    def receive_result(
        self,
        probe: Probe,
        result: Result,
        text: str,
        now: float,
        *,
        about: Sequence[Multiaddr] = (),
    ) -> None:
        """Take in what came of a probe.

        Args:
            probe: from `next_probes`.
            result: what came of it.
            text: more about that, for people.
            now: trio's clock.
            about: the addresses that were reached, or tried in vain, as far as the server says.
        """
        family = self._families[probe.family]
        for subject in (family.whole, *family.given.values(), *family.found.values()):
            if subject.address == probe.subject:
                subject.in_flight.pop(probe.peer_id, None)
                if probe.subject is not None and probe.subject not in about:
                    subject.pass_over(probe.network, now)
        self.evidence.append(
            Evidence(
                at=now,
                peer_id=probe.peer_id,
                network=str(probe.network),
                family=probe.family,
                addresses=tuple(about) or probe.addresses,
                result=result,
                text=text,
            )
        )
        self._servers.rest(probe.peer_id, now, helped=result is not Result.USELESS)
        if result is Result.USELESS:
            return
        reached = result is Result.REACHED
        for address in about:
            named = family.given.get(address) or family.found.get(address)
            if named is None and reached and self._is_plausible(probe, address):
                named = self._find(family, address)
            if named is not None:
                named.vote(probe.network, now, reached=reached)
        subjects = (*family.given.values(), *family.found.values())
        if reached or not any(each.said_yes(probe.network) for each in subjects):
            family.whole.vote(probe.network, now, reached=reached)
        self._judge(probe.family, now)

    def _is_plausible(self, probe: Probe, address: Multiaddr) -> bool:
        """Tell whether an address may be ours: a liar may name a victim's, for others to dial."""
        places = self._families[probe.family].places
        return address in probe.addresses or plain_ip(address) in places

    def _find(self, family: _Family, address: Multiaddr) -> Subject | None:
        """Take up an address that nobody but a server knew; None if there is no room for it."""
        if len(family.found) >= self._settings.max_addresses:
            return None
        subject = family.found[address] = Subject(address, self._settings)
        return subject

    def _judge(self, number: int, now: float) -> None:
        family = self._families[number]
        for subject in (family.whole, *family.given.values(), *family.found.values()):
            subject.expire(now)
            subject.judge(self._needed(number, subject), now)
        for address, subject in tuple(family.found.items()):
            if subject.state is Reachability.PRIVATE or not subject.counts[0]:
                del family.found[address]
        subjects = (*family.given.values(), *family.found.values())
        if any(each.state is Reachability.PUBLIC for each in subjects):
            state = Reachability.PUBLIC
        else:
            state = family.whole.state
        if state is not family.state:
            family.state, family.since = state, now

    def _needed(self, number: int, subject: Subject) -> int:
        """By how many networks one side must lead: all of them, if they are few."""
        heard = {each.network for each in self._able(number)} | set(subject.networks)
        return max(1, min(self._settings.confidence, len(heard)))

    # --- what to do next --------------------------------------------------------------------------

    def next_probe_at(self, now: float) -> float:
        """Return when `next_probes` has something to ask; infinity if only news can change that."""
        due = math.inf
        busy = self._busy()
        for number, subject in self._subjects():
            settled = self._is_settled(number, subject)
            if self._has_room(subject, settled=settled):
                for server in self._able(number):
                    if server.peer_id not in busy:
                        due = min(due, self._due(subject, server, now, settled=settled))
        return max(due, self._settled_at)

    def next_probes(self, now: float) -> list[Probe]:
        """Return what to ask now; each must be answered by `receive_result`."""
        if now < self._settled_at:
            return []
        for number in FAMILIES:
            self._judge(number, now)
        probes: list[Probe] = []
        for number, subject in sorted(self._subjects(), key=lambda each: self._urgency(*each)):
            settled = self._is_settled(number, subject)
            heard = False
            while self._has_room(subject, settled=settled):
                server = self._choose(number, subject, now, settled=settled)
                if server is None:
                    break
                heard = heard or subject.asked_at(server.network) > -math.inf
                probes.append(self._probe(number, subject, server))
            if heard:
                subject.pause = min(2 * subject.pause, self._settings.refresh_interval)
        return probes

    def _subjects(self) -> list[tuple[int, Subject]]:
        """What there is to find out."""
        found: list[tuple[int, Subject]] = []
        for number, family in self._families.items():
            addresses = [*family.given.values(), *family.found.values()]
            if number in self.listening:
                found += [(number, each) for each in addresses or [family.whole]]
        return found

    def _urgency(self, number: int, subject: Subject) -> tuple[bool, int]:
        return self._is_settled(number, subject), sum(subject.counts)

    def _is_settled(self, number: int, subject: Subject) -> bool:
        return subject.is_settled(self._needed(number, subject))

    def _has_room(self, subject: Subject, *, settled: bool) -> bool:
        return len(subject.in_flight) < (1 if settled else self._settings.probes_at_once)

    def _busy(self) -> set[PeerId]:
        """The servers that are being asked."""
        return {peer_id for _, subject in self._subjects() for peer_id in subject.in_flight}

    def _able(self, number: int) -> list[ProbeServer]:
        """The servers that can try addresses of a family, those that are connected by it first."""
        same = self._servers.connected_by(number)
        if same or not self._families[number].given:
            return same
        return self._servers.that_take_others()

    def _due(self, subject: Subject, server: ProbeServer, now: float, *, settled: bool) -> float:
        """Return when a server that is not busy may be asked about something."""
        if server.network in subject.in_flight.values():
            return math.inf
        if subject.address is None and not server.guesses and not server.takes_none:
            return math.inf
        if settled:
            again = subject.checked_at + self._settings.refresh_interval
        else:
            again = subject.asked_at(server.network) + subject.pause
        return max(again, server.free_at, now)

    def _choose(
        self, number: int, subject: Subject, now: float, *, settled: bool
    ) -> ProbeServer | None:
        busy = self._busy()
        able = [
            each
            for each in self._able(number)
            if each.peer_id not in busy and self._due(subject, each, now, settled=settled) <= now
        ]
        if not able:
            return None
        heard_first = min(subject.asked_at(each.network) for each in able)
        return self._rng.choice(
            [each for each in able if subject.asked_at(each.network) == heard_first]
        )

    def _probe(self, number: int, subject: Subject, server: ProbeServer) -> Probe:
        subject.in_flight[server.peer_id] = server.network
        if subject.address is None:
            addresses = server.guesses
        else:
            family = self._families[number]
            others = [each for each in (*family.given, *family.found) if each != subject.address]
            addresses = (subject.address, *others)
        return Probe(
            peer_id=server.peer_id,
            network=server.network,
            family=number,
            subject=subject.address,
            addresses=addresses,
        )

    # --- what is known ----------------------------------------------------------------------------

    @property
    def state(self) -> Reachability:
        """The verdict on the node as a whole."""
        states = [family.state for family in self._families.values()]
        for state in (Reachability.PUBLIC, Reachability.PRIVATE):
            if state in states:
                return state
        return Reachability.UNKNOWN

    def state_of(self, family: int) -> Reachability:
        """The verdict on IPv4 or IPv6."""
        return self._families[family].state

    def finding_of(self, family: int) -> Finding:
        """What is known of IPv4 or IPv6 as a whole."""
        one = self._families[family]
        yes, no = one.whole.counts
        return Finding(state=one.state, reached=yes, failed=no, since=one.since)

    def findings(self) -> dict[Multiaddr, Finding]:
        """What is known of each address."""
        return {
            address: subject.finding()
            for family in self._families.values()
            for address, subject in (*family.given.items(), *family.found.items())
        }

    def addresses_that_are(self, state: Reachability) -> list[Multiaddr]:
        """Return the addresses with this verdict."""
        return [each for each, finding in self.findings().items() if finding.state is state]

    @property
    def servers(self) -> int:
        """How many peers can be asked."""
        return len(self._servers)


def _version(address: Multiaddr) -> int | None:
    ip = plain_ip(address)
    return None if ip is None else ip.version
