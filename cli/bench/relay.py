"""`bench relay`: bytes that go through a relay, beside the same bytes over a direct connection.

Source, relay and target are processes of their own on loopback. Where all three share two
processors, the clock tells little; so what counts is the processor time of whichever of them has
most to do: had each a core of its own, that one would set the pace.
"""

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from cli.bench import far_end
from cli.bench.figures import Figure, Goal
from cli.bench.near_end import End, run_end
from cli.bench.relay_end import relayed_host
from p2pnode.config import MIB
from p2pnode.host import Connection
from p2pnode.host.node import NetworkHost
from p2pnode.wire.addresses import parse_address, with_p2p

_MEGA: Final = 1e6
_GIGA: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: of each figure.
        size: bytes of one transfer.
    """

    rounds: int
    size: int


@dataclass(slots=True)
class _Way:
    """A way to the target, and what transfers over it took."""

    connection: Connection
    rates: list[float] = field(default_factory=list)  # MB/s by the clock
    paces: list[float] = field(default_factory=list)  # MB for each second of the busiest process
    work: list[list[float]] = field(default_factory=list)  # s/GB of source, relay and target


async def measure_relay(plan: Plan) -> list[Figure]:
    """Measure all figures.

    Raises:
        LocalError: another process could not start.
    """
    async with (
        run_end(End, "cli.bench.relay_end") as relay,
        run_end(End, "cli.bench.relay_end", str(with_p2p(relay.address, relay.peer_id))) as target,
        _host() as one,
        _host() as other,
    ):
        direct = _Way(await one.connect(target.peer_id, [target.address]))
        way = parse_address(target.facts["relayed"])
        relayed = _Way(await other.connect(target.peer_id, [way]))
        assert relayed.connection.is_relayed
        for number in range(plan.rounds):
            for each in (direct, relayed) if number % 2 else (relayed, direct):
                await _transfer(each, plan.size, relay, target)
    return _figures(direct, relayed)


@contextlib.asynccontextmanager
async def _host() -> AsyncIterator[NetworkHost]:
    async with trio.open_nursery() as nursery:
        host, _ = relayed_host()
        await nursery.start(host.run)
        yield host
        nursery.cancel_scope.cancel()


async def _transfer(way: _Way, size: int, relay: End, target: End) -> None:
    async def used() -> list[float]:
        there = [await relay.processor_seconds(), await target.processor_seconds()]
        return [time.process_time(), *there]

    data = bytes(MIB)
    async with await way.connection.open_stream([far_end.SINK]) as stream:
        before = await used()
        began = trio.current_time()
        await stream.send_all(size.to_bytes(far_end.COUNT_BYTES, "big"))
        for _ in range(size // MIB):
            await stream.send_all(data)
        await stream.receive_exactly(1)
        seconds = trio.current_time() - began
        work = [now - then for now, then in zip(await used(), before, strict=True)]
        await stream.send_all(bytes(far_end.COUNT_BYTES))
    way.rates.append(size / seconds / _MEGA)
    way.paces.append(size / max(work) / _MEGA)
    way.work.append([each / size * _GIGA for each in work])


def _figures(direct: _Way, relayed: _Way) -> list[Figure]:
    figure = functools.partial(Figure, unit="MB/s")
    found = [
        figure(
            name="relayed",
            title="through a relay, one core each: by the busiest one's processor time",
            values=relayed.paces,
            baselines=direct.paces,
            goal=Goal(bound=0.5, at_least=True),
        ),
        figure(
            name="relayed_clock",
            title="the same by the clock, on the processors that there are",
            values=relayed.rates,
            baselines=direct.rates,
        ),
    ]
    for index, who in enumerate(("source", "relay", "target")):
        beside = [each[index] for each in direct.work] if who != "relay" else ()
        found.append(
            Figure(
                name=f"work_{who}",
                title=f"processor time of the {who}, against that of a direct connection",
                unit="s/GB",
                values=[each[index] for each in relayed.work],
                baselines=beside,
            )
        )
    return found


def run_relay(plan: Plan) -> Sequence[Figure]:
    """Measure, in a trio of its own."""
    return trio.run(measure_relay, plan)
