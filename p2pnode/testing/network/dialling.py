"""Opening a connection, as TCP does: SYNs, sent again until one is answered. Pure.

Each SYN goes through the NATs at both ends, which may change where it comes from and may drop it.
One that arrives is accepted by whoever listens on its port, refused if nobody does, or meets the
other machine's own SYN: then both ends have dialled the same connection (RFC 9293, simultaneous
open), which is how holes are punched.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from p2pnode.testing.network.machines import Machine
from p2pnode.testing.network.nat import Endpoint

if TYPE_CHECKING:
    from p2pnode.testing.network.virtual_network import VirtualNetwork

FIRST_TIMEOUT: Final = 1.0  # seconds to the second SYN, doubled for each further one; RFC 6298
MAX_ANSWERS: Final = 6  # SYN-ACKs; Linux, tcp_synack_retries
_HEADERS: Final = 60  # bytes of a SYN: IP and TCP headers with the usual options


class Answer(Enum):
    """How a knock ended."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    MET = "met"  # by the other machine's own knock


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A SYN that has reached a machine.

    Attributes:
        machine: which one.
        port: for whom on it.
        remote: where the machine sees it come from.
    """

    machine: Machine
    port: int
    remote: Endpoint


class Knock:
    """One attempt to open a connection; call `advance` whenever `next_at` has come.

    Args:
        network: where.
        source: the machine that dials.
        port: from which port of it.
        target: where to, as the dialler knows it.
        now: the time.

    Attributes:
        next_at: when something happens next; infinity once it is answered.
        answer: how it ended, or None while it is open.
        arrival: the SYN that was accepted, or met another one.
        met: the other machine's knock that this one met, or None.
        carrier: what the connection is for whoever runs on this network; theirs to set.
    """

    def __init__(
        self,
        network: "VirtualNetwork",
        source: Machine,
        port: int,
        target: Endpoint,
        now: float,
    ) -> None:
        self.source = source
        self.port = port
        self.target = target
        self.next_at = now
        self.answer: Answer | None = None
        self.arrival: Arrival | None = None
        self.met: Knock | None = None
        self.carrier: object = None
        self._network = network
        self._send_at = now
        self._pause = FIRST_TIMEOUT
        self._arrives: list[tuple[float, Endpoint]] = []  # SYNs under way, and whence
        self._answered_at = math.inf
        self._verdict = Answer.REFUSED
        source.knocks[port, target] = self

    def advance(self, now: float) -> bool:
        """Do what is due by `now`; returns whether a SYN has just been taken, as `arrival` says.

        The end that was dialled is to take the connection in at that moment; the dialler knows it
        only when `answer` is there.
        """
        taken = False
        if self._send_at <= now:
            self._send(now)
        while self._arrives and self._arrives[0][0] <= now and self.arrival is None:
            taken = self._arrive(self._arrives.pop(0)[1], now) or taken
        if self._answered_at <= now and self.answer is None:
            self.answer = self._verdict
            self.end()
        first = self._arrives[0][0] if self._arrives and self.arrival is None else math.inf
        self.next_at = min(self._send_at, first, self._answered_at)
        if self.answer is not None:
            self.next_at = math.inf
        return taken

    def end(self) -> None:
        """Stop knocking."""
        if self.source.knocks.get((self.port, self.target)) is self:
            del self.source.knocks[self.port, self.target]

    def meet(self, other: "Knock", arrival: Arrival, answered_at: float) -> None:
        """Note that the other end's SYN has come to this one's socket."""
        self.met = other
        self.arrival = arrival
        self._verdict = Answer.MET
        self._answered_at = self.next_at = answered_at
        self._send_at = math.inf

    def _send(self, now: float) -> None:
        self._send_at = now + self._pause
        self._pause *= 2
        own = Endpoint(self.source.ip, self.port)
        seen = self._network.depart(self.source, own, self.target, now)
        machine = self._network.whereabouts(self.source, self.target)
        if machine is None or self._network.is_lost(self.source, machine):
            return
        way = self._network.draw_delay(self.source, machine)
        sent = self.source.uplink.pass_through(_HEADERS, now)
        self._arrives.append((self._network.arrival(sent + way, now), seen))
        self._arrives.sort()

    def _arrive(self, seen: Endpoint, now: float) -> bool:
        arrival = self._network.arrive(self.source, seen, self.target, now)
        if arrival is None or not self._network.carries(self.source, arrival.machine):
            return False
        back = now + self._network.draw_delay(arrival.machine, self.source)
        back = self._network.arrival(back + self._late_answer(arrival.machine), now)
        meeting = self._network.find_knock(arrival)
        if meeting is not None and meeting.arrival is None:
            self.arrival = arrival
            self.met = meeting
            self._verdict = Answer.MET
            theirs = Arrival(machine=self.source, port=self.port, remote=self.target)
            meeting.meet(self, theirs, answered_at=now)
        elif arrival.port in arrival.machine.listeners:
            self.arrival = arrival
            self._verdict = Answer.ACCEPTED
        elif arrival.machine.router is not None:  # it does not tell strangers
            return False
        self._answered_at = back
        self._send_at = math.inf
        return self._verdict is not Answer.REFUSED

    def _late_answer(self, answerer: Machine) -> float:
        """Draw by how much the answer is late because packets are lost; infinity if it never comes.

        It is sent again like a SYN.
        """
        late, pause = 0.0, FIRST_TIMEOUT
        for _ in range(MAX_ANSWERS):
            if not self._network.is_lost(answerer, self.source):
                return late
            late += pause
            pause *= 2
        return math.inf
