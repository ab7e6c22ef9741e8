"""`bench weights`: a state to many peers at once, each a process with a disk of its own.

All run on loopback and share this machine's processors. The baseline is one plain copy of the same
file from one process to another in the same round, over the same kind of connection: nothing is
hashed, and nobody else does anything. If a source could do no more than that copy, and nobody but
the sources gave anything, all peers would take as many copies as there are peers for each source.
Where processors are what is short that is out of reach for anybody, so that as many plain copies at
once are measured, too: what is above those is what fetching costs.
"""

import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import trio

from cli.bench import weights_end
from cli.bench.far_end import START_TIMEOUT
from cli.bench.figures import Figure, Goal
from p2pnode.config import RpcSettings
from p2pnode.config.experts import Codec
from p2pnode.errors import LocalError
from p2pnode.host.node import NetworkHost
from p2pnode.rpc.client import TensorClient
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import peer_address
from p2pnode.wire.keys import PrivateKey

_CALL_TIMEOUT: Final = 60.0
_MILLI: Final = 1e-3
_MEGA: Final = 1e6
_SLACK: Final = 1.1  # of a throttle: the first chunks go at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: of each figure.
        size: bytes of the weights, before they are encoded.
        peers: that fetch them at the same time.
        sources: that have them in the beginning.
        codec: in which they are.
        calls: small calls of a source, one after the other, without transfers.
        throttle: bytes a second of one more peer, that is to leave calls alone.
    """

    rounds: int
    size: int
    peers: int
    sources: int
    codec: Codec
    calls: int
    throttle: int


def run_weights(plan: Plan, tell: Callable[[str], None]) -> list[Figure]:
    """Start the processes, measure, and end them.

    Args:
        plan: how much.
        tell: is told what happens.

    Raises:
        LocalError: a process could not start, or ended.
    """
    with tempfile.TemporaryDirectory(prefix="p2pnode-bench-") as place:
        return trio.run(_measure, plan, Path(place), tell)


class _Peer:
    """One process, and the pipe that it is ordered by."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._orders = process.stdin
        self._answers = process.stdout
        self._buffered = b""
        self.address = ""

    @property
    def peer_id(self) -> str:
        """Its peer id, as text."""
        return str(peer_address(self.address)[0])

    async def ask(self, op: str, **order: Any) -> dict[str, Any]:
        """Give an order, and wait for its answer.

        Raises:
            LocalError: the process has ended.
        """
        with contextlib.suppress(trio.BrokenResourceError):  # the answer tells
            await self._orders.send_all(json.dumps({"op": op, **order}).encode() + b"\n")
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        """Wait for a line.

        Raises:
            LocalError: the process has ended.
        """
        while b"\n" not in self._buffered:
            data = await self._answers.receive_some()
            if not data:
                raise LocalError("a process of the benchmark ended; its last words are above")
            self._buffered += data
        line, _, self._buffered = self._buffered.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    async def end(self) -> None:
        """End the process, by force at last."""
        with trio.CancelScope(shield=True):
            await self._orders.aclose()
            with trio.move_on_after(START_TIMEOUT):
                await self._process.wait()
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def _peers(place: Path, settings: Sequence[dict[str, Any]]) -> AsyncIterator[list[_Peer]]:
    """Run a process for each of these settings, connected with all others."""
    found: list[_Peer] = []
    async with contextlib.AsyncExitStack() as ending:
        for number, each in enumerate(settings):
            directory = place / str(number)
            directory.mkdir()
            process = await trio.lowlevel.open_process(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    weights_end.__name__,
                    str(directory),
                    json.dumps(each),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            peer = _Peer(process)
            ending.push_async_callback(peer.end)
            found.append(peer)
        with trio.fail_after(START_TIMEOUT * len(found)):
            for peer in found:
                peer.address = (await peer.hear())["address"]
            for number, peer in enumerate(found):
                await peer.ask("know", addresses=[each.address for each in found[:number]])
        yield found


@dataclass(slots=True)
class _Found:
    """What the rounds have shown."""

    copies: list[float]
    plains: list[float]
    plain_cpu: list[float]
    ones: list[float]
    alls: list[float]
    wasted: list[float]
    cpu: list[float]
    idle: list[list[float]]  # seconds that calls took
    busy: list[list[float]]
    throttled: list[list[float]]
    rates: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Swarm:
    """The processes, and the state that travels."""

    sources: list[_Peer]
    peers: list[_Peer]
    throttled: _Peer
    name: str
    size: int

    async def to_all(self) -> tuple[float, list[dict[str, Any]]]:
        """Let all peers fetch the state, from the sources and each other; tells the wall time."""
        taken: list[dict[str, Any]] = []

        async def fetch(peer: _Peer) -> None:
            others = (each for each in self.peers if each is not peer)
            taken.append(await self.fetch(peer, [*self.sources, *others]))

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for peer in self.peers:
                nursery.start_soon(fetch, peer)
        return time.perf_counter() - began, taken

    async def fetch(self, peer: _Peer, holders: Sequence[_Peer]) -> dict[str, Any]:
        """Let one peer fetch it."""
        return await peer.ask("fetch", name=self.name, holders=[each.peer_id for each in holders])

    async def copy(self, number: int = 0) -> float:
        """Let one peer copy it plainly from the source whose turn it is; returns the seconds."""
        source = self.sources[number % len(self.sources)].peer_id
        answer = await self.peers[number].ask("copy", source=source, size=self.size)
        return float(answer["seconds"])

    async def copies(self) -> float:
        """Let all peers copy it plainly at once; returns the wall time."""
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(len(self.peers)):
                nursery.start_soon(self.copy, number)
        return time.perf_counter() - began

    async def forget(self) -> None:
        """Delete it, but at the sources."""
        for peer in (*self.peers, self.throttled):
            await peer.ask("forget", name=self.name)

    async def cpu(self) -> float:
        """Return the processor seconds of sources and peers so far."""
        usages = [await each.ask("usage") for each in (*self.sources, *self.peers)]
        return sum(float(each["cpu"]) for each in usages)


async def _measure(plan: Plan, place: Path, tell: Callable[[str], None]) -> list[Figure]:
    count = plan.sources + plan.peers
    tell(f"starting {count + 1} processes")
    settings = [*([{}] * count), {"max_download_rate": plan.throttle}]
    found = _Found([], [], [], [], [], [], [], [], [], [], [])
    async with _peers(place, settings) as everybody, trio.open_nursery() as nursery:
        sources = everybody[: plan.sources]
        for source in sources:
            made = await source.ask("make", size=plan.size, codec=plan.codec, seed=0)
        swarm = _Swarm(
            sources=sources,
            peers=everybody[plan.sources : count],
            throttled=everybody[-1],
            name=made["name"],
            size=made["size"],
        )
        host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
        await nursery.start(host.run)
        calls = await _Calls.begun(host, sources[0])
        tell(f"{plan.rounds} rounds of {swarm.size / _MEGA:.0f} MB to {plan.peers} peers")
        for _ in range(plan.rounds):
            await _transfers(found, plan, swarm)
            await _beside_calls(found, plan, swarm, calls)
        nursery.cancel_scope.cancel()
    return _figures(found, plan)


async def _transfers(found: _Found, plan: Plan, swarm: _Swarm) -> None:
    before = await swarm.copy()
    one = await swarm.fetch(swarm.peers[0], swarm.sources[:1])
    await swarm.forget()
    cpu = await swarm.cpu()
    found.plains.append(await swarm.copies())
    found.plain_cpu.append((await swarm.cpu() - cpu) / plan.peers)
    await swarm.forget()
    cpu = await swarm.cpu()
    seconds, taken = await swarm.to_all()
    found.cpu.append((await swarm.cpu() - cpu) / plan.peers)
    await swarm.forget()
    copy = statistics.mean((before, await swarm.copy()))  # just before, and just after
    found.copies.append(copy * plan.peers / plan.sources)
    found.ones.append(one["seconds"] * plan.peers / plan.sources)
    found.alls.append(seconds)
    received = sum(each["received"] for each in taken)
    found.wasted.append(100 * (received / (swarm.size * plan.peers) - 1))


async def _beside_calls(found: _Found, plan: Plan, swarm: _Swarm, calls: "_Calls") -> None:
    found.idle.append(await calls.times(plan.calls))
    found.busy.append(await calls.times_while(swarm.to_all))
    began = time.perf_counter()
    found.throttled.append(
        await calls.times_while(lambda: swarm.fetch(swarm.throttled, swarm.sources))
    )
    found.rates.append(swarm.size / (time.perf_counter() - began) / _MEGA)
    await swarm.forget()


class _Calls:
    """Small calls of an expert that a source hosts, one after the other."""

    def __init__(self, call: Callable[[], Awaitable[object]]) -> None:
        self._call = call

    @classmethod
    async def begun(cls, host: NetworkHost, source: _Peer) -> "_Calls":
        """Connect with the source, and ask for what a call needs."""
        peer_id, address = peer_address(source.address)
        await host.connect(peer_id, [address])
        client = TensorClient(host, RpcSettings(), {weights_end.RUN.name: weights_end.RUN})
        uid = weights_end.NOP
        info = await client.info(peer_id, uid, timeout=_CALL_TIMEOUT)
        x = torch.zeros(1, weights_end.HIDDEN_DIM)
        return cls(lambda: client.forward(peer_id, uid, [x], info=info, timeout=_CALL_TIMEOUT))

    async def times(self, calls: int) -> list[float]:
        """Make so many calls; returns the seconds that each took."""
        return [await self._timed() for _ in range(calls)]

    async def times_while(self, work: Callable[[], Awaitable[object]]) -> list[float]:
        """Make calls as long as some work goes on; returns the seconds that each took."""
        taken: list[float] = []

        async def call() -> None:
            while True:
                taken.append(await self._timed())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await work()
            nursery.cancel_scope.cancel()
        return taken

    async def _timed(self) -> float:
        began = time.perf_counter()
        await self._call()
        return time.perf_counter() - began


def _calls_figure(name: str, title: str, rounds: list[list[float]], found: _Found) -> Figure:
    return Figure(
        name=name,
        title=f"{title}, over idle",
        unit="ms",
        values=[statistics.median(each) / _MILLI for each in rounds],
        baselines=[statistics.median(each) / _MILLI for each in found.idle],
        extra={"p99": _tail(rounds), "baseline_p99": _tail(found.idle)},
    )


def _tail(rounds: list[list[float]]) -> float:
    """Return the median of the rounds' 99th percentiles, in milliseconds."""
    ordered = [sorted(each) for each in rounds]
    return statistics.median(each[math.ceil(0.99 * len(each)) - 1] for each in ordered) / _MILLI


def _figures(found: _Found, plan: Plan) -> list[Figure]:
    each = f"a copy x {plan.peers} / {plan.sources}"
    return [
        Figure(
            name="all",
            title=f"to {plan.peers} peers from {plan.sources}, over {each}",
            unit="s",
            values=found.alls,
            baselines=found.copies,
            goal=Goal(bound=2.0, at_least=False),
            extra={
                "copy_seconds": statistics.median(found.copies) * plan.sources / plan.peers,
                "cpu_seconds_a_peer": statistics.median(found.cpu),
            },
        ),
        Figure(
            name="plain",
            title=f"plain copies to {plan.peers} from {plan.sources} at once, over the same",
            unit="s",
            values=found.plains,
            baselines=found.copies,
            extra={"cpu_seconds_a_peer": statistics.median(found.plain_cpu)},
        ),
        Figure(
            name="fetching",
            title=f"to {plan.peers} peers, over these plain copies",
            unit="s",
            values=found.alls,
            baselines=found.plains,
        ),
        Figure(
            name="one",
            title="one after the other from one source would take, over the same",
            unit="s",
            values=found.ones,
            baselines=found.copies,
        ),
        Figure(
            name="wasted",
            title="bytes received beyond the state",
            unit="%",
            values=found.wasted,
            goal=Goal(bound=5.0, at_least=False),
        ),
        _calls_figure("calls", "small call of a source meanwhile", found.busy, found),
        _calls_figure(
            "calls_throttled",
            f"the same while one peer fetches, throttled to {plan.throttle / _MEGA:g} MB/s",
            found.throttled,
            found,
        ),
        Figure(
            name="throttled",
            title="what the throttled peer got",
            unit="MB/s",
            values=found.rates,
            goal=Goal(bound=plan.throttle / _MEGA * _SLACK, at_least=False),
        ),
    ]
