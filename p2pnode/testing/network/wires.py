"""Open connections, as TCP carries them: when each byte arrives, and what becomes of them. Pure.

Rules:
- What is sent leaves over the sender's uplink, takes the latency drawn for it, and enters through
  the receiver's downlink. It never overtakes what was sent before it on the same wire.
- A lost packet is sent again after a retransmission timeout, or after a round trip if enough
  packets behind it show the receiver that it is missing (RFC 5681, fast retransmit). What stands
  behind it waits for it. A wire that loses the same packet `MAX_TRIES` times is given up.
- While no packet gets through, what is sent and what is under way is held. It is sent again at
  ever longer intervals (RFC 6298), so after the way is free again it may take as long again.
- Neither end learns that the other has gone, unless a packet of it says so.
"""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from p2pnode.testing.network.machines import Machine
from p2pnode.testing.network.nat import Endpoint

if TYPE_CHECKING:
    from p2pnode.testing.network.virtual_network import VirtualNetwork

PACKET_BYTES: Final = 1460  # of data, in an Ethernet frame
MIN_RTO: Final = 0.2  # seconds; Linux
MAX_RTO: Final = 120.0
MAX_TRIES: Final = 15  # of one packet; Linux, tcp_retries2: about a quarter of an hour
_FAST_RETRANSMIT: Final = 4  # packets, of which three follow the lost one


class Flow:
    """One direction of a wire."""

    __slots__ = ("_held_since", "_last_due", "_network", "_restart_at", "source", "target", "wire")

    def __init__(
        self, network: "VirtualNetwork", wire: "Wire", source: Machine, target: Machine
    ) -> None:
        self._network = network
        self.wire = wire
        self.source = source
        self.target = target
        self._last_due = -math.inf
        self._held_since: float | None = None
        self._restart_at = -math.inf

    @property
    def is_held(self) -> bool:
        """Whether nothing gets through now."""
        return self._held_since is not None

    @property
    def restarts_at(self) -> float:
        """When the retransmission gets through that ends, or ended, the last interruption."""
        return self._restart_at

    def due(self, size: int, now: float) -> float:
        """Send `size` bytes now; returns when the last of them arrives, or infinity if held.

        Bytes that are held are to be sent again, by the same call, once the wire resumes.
        """
        if self._held_since is not None:
            return math.inf
        source, target = self.source, self.target
        ready = max(now, self._restart_at)
        sent = source.uplink.pass_through(size, ready)
        arrival = sent + self._network.draw_delay(source, target)
        loss = self._network.loss_between(source, target)
        if loss:
            arrival += self._delay_by_loss(size, loss, arrival - sent, now)
        arrival = target.downlink.pass_through(size, max(arrival, self._last_due), now)
        self._last_due = self._network.arrival(arrival, now)
        return self._last_due

    def hold(self, now: float) -> None:
        """Let nothing through from now on."""
        if self._held_since is None:
            self._held_since = now

    def resume(self, now: float) -> None:
        """Let bytes through again, from the next retransmission on."""
        if self._held_since is None:
            return
        at, pause = self._held_since, max(MIN_RTO, 2 * self._network.typical_delay(self))
        while at < now:
            at += pause
            pause = min(2 * pause, MAX_RTO)
        self._held_since = None
        self._restart_at = at
        self._last_due = at

    def _delay_by_loss(self, size: int, loss: float, way: float, now: float) -> float:
        delay, breaks = draw_loss(self._network, -(-size // PACKET_BYTES) or 1, loss, way)
        if breaks:
            self.wire.reset_both(now + delay)
        return delay


def draw_loss(
    network: "VirtualNetwork", packets: int, loss: float, way: float
) -> tuple[float, bool]:
    """Draw what losses do to some packets that are sent at once.

    Args:
        network: whose chance it is.
        packets: how many.
        loss: the share of packets that is lost.
        way: seconds that they take.

    Returns:
        The seconds by which they are late, and whether the connection breaks then.
    """
    rng = network.rng
    if rng.random() >= 1.0 - (1.0 - loss) ** packets:
        return 0.0, False
    if rng.random() < network.loss_resets:
        return 0.0, True
    timeout = max(MIN_RTO, 3 * way)
    delay = 2 * way if packets >= _FAST_RETRANSMIT else timeout
    for _ in range(MAX_TRIES):
        if rng.random() >= loss:
            return delay, False
        delay += timeout
        timeout = min(2 * timeout, MAX_RTO)
    return delay, True


class Wire(ABC):
    """A connection between two machines; whoever carries bytes over it derives from this.

    Attributes:
        endpoints: of the dialler and of who was dialled, as the respective other one sees them.
        flows: from the dialler, and to it.
    """

    __slots__ = ("_network", "endpoints", "flows", "is_open")

    def __init__(
        self,
        network: "VirtualNetwork",
        machines: tuple[Machine, Machine],
        endpoints: tuple[Endpoint, Endpoint],
    ) -> None:
        self._network = network
        self.endpoints = endpoints
        there, back = machines
        self.flows = Flow(network, self, there, back), Flow(network, self, back, there)
        self.is_open = True
        for machine, own, remote in zip(machines, endpoints, reversed(endpoints), strict=True):
            machine.wires[self] = None
            if machine.router is not None and machine.router.ip == own.ip:
                machine.router.hold(own.port, remote)

    @property
    def machines(self) -> tuple[Machine, Machine]:
        """The dialler's, and the one that was dialled."""
        return self.flows[0].source, self.flows[0].target

    def review(self, now: float) -> None:
        """Note that the way between the machines may have been cut, or freed."""
        carries = self._network.carries(*self.machines)
        was_held = self.flows[0].is_held
        if carries and was_held:
            for flow in self.flows:
                flow.resume(now)
            self.receive_resumed(now)
        elif not carries and not was_held:
            for flow in self.flows:
                flow.hold(now)
            self.receive_held(now)

    def close(self, now: float) -> None:
        """Forget the wire: both ends know that it is over."""
        if not self.is_open:
            return
        self.is_open = False
        for machine, own, remote in zip(
            self.machines, self.endpoints, reversed(self.endpoints), strict=True
        ):
            machine.wires.pop(self, None)
            if machine.router is not None and machine.router.ip == own.ip:
                machine.router.release(own.port, remote, now)

    def reset_both(self, at: float) -> None:
        """Break the wire for both ends."""
        for end in (0, 1):
            self.receive_reset(end, at)

    @abstractmethod
    def receive_held(self, now: float) -> None:
        """Bytes that are under way must be held until the wire resumes."""

    @abstractmethod
    def receive_resumed(self, now: float) -> None:
        """Bytes that were held are to be sent again."""

    @abstractmethod
    def receive_reset(self, end: int, at: float) -> None:
        """One end, the dialler's (0) or the other (1), is told at `at` that all is over."""
