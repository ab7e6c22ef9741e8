"""Whether the peer of a Yamux session still answers, and how long an answer takes; pure.

A ping goes out at once, since windows grow by the round trip time, and then every
`keepalive_interval`. Whatever comes from the peer is a sign of life; the session ends after
`keepalive_timeout` without one while a ping waits for its answer.
"""

from p2pnode.config import NetworkSettings
from p2pnode.mux.yamux.frames import MAX_U32


class Liveness:
    """The pings of a session, and when the peer was heard last; see the module.

    Attributes:
        round_trip: the shortest recent one in seconds, once known.
        heard_at: when anything came from the peer.
    """

    __slots__ = ("_next", "_pings", "_settings", "_wanted_at", "heard_at", "round_trip")

    def __init__(self, settings: NetworkSettings, now: float) -> None:
        self.round_trip: float | None = None
        self.heard_at = now
        self._settings = settings
        self._pings: dict[int, float] = {}  # when each was sent, the oldest first
        self._next = 0
        self._wanted_at = now

    def note_ping(self, now: float) -> int:
        """Note that a ping is sent now; returns its number."""
        number = self._next
        self._next = (number + 1) & MAX_U32
        self._pings[number] = now
        return number

    def is_waiting_for(self, number: int) -> bool:
        """Whether a ping has not been answered yet."""
        return number in self._pings

    def forget(self, number: int) -> None:
        """Stop waiting for a ping's answer."""
        self._pings.pop(number, None)

    def receive_answer(self, number: int, now: float) -> bool:
        """Take a ping's answer; False if it is late, or was never asked for."""
        sent_at = self._pings.pop(number, None)
        if sent_at is None:
            return False
        sample = now - sent_at
        smallest = sample if self.round_trip is None else self.round_trip
        self.round_trip = min(sample, smallest * 1.25)  # follows slow changes upward too
        return True

    def take_due_ping(self, now: float) -> int | None:
        """Note the regular ping if it is due; returns its number, to be sent, or None."""
        if now < self._wanted_at:
            return None
        self._wanted_at = now + self._settings.keepalive_interval
        return self.note_ping(now)

    def silence_ends_at(self) -> float:
        """When the peer has been silent for too long."""
        if not self._pings:
            return float("inf")
        oldest = next(iter(self._pings.values()))
        return max(oldest, self.heard_at) + self._settings.keepalive_timeout

    def next_deadline(self) -> float:
        """When there is something to send, or to give up."""
        return min(self._wanted_at, self.silence_ends_at())
