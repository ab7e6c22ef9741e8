"""`bench stream`: a connection, its streams, and what they cost, against bare TCP.

Everything runs between this process and one other on loopback. Within a round the bare limit and
our stack take turns, and who goes first alternates, so that both meet the same noise.
"""

import contextlib
import functools
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from cli.bench import bare, far_end
from cli.bench.figures import Figure, Goal
from cli.bench.near_end import FarEnd, run_far_end
from p2pnode.config import KIB, MIB, NetworkSettings
from p2pnode.host import Connection
from p2pnode.host.node import NetworkHost
from p2pnode.host.upgrader import Upgrader
from p2pnode.security.tls import TlsIdentity
from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.keys import PrivateKey

_MEGA: Final = 1e6
_MICRO: Final = 1e-6
_WARM_UP_CONNECTIONS: Final = 20  # before memory is counted: caches and arenas fill once
_SETTLE_TIME: Final = 0.2  # for the other process to finish what a measurement left behind
_QUIC_SHARE: Final = 16  # so much less is sent over QUIC, which takes longer for it
_SPARE_CONNECTIONS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: of each figure.
        size: bytes of one transfer.
        pings: round trips of one round.
        dials: of one round.
        connections: opened at once to count their memory.
    """

    rounds: int
    size: int
    pings: int
    dials: int
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contest:
    """Something to measure, and its baseline; both return one value a call."""

    name: str
    title: str
    unit: str
    ours: Callable[[], Awaitable[float]]
    bare: Callable[[], Awaitable[float]] | None = None
    goal: Goal | None = None


async def measure_stream(plan: Plan) -> list[Figure]:
    """Measure all figures.

    Raises:
        LocalError: the other process could not start.
    """
    async with run_far_end(plan.connections + _SPARE_CONNECTIONS) as there:
        async with (
            _own_host() as host,
            _quic_host() as quic_host,
            await there.connect("raw") as raw,
            await there.connect("sealed") as sealed,
            await there.connect("echo") as echo,
        ):
            connection = await host.connect(there.peer_id, [there.address])
            quic = await quic_host.connect(there.peer_id, [there.quic_address])
            rates = _Rates(plan.size, raw, sealed, connection, quic)
            delays = _Delays(plan, there, connection, echo)
            contests = [*rates.contests(), *delays.contests()]
            figures = [await _run(each, plan.rounds) for each in contests]
        figures.append(await _memory(plan, there))
    return figures


@contextlib.asynccontextmanager
async def _own_host() -> AsyncIterator[NetworkHost]:
    async with trio.open_nursery() as nursery:
        host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
        await nursery.start(host.run)
        yield host
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _quic_host() -> AsyncIterator[NetworkHost]:
    async with trio.open_nursery() as nursery:
        key = PrivateKey.generate()
        host = NetworkHost(key, transports=[QuicTransport(TlsIdentity(key))])
        await nursery.start(host.run)
        yield host
        nursery.cancel_scope.cancel()


async def _run(contest: _Contest, rounds: int) -> Figure:
    values: list[float] = []
    baselines: list[float] = []
    for number in range(rounds):
        steps = [(contest.ours, values)]
        if contest.bare is not None:
            steps.insert(number % 2, (contest.bare, baselines))
        for measure, found in steps:
            found.append(await measure())
    return Figure(
        name=contest.name,
        title=contest.title,
        unit=contest.unit,
        values=values,
        baselines=baselines,
        goal=contest.goal,
    )


@dataclass(frozen=True, slots=True)
class _Rates:
    """Throughput, in MB (a million bytes) a second."""

    size: int
    raw: trio.SocketStream
    sealed: trio.SocketStream
    connection: Connection
    quic: Connection

    def contests(self) -> list[_Contest]:
        found = [
            _Contest(
                name="bare_sealed",
                title="bare encrypted pipe, against TCP alone",
                unit="MB/s",
                ours=self._sealed,
                bare=self._raw,
            ),
            _Contest(
                name="bare_batched",
                title=f"the same, {bare.BATCH_FRAMES} frames a write, against one",
                unit="MB/s",
                ours=self._batched,
                bare=self._sealed,
            ),
        ]
        for streams, write, bound in ((1, MIB, 0.7), (1, 64 * KIB, 0.55), (8, 64 * KIB, 0.6)):
            count = "one stream" if streams == 1 else f"{streams} streams"
            found.append(
                _Contest(
                    name=f"throughput_{write // KIB}k_{streams}",
                    title=f"{count}, writes of {write // KIB} KiB",
                    unit="MB/s",
                    ours=functools.partial(self._ours, streams, write),
                    bare=self._sealed,
                    goal=Goal(bound=bound, at_least=True),
                )
            )
        found.append(
            _Contest(
                name="quic_1024k_1",
                title="one stream over QUIC, against one over TCP",
                unit="MB/s",
                ours=self._over_quic,
                bare=functools.partial(self._ours, 1, MIB),
            )
        )
        return found

    async def _raw(self) -> float:
        return await self._timed(functools.partial(bare.send_raw, self.raw))

    async def _sealed(self) -> float:
        return await self._timed(functools.partial(bare.send_sealed, self.sealed))

    async def _batched(self) -> float:
        send = functools.partial(bare.send_sealed, self.sealed, batch=bare.BATCH_FRAMES)
        return await self._timed(send)

    async def _ours(self, streams: int, write: int) -> float:
        async def send_on_each(size: int) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(streams):
                    nursery.start_soon(self._send, size // streams, write)

        return await self._timed(send_on_each)

    async def _over_quic(self) -> float:
        size = max(MIB, self.size // _QUIC_SHARE)
        began = trio.current_time()
        await self._send(size, MIB, self.quic)
        return size / (trio.current_time() - began) / _MEGA

    async def _send(self, size: int, write: int, connection: Connection | None = None) -> None:
        data = bytes(write)
        writes = -(-size // write)
        async with await (connection or self.connection).open_stream([far_end.SINK]) as stream:
            await stream.send_all((writes * write).to_bytes(far_end.COUNT_BYTES, "big"))
            for _ in range(writes):
                await stream.send_all(data)
            await stream.receive_exactly(1)
            await stream.send_all(bytes(far_end.COUNT_BYTES))

    async def _timed(self, send: Callable[[int], Awaitable[None]]) -> float:
        began = trio.current_time()
        await send(self.size)
        return self.size / (trio.current_time() - began) / _MEGA


@dataclass(frozen=True, slots=True)
class _Delays:
    """Round trips and dials: the median of a round."""

    plan: Plan
    there: FarEnd
    connection: Connection
    echo: trio.SocketStream

    def contests(self) -> list[_Contest]:
        return [
            _Contest(
                name="ping",
                title="64 B there and back on an open stream",
                unit="µs",
                ours=self._ping,
                bare=self._bare_ping,
                goal=Goal(bound=2.5, at_least=False),
            ),
            _Contest(
                name="open_stream",
                title="open a stream, 64 B there and back",
                unit="µs",
                ours=self._open,
                bare=self._bare_ping,
                goal=Goal(bound=4, at_least=False),
            ),
            _Contest(
                name="dial",
                title="dial: connected, secured, multiplexed",
                unit="ms",
                ours=self._dial,
                goal=Goal(bound=5, at_least=False),
            ),
        ]

    async def _bare_ping(self) -> float:
        return await _median(self.plan.pings, lambda: bare.ping(self.echo)) / _MICRO

    async def _ping(self) -> float:
        data = bytes(bare.PING_BYTES)
        async with await self.connection.open_stream([far_end.ECHO]) as stream:

            async def once() -> None:
                await stream.send_all(data)
                await stream.receive_exactly(len(data))

            await once()  # the stream's opening is a figure of its own
            return await _median(self.plan.pings, once) / _MICRO

    async def _open(self) -> float:
        data = bytes(bare.PING_BYTES)
        taken = []
        async with await self.connection.open_stream([far_end.ECHO]) as other:
            for _ in range(self.plan.pings):
                began = trio.current_time()
                stream = await self.connection.open_stream([far_end.ECHO])
                await stream.send_all(data)
                await stream.receive_exactly(len(data))
                taken.append(trio.current_time() - began)
                await stream.aclose()
                # Closing is no part of it. When this answer comes, the other side has closed, too.
                await other.send_all(data)
                await other.receive_exactly(len(data))
        return statistics.median(taken) / _MICRO

    async def _dial(self) -> float:
        taken = []
        for _ in range(self.plan.dials):
            async with _own_host() as host:
                began = trio.current_time()
                await host.connect(self.there.peer_id, [self.there.address])
                taken.append(trio.current_time() - began)
        return statistics.median(taken) * 1000


async def _median(count: int, work: Callable[[], Awaitable[None]]) -> float:
    """Do `work` so often; returns the median of its seconds."""
    taken = []
    for _ in range(count):
        began = trio.current_time()
        await work()
        taken.append(trio.current_time() - began)
    return statistics.median(taken)


async def _memory(plan: Plan, there: FarEnd) -> Figure:
    """Open many connections and leave them alone; what each costs the process that accepted it."""
    async with trio.open_nursery() as nursery:
        for _ in range(_WARM_UP_CONNECTIONS):
            await nursery.start(_hold_idle, there)
        await trio.sleep(_SETTLE_TIME)
        before = (await there.usage())["memory"]
        for _ in range(plan.connections):
            await nursery.start(_hold_idle, there)
        await trio.sleep(_SETTLE_TIME)
        after = (await there.usage())["memory"]
        nursery.cancel_scope.cancel()
    return Figure(
        name="idle_memory",
        title="memory of an idle connection",
        unit="kB",
        values=[(after - before) / plan.connections / 1000],
        goal=Goal(bound=40, at_least=False),
    )


async def _hold_idle(
    there: FarEnd, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    raw = await TcpTransport().dial(there.address)
    upgrader = Upgrader(PrivateKey.generate(), NetworkSettings())
    upgraded = await upgrader.outbound(raw, there.peer_id)
    await upgraded.muxer.run(task_status=task_status)


def run_stream(plan: Plan) -> Sequence[Figure]:
    """Measure, in a trio of its own."""
    return trio.run(measure_stream, plan)
