"""What this node has found other peers to have done, and what follows from it; pure.

Each offence costs points, which halve with time. A peer with any is left alone for a while that
doubles at each further offence; one with too many is on the blacklist until enough of them have
faded: neither heard nor asked. All of it is this node's own experience. It is never told to
others, since who could be accused by others could be shut out by liars.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from p2pnode.config.gossip import GossipSettings
from p2pnode.events import Event
from p2pnode.host import PeerMisbehaved
from p2pnode.protocols.kad.bans import Bans
from p2pnode.wire.peer_id import PeerId

MAX_REASON_CHARS: Final = 500  # of an offence, that are kept over a restart
_FORGOTTEN: Final = 0.01  # points, which are shown no more
_FADED: Final = 1.0  # points, that do not make the next back-off longer


class Offence(StrEnum):
    """What a peer can be found to have done."""

    FALSE_SCORE = "false score"  # it announced a score that its weights do not reach
    BAD_WEIGHTS = "bad weights"  # its weights are not finite, or not of the layer
    WRONG_CHUNK = "wrong chunk"  # it gave bytes that are not what their hash says
    BROKEN_PROMISE = "broken promise"  # the weights it announced were not to be had from it
    FLOOD = "flood"  # it announced more than its share


@dataclass(frozen=True, slots=True, kw_only=True)
class OffenceSeen(PeerMisbehaved):
    """A part of the node has seen an offence; whoever keeps the node's reputation notes it.

    It must be certain that it was no other peer.
    """

    offence: Offence


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBlacklisted(Event):
    """A peer has done too much; it is neither heard nor asked until that has faded."""

    level = "warning"

    peer_id: PeerId
    offences: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What there is against one peer, now.

    Attributes:
        peer_id: the peer.
        points: what its offences count, after some have faded.
        offences: how often it did what, as long as this node has not forgotten it.
        last_reason: of the last offence.
        back_off: for how many seconds it is left alone yet; 0 if it is not.
        is_blacklisted: whether it is neither heard nor asked.
    """

    peer_id: PeerId
    points: float
    offences: dict[str, int]
    last_reason: str
    back_off: float
    is_blacklisted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What there is against one peer, to be kept over a restart; times are on the wall clock.

    Attributes:
        peer_id: the peer.
        points: what its offences counted.
        noted: at that time, in seconds since the epoch.
        offences: how often it did what.
        reason: of the last offence.
        back_off: for how long it was left alone the last time, in seconds; 0 if never.
        until: until when that is, or was.
    """

    peer_id: PeerId
    points: float
    noted: float
    offences: Mapping[str, int]
    reason: str
    back_off: float
    until: float


@dataclass(slots=True)
class _Record:
    points: float = 0.0  # at `noted_at`
    noted_at: float = 0.0
    offences: Counter[str] = field(default_factory=Counter)
    last_reason: str = ""


class Reputation:
    """The offences of all peers; `now` is on trio's clock.

    Args:
        settings: what each offence costs.

    Attributes:
        changes: rises with each offence.
    """

    def __init__(self, settings: GossipSettings | None = None) -> None:
        self._settings = settings or GossipSettings()
        self.changes = 0
        self._records: OrderedDict[PeerId, _Record] = OrderedDict()
        self._bans: Bans[PeerId] = Bans(
            self._settings.first_back_off, self._settings.longest_back_off
        )
        settings = self._settings
        self._costs = {
            Offence.FALSE_SCORE: settings.false_score_points,
            Offence.BAD_WEIGHTS: settings.bad_weights_points,
            Offence.WRONG_CHUNK: settings.wrong_chunk_points,
            Offence.BROKEN_PROMISE: settings.broken_promise_points,
            Offence.FLOOD: settings.flood_points,
        }

    def receive_offence(self, peer_id: PeerId, offence: Offence, reason: str, now: float) -> bool:
        """Note an offence; returns whether it put the peer on the blacklist."""
        before = self.is_blacklisted(peer_id, now)
        record = self._records.setdefault(peer_id, _Record())
        faded = self._points(record, now)
        if faded < _FADED:
            self._bans.receive_success(peer_id)  # so that the first back-off is short again
        record.points = faded + self._costs[offence]
        record.noted_at = now
        record.offences[offence.value] += 1
        record.last_reason = reason
        self.changes += 1
        self._records.move_to_end(peer_id)
        if len(self._records) > self._settings.max_offenders:
            self._forget_one(now)
        if offence is not Offence.FLOOD:  # whose messages are dropped anyway
            self._bans.receive_failure(peer_id, now)
        return self.is_blacklisted(peer_id, now) and not before

    def snapshot(self, now: float, wall: float) -> list[Record]:
        """Return all that has not faded, the longest untouched first.

        Args:
            now: the time on trio's clock.
            wall: the same on the wall clock.
        """
        found = []
        for peer_id, record in self._records.items():
            points, back_off = self._points(record, now), self._bans.time_of(peer_id)
            if points >= _FORGOTTEN:
                found.append(
                    Record(
                        peer_id=peer_id,
                        points=points,
                        noted=wall,
                        offences=dict(record.offences),
                        reason=record.last_reason[:MAX_REASON_CHARS],
                        back_off=back_off,
                        until=max(0.0, wall + self._bans.banned_until(peer_id) - now),
                    )
                )
        return found

    def restore(self, records: Iterable[Record], now: float, wall: float) -> None:
        """Take over what an earlier life of this node has noted, before anything else is.

        Clocks may have been set meanwhile: nothing was noted in the future, and nobody is left
        alone for longer than he could be.

        Args:
            records: as `snapshot` gave them.
            now: the time on trio's clock.
            wall: the same on the wall clock.
        """
        for each in records:
            self._records[each.peer_id] = _Record(
                points=each.points,
                noted_at=now - max(0.0, wall - each.noted),
                offences=Counter(each.offences),
                last_reason=each.reason,
            )
            if each.back_off:
                ahead = min(each.until - wall, self._settings.longest_back_off)
                self._bans.restore(each.peer_id, now + ahead, each.back_off)
            if len(self._records) > self._settings.max_offenders:
                self._forget_one(now)

    def is_blacklisted(self, peer_id: PeerId, now: float) -> bool:
        """Tell whether a peer is neither heard nor asked."""
        record = self._records.get(peer_id)
        return record is not None and self._is_too_much(record, now)

    def is_shunned(self, peer_id: PeerId, now: float) -> bool:
        """Tell whether to leave a peer alone now: it is on the blacklist, or backed off from."""
        return self._bans.is_banned(peer_id, now) or self.is_blacklisted(peer_id, now)

    def score(self, peer_id: PeerId, now: float) -> float:
        """Return what the application thinks of a peer, for pub/sub: 0 or less."""
        record = self._records.get(peer_id)
        return (
            0.0 if record is None else -self._settings.score_per_point * self._points(record, now)
        )

    def standing(self, peer_id: PeerId, now: float) -> Standing | None:
        """Return what there is against a peer; None if it is nothing."""
        record = self._records.get(peer_id)
        if record is None or (points := self._points(record, now)) < _FORGOTTEN:
            return None
        return Standing(
            peer_id=peer_id,
            points=points,
            offences=dict(record.offences),
            last_reason=record.last_reason,
            back_off=max(0.0, self._bans.banned_until(peer_id) - now),
            is_blacklisted=self._is_too_much(record, now),
        )

    def standings(self, now: float) -> list[Standing]:
        """List all peers that there is something against, the worst first."""
        found = (self.standing(peer_id, now) for peer_id in self._records)
        return sorted(
            (each for each in found if each is not None),
            key=lambda each: (-each.points, each.peer_id),
        )

    def _points(self, record: _Record, now: float) -> float:
        halvings = (now - record.noted_at) / self._settings.points_half_life
        return record.points * math.exp2(-halvings)

    def _is_too_much(self, record: _Record, now: float) -> bool:
        return self._points(record, now) >= self._settings.blacklist_points

    def _forget_one(self, now: float) -> None:
        """Make room: of the longest untouched, one that is not on the blacklist goes first."""
        harmless = (
            peer_id for peer_id, each in self._records.items() if not self._is_too_much(each, now)
        )
        del self._records[next(harmless, next(iter(self._records)))]
