"""Which host of an expert to call: the fastest that has not failed lately, direct ones first.

A host that is lost, silent, paused or refuses connections is reported to the directory, which
leaves it out for a time that doubles with each further failure. An error of one expert (it computes
nonsense, its queue is full, it is not served any more) bans that expert on that host alone. A
straggler, cut off because others had answered, counts as failed when it happens again and again.
"""

import random
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Final

import trio

from p2pnode.config import Settings
from p2pnode.errors import (
    AlreadyAppliedError,
    ConnectionClosedError,
    DeadlineExceededError,
    DialError,
    HostLostError,
    NoLiveExpertError,
    NotAMemberError,
    OverloadedError,
    P2PNodeError,
    PausedError,
    ResourceLimitError,
    StaleUpdateError,
)
from p2pnode.protocols.kad.bans import Bans
from p2pnode.swarm.lookup import ExpertDirectory, HostEntry
from p2pnode.trainer.stats import Recorder
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

HOST_FAILURES: Final = (  # say nothing about the expert that was called
    ConnectionClosedError,
    DeadlineExceededError,
    DialError,
    HostLostError,
    PausedError,
    ResourceLimitError,
)
_MAX_REASONS: Final = 1024  # experts whose latest failure is kept, for the error message
_MAX_LIMITERS: Final = 1024  # hosts whose calls under way are counted; idle ones are forgotten


class HostBook:
    """Chooses hosts, and judges them by how their calls end.

    Args:
        directory: lists the live hosts of an expert, and is told who failed.
        settings: intervals and limits.
        rng: orders hosts that seem equally fast.
    """

    def __init__(self, directory: ExpertDirectory, settings: Settings, rng: random.Random) -> None:
        self.recorder = Recorder(settings.trainer.latency_smoothing)
        self._directory = directory
        self._settings = settings.trainer
        self._rng = rng
        self._bans: Bans[tuple[PeerId, Uid]] = Bans(
            settings.swarm.ban_time, settings.swarm.max_ban_time
        )
        self._reasons: OrderedDict[Uid, P2PNodeError] = OrderedDict()
        self._limiters: OrderedDict[PeerId, trio.CapacityLimiter] = OrderedDict()
        self._straggles: Counter[PeerId] = Counter()

    async def candidates(self, uid: Uid) -> list[HostEntry]:
        """List the hosts of an expert worth a call, the one expected to answer first in front.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        now = trio.current_time()
        entries = [
            entry
            for entry in await self._directory.hosts(uid)
            if not self._bans.is_banned((entry.peer_id, uid), now)
        ]
        if len(entries) > 1:
            entries.sort(key=self._expected_wait)
        return entries

    async def look_again(self, uid: Uid) -> None:
        """Look up anew who hosts an expert: it may have changed hands.

        Raises:
            NoPeersError: the node knows nobody to ask.
        """
        await self._directory.look_again(uid)

    def needs_relay(self, entry: HostEntry) -> bool:
        """Tell whether calls of a host go through a relay, or will, as far as is known."""
        return self._directory.needs_relay(entry)

    async def unusable(self, uids: Iterable[Uid]) -> list[Uid]:
        """Return those of the listed experts that are banned on each of their hosts."""
        if not len(self._bans):
            return []
        return [uid for uid in uids if not await self.candidates(uid)]

    def limiter(self, peer_id: PeerId) -> trio.CapacityLimiter:
        """Return what bounds the calls to one host that are under way at once."""
        limiter = self._limiters.get(peer_id)
        if limiter is None:
            for idle in [each for each, one in self._limiters.items() if not one.borrowed_tokens]:
                if len(self._limiters) < _MAX_LIMITERS:
                    break
                del self._limiters[idle]
            limiter = trio.CapacityLimiter(self._settings.calls_at_once_per_host)
            self._limiters[peer_id] = limiter
        return limiter

    def receive_success(self, peer_id: PeerId, uid: Uid, seconds: float | None) -> None:
        """A call was answered after so many seconds, or None where nothing was computed."""
        if seconds is not None:
            self.recorder.answered(peer_id, seconds)
        self._bans.receive_success((peer_id, uid))
        self._reasons.pop(uid, None)
        self._straggles.pop(peer_id, None)
        self._directory.mark_alive(peer_id)

    def receive_failure(
        self, peer_id: PeerId, uid: Uid, error: P2PNodeError, *, span: int = 1
    ) -> None:
        """A call failed.

        Which of a span's layers is to blame is not known, so none is banned, unless they are only
        too busy.
        """
        self.recorder.failed(peer_id)
        if isinstance(error, AlreadyAppliedError | StaleUpdateError):
            return  # the host did its work: the answer is gone, or the caller was too slow
        for each in uid.span(span):
            self._reasons[each] = error
        while len(self._reasons) > _MAX_REASONS:
            self._reasons.popitem(last=False)
        if isinstance(error, HOST_FAILURES):
            self._directory.mark_failed(peer_id)
        elif span == 1 or isinstance(error, OverloadedError):
            self._bans.receive_failure((peer_id, uid), trio.current_time())

    def receive_straggle(self, peer_id: PeerId) -> None:
        """The host was cut off, because enough others had answered."""
        self._straggles[peer_id] += 1
        if self._straggles[peer_id] > self._settings.straggles_tolerated:
            del self._straggles[peer_id]
            self._directory.mark_failed(peer_id)

    def reason(self, uid: Uid) -> P2PNodeError | None:
        """Return how the last call of an expert failed; None after one that was answered."""
        return self._reasons.get(uid)

    def none_left(self, uid: Uid) -> P2PNodeError:
        """Return the error for an expert without a candidate: why the last one failed, if known."""
        reason = self._reasons.get(uid)
        if isinstance(reason, NotAMemberError):
            return type(reason)(str(reason))  # the caller can mend it: ask for another invite
        why = f"the last call failed: {reason}" if reason else "is its host running, in this run?"
        error = NoLiveExpertError(f"no live host of {uid.name} is known; {why}")
        error.__cause__ = reason
        return error

    def _expected_wait(self, entry: HostEntry) -> tuple[bool, bool, float, float]:
        # A relay carries for all its peers, and is somebody's gift: whom one reaches directly goes
        # first. Of those alike, a host that was never called does, so that its latency is known.
        relayed = self.needs_relay(entry)
        latency = self.recorder.latency_of(entry.peer_id)
        known = latency is not None
        return relayed, known, (latency or 0.0) * (1 + entry.load), self._rng.random()
