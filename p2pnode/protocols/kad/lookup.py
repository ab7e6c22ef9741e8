"""One iterative look-up: whom to ask next, and when it is over.

Source: libp2p/specs, kad-dht, "Peer routing": ask the alpha closest known peers that were not
asked yet, learn closer ones from their answers, and end when the k closest known have answered.

| state of a peer | becomes  | when                                               |
|-----------------|----------|----------------------------------------------------|
| known           | asked    | it is among those wanted                           |
| asked           | answered | its answer came, however late                      |
| asked           | failed   | its request failed; it no longer counts among the k |

A request that takes longer than `patience` is slow. A slow request frees its slot, so that a few
silent peers cannot stop a look-up. And when beta of the closest have answered (half of them, where
few are known) and everybody else among them is slow, the look-up ends without them. `patience`
grows with the slowest answer seen, so that on slow links everybody is still waited for.

Against peers that lie, four rules:

- The look-up follows several paths (Baumgart and Mies, S/Kademlia, 2007). A peer belongs to the
  path that first named it and is asked on that path alone; each path has its share of the slots,
  and goes on until the closest peers it knows itself have answered. So whom a liar names may
  mislead its own path, and no other.
- What one peer says of another's place keeps nobody else from telling: addresses from several add
  up, and who failed at some is asked again at others, a few times.
- Of those that one peer named only few are asked until some have answered. Where few do answer,
  it is not believed: the rest of what it named comes last.
- Of one network, no more than `max_per_group` are counted among the k closest while others are to
  be had.
"""

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.messages import MAX_ADDRESSES, Contact
from p2pnode.wire.peer_id import PeerId

MAX_CANDIDATES: Final = 512  # remembered per look-up: the closest; liars cannot make it grow
_SLOWNESS: Final = 4.0  # a request is slow after so many times the slowest answer, at least
_SCOUTS: Final = 2  # peers that each path asks, even when other paths know k that are closer
_CREDIT: Final = 5  # requests under way to those that one peer named, before any has answered
_PLACES: Final = 3  # times that a peer is asked, at other addresses each time
_ADDRESSES: Final = 3 * MAX_ADDRESSES  # kept of one peer; fresh ones come first
_DOUBT: Final = 3  # unanswered requests to those a peer named, from which on it may be doubted

Named = tuple[Contact, bytes | None]  # a peer, and the network that it counts for


class _State(Enum):
    KNOWN = auto()
    ASKED = auto()
    ANSWERED = auto()
    FAILED = auto()


@dataclass(slots=True, eq=False)
class _Candidate:
    contact: Contact
    distance: int
    group: bytes | None
    informer: "_Candidate | None"  # who named it; None for a seed
    path: int
    hop: int
    state: _State = _State.KNOWN
    since: float = 0.0  # when it was asked
    is_slow: bool = False
    good: int = 0  # of those it named: how many answered,
    bad: int = 0  # and how many failed or are slow
    open: int = 0  # and how many are asked
    places: int = 1  # how often it was asked, at other addresses each time
    has_moved: bool = False  # there are addresses that the request under way does not know


class Lookup:
    """The state of one look-up of the point `target`.

    `next_queries` says whom to ask, `receive_answer` and `receive_failure` tell what came of it,
    and `is_finished` whether to stop; when nothing happens, look again at `next_deadline`.

    Args:
        target: a point.
        seeds: whom to begin with, the closest first, each with its network if that counts.
        k: how many closest to find.
        alpha: requests under way at once.
        beta: answers without which slow peers are waited for.
        patience: seconds after which a request is slow, at first.
        paths: how many disjoint ones.
        max_per_group: peers of one network among the k closest.
    """

    def __init__(
        self,
        target: int,
        seeds: Iterable[Named],
        *,
        k: int,
        alpha: int,
        beta: int,
        patience: float,
        paths: int = 1,
        max_per_group: int = 2**31,
    ) -> None:
        self._target = target
        self._k = k
        self._alpha = alpha
        self._beta = beta
        self._patience = patience
        self._paths = max(1, min(paths, alpha))
        self._max_per_group = max_per_group
        self._order: list[tuple[int, _Candidate]] = []  # every candidate by its distance, sorted
        self._known: dict[PeerId, _Candidate] = {}
        self._asked: dict[PeerId, _Candidate] = {}  # in flight
        self._wanted: tuple[list[_Candidate], list[_Candidate]] | None = None
        self._turn = 0  # the path that chooses next
        self._slow_at = float("inf")  # no request becomes slow before
        self.answered = 0  # how many peers answered so far
        self.asked = 0  # how many were asked
        for number, (contact, group) in enumerate(seeds):
            self._learn(contact, group, None, number % self._paths, 0)

    def contact_of(self, peer: PeerId) -> Contact:
        """Return what is known of a peer that the look-up names."""
        return self._known[peer].contact

    def unknown(self, contacts: Iterable[Contact]) -> list[Contact]:
        """Choose those that the look-up has not met, or has only from one it doubts."""
        known = self._known
        return [
            contact
            for contact in contacts
            if (met := known.get(contact.peer_id)) is None
            or (met.state is _State.KNOWN and _doubts(met.informer))
            or (contact is not met.contact and _is_elsewhere(met, contact))
        ]

    def next_queries(self, now: float, most: float = math.inf) -> list[PeerId]:
        """Name the peers to ask now; they count as asked.

        Args:
            now: the time.
            most: how many may be under way, if less than alpha.
        """
        self._notice_slow(now)
        busy = [0] * self._paths
        for each in self._asked.values():
            busy[each.path] += not each.is_slow
        slots = int(min(self._alpha, most)) - sum(busy)
        if slots <= 0:
            return []
        frontier, scouts = self._want()
        idle = [each for each in (*frontier, *scouts) if each.state is _State.KNOWN]
        chosen = self._share(idle, slots, busy, now)
        if chosen:
            self._slow_at = min(self._slow_at, now + self._patience)
            self.asked += len(chosen)
        return [each.contact.peer_id for each in chosen]

    def receive_answer(
        self,
        peer: PeerId,
        closer: Iterable[Named],
        now: float,
        group: bytes | None = None,
    ) -> None:
        """Take an answer.

        Args:
            peer: who answered.
            closer: the peers that it says are closer, each with its network.
            now: trio's clock.
            group: the network where the peer was reached, if that counts; whoever named it may
                have told another one.
        """
        candidate = self._known[peer]
        candidate.group = group or candidate.group
        self._close(candidate)
        self._patience = max(self._patience, _SLOWNESS * (now - candidate.since))
        if candidate.informer is not None:
            candidate.informer.good += 1
            if candidate.is_slow or candidate.state is _State.FAILED:
                candidate.informer.bad -= 1
        self.answered += candidate.state is not _State.ANSWERED
        candidate.state, candidate.is_slow = _State.ANSWERED, False
        for contact, said in closer:
            self._learn(contact, said, candidate, candidate.path, candidate.hop + 1)
        self._wanted = None

    def receive_failure(self, peer: PeerId) -> None:
        """Leave `peer` out of the rest of the look-up."""
        candidate = self._known[peer]
        self._close(candidate)
        if candidate.informer is not None and not candidate.is_slow:
            candidate.informer.bad += 1
        candidate.state, candidate.is_slow = _State.FAILED, False
        if candidate.has_moved:
            self._revive(candidate)
        self._wanted = None

    def is_finished(self, now: float) -> bool:
        """Tell whether the closest peers have answered, or nobody is left to wait for."""
        self._notice_slow(now)
        frontier, scouts = self._want()
        done = waiting = 0
        for each in frontier:
            if each.state is _State.ANSWERED:
                done += 1
            elif each.is_slow:
                waiting += 1
            else:
                return False
        for each in scouts:
            if each.state is not _State.ANSWERED and not each.is_slow:
                return False
        return not waiting or done >= min(self._beta, (len(frontier) + 1) // 2)

    def next_deadline(self, now: float) -> float:
        """Return when the next request under way becomes slow; infinity when none will."""
        due = (each.since + self._patience for each in self._asked.values() if not each.is_slow)
        return min((when for when in due if when > now), default=float("inf"))

    @property
    def closest(self) -> list[PeerId]:
        """The k closest peers that answered, the closest first."""
        chosen: list[_Candidate] = []
        rest: list[_Candidate] = []
        groups: dict[bytes, int] = {}
        for _, each in self._order:
            if each.state is _State.ANSWERED:
                (rest if self._is_crowded(each, groups) else chosen).append(each)
                if len(chosen) == self._k:
                    break
        chosen = sorted((*chosen, *rest[: self._k - len(chosen)]), key=_distance)
        return [each.contact.peer_id for each in chosen]

    @property
    def hops(self) -> int:
        """How many steps led to the closest peer that answered: 1 for one that was known before."""
        closest = self.closest
        return self._known[closest[0]].hop + 1 if closest else 0

    def lacking(self, has: Iterable[PeerId]) -> PeerId | None:
        """Name the closest peer that answered and is not among `has`."""
        having = set(has)
        answered = (each for _, each in self._order if each.state is _State.ANSWERED)
        peers = (each.contact.peer_id for each in answered)
        return next((peer for peer in peers if peer not in having), None)

    def is_among_closest(self, peer: PeerId) -> bool:
        """Tell whether a peer is one of the k closest known, answered or not."""
        return self._known[peer] in self._want()[0]

    def _close(self, candidate: _Candidate) -> None:
        """Note that a request has come to its end."""
        asked = self._asked.pop(candidate.contact.peer_id, None)
        if asked is not None and candidate.informer is not None:
            candidate.informer.open -= 1

    # --- whom to ask ----------------------------------------------------------------------------

    def _share(
        self, idle: list[_Candidate], slots: int, busy: list[int], now: float
    ) -> list[_Candidate]:
        """Give out free slots: to each path its share, the closest first, then what is left."""
        chosen: list[_Candidate] = []
        if self._paths > 1 and len(idle) > slots:
            share = -(-self._alpha // self._paths)
            for turn in range(self._paths):
                path = (self._turn + turn) % self._paths
                own = [each for each in idle if each.path == path]
                chosen += self._take(own, min(share - busy[path], slots - len(chosen)), now)
            self._turn = (self._turn + 1) % self._paths
        chosen += self._take(idle, slots - len(chosen), now)
        return sorted(chosen, key=_distance)

    def _take(self, idle: list[_Candidate], count: int, now: float) -> list[_Candidate]:
        """Mark up to `count` as asked; of those that one peer named only few, until some answer."""
        chosen: list[_Candidate] = []
        for each in idle:
            if len(chosen) >= count:
                break
            informer = each.informer
            if each.state is not _State.KNOWN:
                continue
            if informer is not None:
                if informer.open >= _CREDIT + 2 * informer.good:
                    continue
                informer.open += 1
            each.state, each.since = _State.ASKED, now
            self._asked[each.contact.peer_id] = each
            chosen.append(each)
        return chosen

    def _want(self) -> tuple[list[_Candidate], list[_Candidate]]:
        """Return the k closest that may still count, and those that each path asks besides."""
        if self._wanted is None:
            frontier: list[_Candidate] = []
            rest: list[_Candidate] = []  # too many of one network, or named by who is doubted
            scouts: list[_Candidate] = []
            groups: dict[bytes, int] = {}
            alone = self._paths == 1
            missing = [_SCOUTS] * self._paths
            k, failed, unasked = self._k, _State.FAILED, _State.KNOWN
            for _, each in self._order:
                state = each.state
                if state is failed:
                    continue
                if (state is unasked or each.is_slow) and _doubts(each.informer):
                    rest.append(each)
                    continue
                if len(frontier) < k:
                    if self._is_crowded(each, groups):
                        rest.append(each)
                        continue
                    frontier.append(each)
                    missing[each.path] -= 1
                    continue
                if alone or max(missing) <= 0:
                    break
                if missing[each.path] > 0:
                    missing[each.path] -= 1
                    scouts.append(each)
            if len(frontier) < self._k and rest:
                frontier += rest[: self._k - len(frontier)]
                frontier.sort(key=_distance)
            self._wanted = frontier, scouts
        return self._wanted

    def _is_crowded(self, candidate: _Candidate, groups: dict[bytes, int]) -> bool:
        """Count a peer for its network; tell whether that has too many already."""
        if candidate.group is None:
            return False
        count = groups.get(candidate.group, 0)
        groups[candidate.group] = count + 1
        return count >= self._max_per_group

    def _notice_slow(self, now: float) -> None:
        if now < self._slow_at:
            return
        for each in self._asked.values():
            if not each.is_slow and now >= each.since + self._patience:
                each.is_slow = True
                if each.informer is not None:
                    each.informer.bad += 1
                self._wanted = None
        self._slow_at = self.next_deadline(now)

    def _learn(
        self,
        contact: Contact,
        group: bytes | None,
        informer: _Candidate | None,
        path: int,
        hop: int,
    ) -> None:
        peer = contact.peer_id
        known = self._known.get(peer)
        if known is not None:
            if known.state is _State.KNOWN and _doubts(known.informer) and not _doubts(informer):
                known.informer = informer  # now somebody else vouches for it
            if _is_elsewhere(known, contact):
                self._move(known, contact)
            return
        distance = point(peer) ^ self._target
        if len(self._order) == MAX_CANDIDATES and (
            distance > self._order[-1][0] or not self._make_room()
        ):
            return
        candidate = _Candidate(contact, distance, group, informer, path, hop)
        self._known[peer] = candidate
        bisect.insort(self._order, (distance, candidate))  # no two distances are alike

    def _move(self, known: _Candidate, contact: Contact) -> None:
        """Take in that somebody else knows a peer at other addresses."""
        had = known.contact.addresses
        fresh = tuple(each for each in contact.addresses if each not in had)
        known.contact = Contact(contact.peer_id, (*fresh, *had)[:_ADDRESSES])
        known.has_moved = known.state is _State.ASKED
        if known.state is _State.FAILED:
            self._revive(known)

    def _revive(self, candidate: _Candidate) -> None:
        candidate.state, candidate.has_moved = _State.KNOWN, False
        candidate.places += 1
        if candidate.informer is not None:
            candidate.informer.bad -= 1

    def _make_room(self) -> bool:
        """Forget the farthest peer that was not asked."""
        for number in range(len(self._order) - 1, -1, -1):
            candidate = self._order[number][1]
            if candidate.state is _State.KNOWN:
                del self._order[number]
                del self._known[candidate.contact.peer_id]
                return True
        return False


def _distance(candidate: _Candidate) -> int:
    return candidate.distance


def _doubts(informer: _Candidate | None) -> bool:
    if informer is None or informer.bad < _DOUBT:
        return False
    return informer.bad > 2 * informer.good


def _is_elsewhere(known: _Candidate, contact: Contact) -> bool:
    """Tell whether `contact` has addresses for a peer that was not reached yet."""
    if known.state is _State.ANSWERED:
        return False
    if known.state is not _State.KNOWN and known.places >= _PLACES:
        return False
    had = known.contact.addresses
    # Those of a seed are the host's own knowledge, which stands above what others say.
    return contact.addresses != had and not set(contact.addresses).issubset(had)
