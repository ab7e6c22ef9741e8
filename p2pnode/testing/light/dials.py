"""How a light host reaches a peer: its addresses raced, as `p2pnode.host.dialer` does, in one task.

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
        self.scope = trio.CancelScope()
        self._host = host
        self._backoff = host.backoff
        self._waiting: list[Multiaddr] = []
        self._knocks: dict[Knock, tuple[Multiaddr, float]] = {}  # and when each began
        self._outcomes: dict[Multiaddr, str] = {}
        self._skipped: dict[Multiaddr, None] = {}  # since they are backed off
        self._next_at = -math.inf
        self._wrong_peer = False
        self._sleeper: trio.lowlevel.Task | None = None

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

    async def run(self) -> None:
        """Race the addresses until one is reached, or all have failed."""
        try:
            with self.scope:
                await self._race()
        finally:
            for knock in self._knocks:
                knock.end()
            self._finish()

    def _knock(self, address: Multiaddr) -> Knock | None:
        return self._host.knock(address)

    def _join(self, remote: "LightHost", knock: Knock, arrival: Arrival) -> None:
        self._host.join(remote, knock, arrival)

    def _finish(self) -> None:
        self._host.finish_dial(self)

    async def _race(self) -> None:
        while True:
            self._start_attempts(trio.current_time())
            for knock, (address, began) in tuple(self._knocks.items()):
                if await self._attend(knock, address, began):
                    return
            if not self._knocks and not self._waiting:
                return
            await self._sleep_until(self._next_event())

    async def _sleep_until(self, due: float) -> None:
        """Sleep until something is due, or an attempt is answered; or a little less."""
        self._sleeper = trio.lowlevel.current_task()
        self._host.world.timers.at(due, self._wake)
        await trio.lowlevel.wait_task_rescheduled(self._stay_asleep)

    def _wake(self) -> None:
        if self._sleeper is not None:
            task, self._sleeper = self._sleeper, None
            trio.lowlevel.reschedule(task)

    def _stay_asleep(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _advance(self, knock: Knock) -> None:
        """Let an attempt go on; its SYN arrives without waking the task."""
        if knock not in self._knocks:
            return
        now = trio.current_time()
        if knock.next_at <= now:
            knock.advance(now)
        if knock.answer is None:
            self._host.world.timers.at(knock.next_at, partial(self._advance, knock))
        else:
            self._wake()

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

    async def _attend(self, knock: Knock, address: Multiaddr, began: float) -> bool:
        """Do what is due for one attempt; returns whether the peer is reached."""
        timeout = self._host.settings.dial_attempt_timeout
        now = trio.current_time()
        if now >= began + timeout:
            self._give_up(knock, f"no answer within {timeout:g} s")
        elif knock.answer is Answer.REFUSED:
            self._give_up(knock, "connection refused")
        elif knock.answer is not None:
            return await self._greet(knock, address)
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

    async def _greet(self, knock: Knock, address: Multiaddr) -> bool:
        """Take the time of the handshakes; returns whether the peer is there at their end."""
        network = self._host.world.network
        arrival = knock.arrival
        assert arrival is not None  # it was answered
        machine = arrival.machine
        if knock.met is not None and not self._host.peer_id < self.peer_id:
            # Both have dialled one connection; the other one dials again.
            wait = self._host.settings.simultaneous_open_wait
            await self._host.world.timers.sleep_until(trio.current_time() + wait)
            self._drop(knock, "the same connection was dialled from the other end")
            return False
        ways = HANDSHAKE_WAYS + (2 if knock.met is not None else 0)
        seconds, breaks = self._draw_handshakes(machine, knock.source, ways)
        timeout = self._host.settings.handshake_timeout
        now = trio.current_time()
        done = network.arrival(now + min(seconds, timeout), now)
        await self._host.world.timers.sleep_until(done)
        if breaks or seconds > timeout:
            self._give_up(knock, "the connection broke in the handshakes")
            return False
        remote = self._host.world.host_at(arrival)
        if remote is None or not network.carries(knock.source, machine):
            self._give_up(knock, "the handshakes were not answered")
            return False
        if remote.peer_id != self.peer_id:
            self._wrong_peer = True
            self._give_up(knock, f"{remote.peer_id} answers there")
            return False
        self._backoff.succeed(self.peer_id, address)
        self._join(remote, knock, arrival)
        return True

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
        self.done.set()
