"""How a light host reaches a peer: its addresses raced, as `p2pnode.host.dialer` does.

The SYNs and their answers are the virtual network's. The handshakes above TCP only take the time
that Noise and Yamux take: `HANDSHAKE_WAYS` one-way delays, and what losses on these ways cost.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from p2pnode.errors import DialError, P2PNodeError, WrongPeerError
from p2pnode.host.backoff import DialBackoff
from p2pnode.testing.network import Answer, Arrival, Knock, Machine, draw_loss
from p2pnode.wire.peer_id import PeerId

if TYPE_CHECKING:
    from p2pnode.testing.light.connections import LightConnection
    from p2pnode.testing.light.host import LightHost

HANDSHAKE_WAYS: Final = 4


class LightDial:
    """One peer being dialled; addresses may be added while it runs.

    Args:
        host: who dials.
        peer_id: who must answer.
    """

    def __init__(self, host: "LightHost", peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.done = trio.Event()
        self.callers = 0
        self._host = host
        self._backoff = host.backoff
        self._waiting: list[Multiaddr] = []
        self._knocks: dict[Knock, tuple[Multiaddr, float]] = {}  # and when each began
        self._outcomes: dict[Multiaddr, str] = {}
        self._skipped: dict[Multiaddr, None] = {}  # since they are backed off
        self._next_at = -math.inf
        self._wrong_peer = False
        self._greets = False  # handshakes are under way
        self._wakes_at = -math.inf

    def offer(self, addresses: Iterable[Multiaddr], *, insist: bool) -> None:
        """Add addresses to try; with `insist`, also those that failed lately."""
        if insist:
            addresses = [*self._skipped, *addresses]
            for each in self._skipped:
                del self._outcomes[each]
            self._skipped.clear()
        for address in addresses:
            if address in self._outcomes or address in self._waiting:
                continue
            now = trio.current_time()
            pause = self._backoff.remaining(self.peer_id, address, now)
            if pause and not insist:
                self._skipped[address] = None
                self._outcomes[address] = f"backed off for another {math.ceil(pause)} s"
            else:
                self._waiting.append(address)
        if len(self._waiting) > 1:
            self._waiting = self._host.rank(self._waiting)

    @property
    def failure(self) -> P2PNodeError:
        """Why there is no connection."""
        if not self._outcomes and not self._waiting:
            return DialError(f"no address of {self.peer_id} is known")
        attempts = [f"{address}: {reason}" for address, reason in self._outcomes.items()]
        attempts += [f"{address}: not tried in time" for address in self._waiting]
        kind = WrongPeerError if self._wrong_peer and len(attempts) == 1 else DialError
        return kind(f"{self.peer_id} could not be reached ({'; '.join(attempts)})")

    @property
    def is_over(self) -> bool:
        """Whether it has come to its end."""
        return self.done.is_set()

    def start(self) -> None:
        """Race the addresses until one is reached, or all have failed; or go on with new ones."""
        self._go_on()

    def end(self) -> None:
        """Stop, with or without a connection."""
        if not self.is_over:
            for knock in self._knocks:
                knock.end()
            self._finish()
            self.done.set()

    def _knock(self, address: Multiaddr) -> Knock | None:
        return self._host.knock(address)

    def _join(self, remote: "LightHost", knock: Knock, arrival: Arrival) -> None:
        self._host.join(remote, knock, arrival)

    def _finish(self) -> None:
        self._host.forget_dial(self)

    def _go_on(self) -> None:
        """Do what is due; the network's timers call this, since a task for each dial is not cheap.

        While handshakes are under way, the other attempts wait for their outcome.
        """
        if self.is_over or self._greets:
            return
        now = trio.current_time()
        self._start_attempts(now)
        for knock, (address, began) in tuple(self._knocks.items()):
            if self._attend(knock, address, began):
                return
        if not self._knocks and not self._waiting:
            self.end()
            return
        due = self._next_event()
        if not now < self._wakes_at <= due:
            self._wakes_at = due
            self._host.world.timers.at(due, self._go_on)

    def _advance(self, knock: Knock) -> None:
        """Let an attempt go on."""
        if knock not in self._knocks:
            return
        now = trio.current_time()
        if knock.next_at <= now:
            knock.advance(now)
        due = now if knock.answer is not None else knock.next_at
        act = self._go_on if knock.answer is not None else partial(self._advance, knock)
        self._host.world.timers.at(due, act)

    def _start_attempts(self, now: float) -> None:
        settings = self._host.settings
        while (
            self._waiting
            and len(self._knocks) < settings.dial_attempts_at_once
            and now >= self._next_at
        ):
            address = self._waiting.pop(0)
            knock = self._knock(address)
            if knock is None:
                self._outcomes[address] = "it is no address of this network"
                continue
            self._outcomes[address] = "no answer in time"
            self._knocks[knock] = address, now
            self._advance(knock)
            self._next_at = now + settings.dial_stagger

    def _attend(self, knock: Knock, address: Multiaddr, began: float) -> bool:
        """Do what is due for one attempt; returns whether its handshakes begin."""
        timeout = self._host.settings.dial_attempt_timeout
        if trio.current_time() >= began + timeout:
            self._give_up(knock, f"no answer within {timeout:g} s")
        elif knock.answer is Answer.REFUSED:
            self._give_up(knock, "connection refused")
        elif knock.answer is not None:
            self._greet(knock, address)
            return True
        return False

    def _next_event(self) -> float:
        settings = self._host.settings
        times = [began + settings.dial_attempt_timeout for _, began in self._knocks.values()]
        if self._waiting and len(times) < settings.dial_attempts_at_once:
            times.append(self._next_at)
        return min(times)

    def _give_up(self, knock: Knock, reason: str) -> None:
        address = self._drop(knock, reason)
        self._backoff.fail(self.peer_id, address, trio.current_time())

    def _drop(self, knock: Knock, reason: str) -> Multiaddr:
        address, _ = self._knocks.pop(knock)
        knock.end()
        self._outcomes[address] = reason
        self._next_at = -math.inf
        return address

    def _greet(self, knock: Knock, address: Multiaddr) -> None:
        """Let the handshakes begin, which take their time."""
        network, timers = self._host.world.network, self._host.world.timers
        settings, now = self._host.settings, trio.current_time()
        assert knock.arrival is not None  # it was answered
        self._greets = True
        if knock.met is not None and not self._host.peer_id < self.peer_id:
            # Both have dialled one connection; the other one dials again.
            timers.at(now + settings.simultaneous_open_wait, partial(self._yield, knock))
            return
        ways = HANDSHAKE_WAYS + (2 if knock.met is not None else 0)
        seconds, breaks = self._draw_handshakes(knock.arrival.machine, knock.source, ways)
        timeout = settings.handshake_timeout
        done = network.arrival(now + min(seconds, timeout), now)
        breaks = breaks or seconds > timeout
        timers.at(done, partial(self._end_greeting, knock, knock.arrival, address, breaks=breaks))

    def _yield(self, knock: Knock) -> None:
        """Leave a connection that both have dialled to the other one."""
        if not self.is_over:
            self._greets = False
            self._drop(knock, "the same connection was dialled from the other end")
            self._go_on()

    def _end_greeting(
        self, knock: Knock, arrival: Arrival, address: Multiaddr, *, breaks: bool
    ) -> None:
        """Connect, if the peer is there at the end of the handshakes."""
        if self.is_over:
            return
        self._greets = False
        remote = self._host.world.host_at(arrival)
        if breaks:
            self._give_up(knock, "the connection broke in the handshakes")
        elif remote is None or not self._host.world.network.carries(knock.source, arrival.machine):
            self._give_up(knock, "the handshakes were not answered")
        elif remote.peer_id != self.peer_id:
            self._wrong_peer = True
            self._give_up(knock, f"{remote.peer_id} answers there")
        else:
            self._backoff.succeed(self.peer_id, address)
            self._join(remote, knock, arrival)
            self.end()
            return
        self._go_on()

    def _draw_handshakes(self, one: Machine, other: Machine, ways: int) -> tuple[float, bool]:
        """Draw how long messages take that go to and fro; and whether the connection breaks."""
        network = self._host.world.network
        seconds = 0.0
        loss = network.loss_between(one, other)
        for _ in range(ways):
            way = network.draw_delay(one, other)
            late, breaks = draw_loss(network, 1, loss, way) if loss else (0.0, False)
            seconds += way + late
            if breaks:
                return seconds, True
        return seconds, False


class StrangerDial(LightDial):
    """One address dialled as a stranger would: from another port, and whatever was tried before.

    Args:
        host: who dials.
        peer_id: who must answer.
        address: where.

    Attributes:
        connection: what came of it, known to neither host.
    """

    def __init__(self, host: "LightHost", peer_id: PeerId, address: Multiaddr) -> None:
        super().__init__(host, peer_id)
        self.connection: LightConnection | None = None
        self._backoff = DialBackoff(host.settings, host.world.network.rng)
        self.offer([address], insist=True)

    def _knock(self, address: Multiaddr) -> Knock | None:
        return self._host.knock(address, as_stranger=True)

    def _join(self, remote: "LightHost", knock: Knock, arrival: Arrival) -> None:
        self.connection = self._host.pair_up(remote, knock, arrival)

    def _finish(self) -> None:
        """The host does not know of it."""
