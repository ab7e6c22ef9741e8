"""Where attacks take place: a victim that runs every protocol, a friend of it, and attackers."""

import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import DhtSettings, LimitSettings, NetworkSettings
from p2pnode.errors import P2PNodeError
from p2pnode.events import Event, EventBus
from p2pnode.host import PeerIdentified, Stream
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.protocols.kad.service import KadDht
from p2pnode.protocols.ping.service import PingService
from p2pnode.security.noise.core import MAX_PLAINTEXT, CipherState
from p2pnode.security.noise.frames import MAX_SPARE_OUTPUTS, FrameSealer
from p2pnode.testing.footprint import Footprint, footprint
from p2pnode.testing.hostile.attacker import Attack, Attacker
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import VirtualNetwork
from p2pnode.transport.base import Transport
from p2pnode.transport.tcp import TcpTransport
from p2pnode.transport.websocket import WebSocketTransport
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

ECHO: Final = "/test/echo/1.0.0"
DEAF: Final = "/test/deaf/1.0.0"  # a handler that never reads
ECHO_BYTES: Final = 24 * 1024
ECHO_PAUSE: Final = 1.0  # seconds between what the friend asks for
SETTLE_TIME: Final = 100.0  # seconds after which nothing of an attacker may be left
SETTLE_STEP: Final = 0.5


class Arena:
    """A victim and its friend; see the module.

    Attributes:
        victim: serves identify, ping, the DHT and two protocols of tests, `ECHO` and `DEAF`.
        friend: a well-behaved peer that is connected to it.
        reasons: those of the events the victim emitted, by class; a flood counts once.
        served: how often the friend had its bytes echoed.
    """

    def __init__(
        self, nursery: trio.Nursery, victim: NetworkHost, friend: NetworkHost, machine: Transport
    ) -> None:
        self.victim = victim
        self.friend = friend
        self.reasons: defaultdict[type[Event], set[str]] = defaultdict(set)
        self.served = 0
        self._nursery = nursery
        self._machine = machine
        self._rng = random.Random(0)
        victim.events.on(Event, self._note)

    def _note(self, event: Event) -> None:
        self.reasons[type(event)].add(getattr(event, "reason", ""))

    def attacker(self, nursery: trio.Nursery) -> Attacker:
        """Return an attacker that dials the victim."""
        target = Multiaddr.join(*self.victim.addresses[0].split()[:2])  # TCP, whatever runs on it
        return Attacker(nursery, self._machine, target=target)

    async def face(
        self, attack: Attack, nursery: trio.Nursery, *, dialled: bool = False
    ) -> tuple[Attacker, P2PNodeError | None]:
        """Let the victim be attacked; returns when the attacker has done what it can.

        Args:
            attack: what it does.
            nursery: holds the attacker's tasks.
            dialled: whether the victim dials the attacker.

        Returns:
            The attacker, and how the victim's dial of it failed, if it did.
        """
        if not dialled:
            attacker = self.attacker(nursery)
            await _run(attack, attacker)
            return attacker, None
        listener = await self._machine.listen(_here(self.victim.addresses[0], self._machine))
        attacker = Attacker(nursery, self._machine, listener=listener)
        failure: P2PNodeError | None = None

        async def dial() -> None:
            nonlocal failure
            try:
                await self.victim.connect(attacker.key.peer_id, listener.addresses)
            except P2PNodeError as error:
                failure = error

        async with trio.open_nursery() as dialling:
            dialling.start_soon(dial)
            await _run(attack, attacker)
        await listener.aclose()
        return attacker, failure

    async def keep_friend_served(self) -> None:
        """Echo bytes on stream after stream, until cancelled."""
        while True:
            await self.serve_friend()
            await trio.sleep(ECHO_PAUSE)

    async def serve_friend(self) -> None:
        """Have bytes of the friend's echoed once; wrong ones are an error."""
        data = self._rng.randbytes(ECHO_BYTES)
        stream = await self.friend.open_stream(self.victim.peer_id, [ECHO], self.victim.addresses)
        await stream.send_all(data)
        await stream.send_eof()
        if await stream.receive_exactly(len(data)) != data:
            raise AssertionError("the friend's bytes came back changed")
        await stream.aclose()
        self.served += 1

    def footprint(self) -> Footprint:
        """Measure what the victim, its friend and all tasks hold."""
        return footprint(self.victim, self.friend)

    async def settled(self, before: Footprint) -> dict[str, int]:
        """Wait until nothing is held that was not held before; returns what still is, in time."""
        growth = self.footprint().growth_since(before)
        with trio.move_on_after(SETTLE_TIME):
            while growth:
                await trio.sleep(SETTLE_STEP)
                growth = self.footprint().growth_since(before)
        return growth


async def _run(attack: Attack, attacker: Attacker) -> None:
    # Whoever attacks may be cut off at any step; how is the victim's to say.
    try:
        await attack(attacker)
    except (P2PNodeError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    except trio.Cancelled:
        await attacker.aclose()  # nobody else gets hold of it
        raise


def _here(address: Multiaddr, machine: Transport) -> Multiaddr:
    ip = getattr(machine, "ip", None) or str(address.value_for_protocol("ip4"))
    return tcp_address(ip, 0)


@contextlib.asynccontextmanager
async def arena(
    *,
    real: bool = False,
    websocket: bool = False,
    limits: LimitSettings | None = None,
    **settings: Any,
) -> AsyncIterator[Arena]:
    """Run an arena until the block ends.

    Args:
        real: over TCP on loopback, rather than in memory.
        websocket: whether the victim listens for WebSockets instead, if it is real.
        limits: budgets of the victim.
        settings: what differs from the defaults of the victim's network section.
    """
    machines = _machines(real=real)
    tail = "/ws" if websocket else ""
    async with trio.open_nursery() as nursery:
        victim = await start_host(
            nursery, machines(), 1, NetworkSettings(**settings), limits=limits, tail=tail
        )
        await serve_everything(nursery, victim)
        friend = await start_host(nursery, machines(), 2, NetworkSettings())
        arena = Arena(nursery, victim, friend, machines())
        with friend.events.subscribe(PeerIdentified) as identified:
            await friend.connect(victim.peer_id, victim.addresses)
            await identified.get()
        await arena.serve_friend()
        _make_spare_buffers()
        yield arena
        nursery.cancel_scope.cancel()


def _make_spare_buffers() -> None:
    """Fill the pool that all secure channels share, so that it does not look like a leak."""
    sealers = [FrameSealer(CipherState(bytes(32))) for _ in range(MAX_SPARE_OUTPUTS)]
    for sealer in sealers:
        sealer.seal([bytes(MAX_PLAINTEXT)])
    for sealer in sealers:
        sealer.release()


def _machines(*, real: bool) -> Callable[[], Transport]:
    return TcpTransport if real else partial(MemoryTransport, VirtualNetwork())


async def start_host(
    nursery: trio.Nursery,
    machine: Transport,
    number: int,
    settings: NetworkSettings,
    *,
    limits: LimitSettings | None = None,
    tail: str = "",
) -> NetworkHost:
    """Start a host that serves identify and ping, and listens.

    Args:
        nursery: what it runs in.
        machine: its TCP, or what stands for it in memory.
        number: its identity and its chance come of it.
        settings: of its network.
        limits: of its budgets, or None for the defaults.
        tail: what follows the TCP port of its listen address.
    """
    events = EventBus()
    websocket = WebSocketTransport(settings, events=events)
    host = NetworkHost(
        PrivateKey.from_seed(number.to_bytes(32, "big")),
        transports=[machine, websocket] if isinstance(machine, TcpTransport) else [machine],
        settings=settings,
        limits=limits,
        rng=random.Random(number),
        events=events,
    )
    await nursery.start(host.run)
    await nursery.start(IdentifyService(host, settings).run)
    await nursery.start(PingService(host, settings).run)
    await host.listen(Multiaddr(f"{tcp_address(getattr(machine, 'ip', '127.0.0.1'), 0)}{tail}"))
    return host


async def serve_everything(nursery: trio.Nursery, host: NetworkHost) -> None:
    """Run all other protocols on a host, too."""
    await nursery.start(KadDht(host, DhtSettings(), random.Random(1)).run)
    host.set_handler(ECHO, _echo)
    host.set_handler(DEAF, _deaf)


async def _echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def _deaf(_stream: Stream) -> None:
    await trio.sleep(ECHO_PAUSE * 100)
