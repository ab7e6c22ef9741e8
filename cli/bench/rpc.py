"""`bench rpc`: experts served by real daemons, against the same work done here.

Daemons and this process talk over loopback. A figure's baseline is taken right before or after it:
the bare encrypted pipe for what only moves bytes, the same experts in this process for what
computes, a bare process with the same weights for memory. With an interpreter that has hivemind,
the same calls of the same experts are made there, too, turn by turn with ours.
"""

import contextlib
import functools
import math
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
import trio

from cli.bench import bare
from cli.bench.figures import Figure, Goal
from cli.bench.near_end import run_far_end
from cli.bench.processor import processor_seconds
from cli.bench.rival import Hivemind
from cli.bench.startup import startup_figures
from cli.demo.daemons import START_TIMEOUT, DemoDaemon, wait_until
from p2pnode.config import MIB, HostingSettings, Settings
from p2pnode.experts.backend import ExpertBackend, build_backend
from p2pnode.host.node import NetworkHost
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.security.tokens import Membership
from p2pnode.trainer.connect import Trainer, connect
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import peer_address
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

RUN: Final = "bench"
NOP: Final = "nop"
FFN: Final = "ffn"
OPTIMIZER: Final = "sgd"  # what hivemind is measured with here; its state needs no memory
BULK_BYTES: Final = 64 * MIB
_WARM_UP_CALLS: Final = 50
_BULKS: Final = 3  # large calls in a round
_COMPARED: Final = 5  # calls of a large expert in a round
_CONNECTIONS: Final = 16
_TIMEOUT: Final = 60.0
_MILLI: Final = 1e-3
_MEGA: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: of each figure.
        calls: small calls, one after the other, in one round.
        seconds: of concurrent calls in one round.
        callers: at once, each with an expert of its own.
        hidden_dim: width of the experts.
        rows: of the batches that are computed.
        threads: of torch, for one operation, in the hosts and here.
        hivemind: an interpreter that can import hivemind, to compare with.
    """

    rounds: int
    calls: int
    seconds: float
    callers: int
    hidden_dim: int
    rows: int
    threads: int
    hivemind: Path | None


def run_rpc(plan: Plan, tell: Callable[[str], None]) -> list[Figure]:
    """Start the daemons, measure, and end them.

    Args:
        plan: how much.
        tell: is told what happens.

    Raises:
        LocalError: a process could not start.
    """
    torch.set_num_threads(plan.threads)
    with tempfile.TemporaryDirectory(prefix="p2pnode-bench-") as name, contextlib.ExitStack() as to:
        place = Path(name)
        tell("starting daemons, and bare processes beside them")
        figures = startup_figures(place, rounds=plan.rounds, hidden_dim=plan.hidden_dim)
        nops = to.enter_context(_daemon(NOP, place, plan))
        ffns = to.enter_context(_daemon(FFN, place, plan))
        tell("measuring single calls")
        figures += trio.run(_single_calls, plan, nops.address, ffns.address)
        rival = None
        if plan.hivemind is not None:
            tell("starting hivemind")
            rival = to.enter_context(
                Hivemind.started(
                    plan.hivemind,
                    place,
                    callers=plan.callers,
                    hidden_dim=plan.hidden_dim,
                    threads=plan.threads,
                )
            )
        tell(f"measuring {plan.callers} callers at once")
        figures += _at_once(plan, nops, ffns, rival)
    return figures


@contextlib.contextmanager
def _daemon(layer: str, place: Path, plan: Plan) -> Iterator[DemoDaemon]:
    """Run a daemon with an expert for each caller."""
    arguments = [
        *("--log-level", "warning", "--experts", f"{RUN}/{layer}.[0:{plan.callers}]"),
        *("--layer", layer, "--hidden-dim", str(plan.hidden_dim)),
        *("--set", f"hosting.optimizer={OPTIMIZER}", "--set", "hosting.checkpoint_interval=0"),
        *("--set", f"hosting.threads={plan.threads}"),
    ]
    daemon = DemoDaemon(layer, place / layer, place, arguments)
    try:
        daemon.start()
        wait_until(daemon.poll, f"starting the daemon of the {layer} experts", START_TIMEOUT)
        yield daemon
    finally:
        daemon.kill()  # there is nothing to save


def local_experts(layer: str, count: int, hidden_dim: int) -> list[ExpertBackend]:
    """Build the experts that a daemon hosts, in this process."""
    settings = HostingSettings(layer=layer, hidden_dim=hidden_dim, optimizer=OPTIMIZER)
    return [build_backend(Uid(RUN, f"{layer}.{number}"), settings) for number in range(count)]


# --- one call after the other ---------------------------------------------------------------------


class _Caller:
    """Calls one expert, as a trainer's network side does."""

    def __init__(self, client: TensorClient, peer_id: PeerId, uid: Uid, info: ExpertInfo) -> None:
        self._client = client
        self._peer_id = peer_id
        self._uid = uid
        self._info = info

    async def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Make one call."""
        outputs = await self._client.forward(
            self._peer_id, self._uid, [x], info=self._info, timeout=_TIMEOUT
        )
        return outputs[0]


async def _single_calls(plan: Plan, nops: str, ffns: str) -> list[Figure]:
    figures: list[Figure] = []
    async with run_far_end(_CONNECTIONS) as far, trio.open_nursery() as nursery:
        host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
        await nursery.start(host.run)
        client = TensorClient(host, Settings().rpc, {RUN: Membership.open(RUN)})
        nop = await _caller(host, client, nops, Uid(RUN, f"{NOP}.0"))
        ffn = await _caller(host, client, ffns, Uid(RUN, f"{FFN}.0"))
        async with await far.connect("sealed") as pipe, await far.connect("echo") as echo:
            figures += await _small(plan, nop, echo)
            figures += await _overheads(plan, nop, ffn, pipe)
            figures.append(await _bulk(plan, nop, pipe))
        nursery.cancel_scope.cancel()
    return figures


async def _caller(host: NetworkHost, client: TensorClient, address: str, uid: Uid) -> _Caller:
    peer_id, multiaddr = peer_address(address)
    await host.connect(peer_id, [multiaddr])
    return _Caller(client, peer_id, uid, await client.info(peer_id, uid, timeout=_TIMEOUT))


async def _small(plan: Plan, nop: _Caller, echo: trio.SocketStream) -> list[Figure]:
    x = torch.randn(1, plan.hidden_dim)
    for _ in range(_WARM_UP_CALLS):
        await nop.forward(x)
    medians, tails, pings = [], [], []
    for _ in range(plan.rounds):
        pings.append(statistics.median([await _timed(bare.ping, echo) for _ in range(plan.calls)]))
        taken = sorted([await _timed(nop.forward, x) for _ in range(plan.calls)])
        medians.append(statistics.median(taken) / _MILLI)
        tails.append(taken[math.ceil(0.99 * len(taken)) - 1] / _MILLI)
    title = f"forward of `nop`, 1 x {plan.hidden_dim}"
    return [
        Figure(
            name="small_p50",
            title=f"{title}, median",
            unit="ms",
            values=medians,
            goal=Goal(bound=0.7, at_least=False),
            extra={"bare_ping_ms": statistics.median(pings) / _MILLI},
        ),
        Figure(
            name="small_p99",
            title=f"{title}, 99th percentile",
            unit="ms",
            values=tails,
            goal=Goal(bound=2.0, at_least=False),
        ),
    ]


async def _overheads(
    plan: Plan, nop: _Caller, ffn: _Caller, pipe: trio.SocketStream
) -> list[Figure]:
    """What a call costs beyond computing and moving the same bytes both ways."""
    x = torch.randn(plan.rows, plan.hidden_dim)
    found = []
    for caller, layer in ((nop, NOP), (ffn, FFN)):
        (local,) = local_experts(layer, 1, plan.hidden_dim)
        over: list[float] = []
        for number in range(-1, plan.rounds):  # the first one warms up
            remote, here, wire = [], [], []
            for _ in range(_COMPARED):
                wire.append(await _timed(functools.partial(bare.send_sealed, pipe), x.nbytes))
                remote.append(await _timed(caller.forward, x))
                began = time.perf_counter()
                local.forward([x])
                here.append(time.perf_counter() - began)
            median = statistics.median
            if number >= 0:
                over.append((median(remote) - median(here) - 2 * median(wire)) / _MILLI)
        found.append(
            Figure(
                name=f"overhead_{layer}",
                title=f"forward of `{layer}`, {plan.rows} x {plan.hidden_dim}: over local and wire",
                unit="ms",
                values=over,
                goal=Goal(bound=1.0, at_least=False),
            )
        )
    return found


async def _bulk(plan: Plan, nop: _Caller, pipe: trio.SocketStream) -> Figure:
    rows = min(BULK_BYTES // 4 // plan.hidden_dim, HostingSettings().max_batch_rows)
    x = torch.randn(rows, plan.hidden_dim)
    rates, limits = [], []
    for number in range(-1, plan.rounds):
        there = [
            await _timed(functools.partial(bare.send_sealed, pipe), 2 * x.nbytes)
            for _ in range(_BULKS)
        ]
        back = [await _timed(nop.forward, x) for _ in range(_BULKS)]
        if number >= 0:
            limits.append(2 * x.nbytes / statistics.median(there) / _MEGA)
            rates.append(2 * x.nbytes / statistics.median(back) / _MEGA)
    return Figure(
        name="bulk",
        title=f"forward of `nop`, {x.nbytes // MIB} MiB in and out, against the encrypted pipe",
        unit="MB/s",
        values=rates,
        baselines=limits,
        goal=Goal(bound=0.5, at_least=True),
    )


async def _timed(work: Callable[..., Awaitable[object]], *args: object) -> float:
    began = time.perf_counter()
    await work(*args)
    return time.perf_counter() - began


# --- many at once ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Rates:
    """What came of one kind of work, in each round."""

    a_second: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # seconds for one, of all who took part

    def measure(self, work: Callable[[], float], computed: Callable[[], float]) -> None:
        """Do the work once more, which tells how often it was done in a second."""
        before, began = computed(), time.perf_counter()
        rate = work()
        done = rate * (time.perf_counter() - began)
        self.a_second.append(rate)
        self.processor.append((computed() - before) / done)


def _at_once(
    plan: Plan, nops: DemoDaemon, ffns: DemoDaemon, rival: Hivemind | None
) -> list[Figure]:
    """Let callers in threads use modules, as training code does."""
    local = local_experts(FFN, plan.callers, plan.hidden_dim)
    found: defaultdict[str, _Rates] = defaultdict(_Rates)

    def ours() -> float:
        daemons = (nops.process_id, ffns.process_id)
        return time.process_time() + sum(map(processor_seconds, daemons))

    with connect([nops.address, ffns.address], run=RUN) as trainer:
        measured: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
            "calls": (lambda: _calls_per_second(plan, trainer), ours),
            "samples": (lambda: _samples_per_second(plan, trainer), ours),
            "local": (lambda: _local_samples_per_second(plan, local), ours),
        }
        if rival is not None:
            theirs = rival.processor_seconds
            measured |= {
                "rival_calls": (lambda: rival.calls_per_second(plan.seconds), theirs),
                "rival_samples": (
                    lambda: rival.samples_per_second(plan.rows, plan.seconds),
                    theirs,
                ),
            }
        for number in range(-1, plan.rounds):
            for name, (measure, computed) in measured.items():
                # The first round warms up.
                (found[name] if number >= 0 else _Rates()).measure(measure, computed)
    figures = [
        Figure(
            name="calls",
            title=f"{plan.callers} callers, `nop` forward, 1 x {plan.hidden_dim}"
            + (", against hivemind" if rival else ""),
            unit="1/s",
            values=found["calls"].a_second,
            baselines=found["rival_calls"].a_second,
            goal=Goal(bound=4.0, at_least=True) if rival else None,
        )
    ]
    work = f"{plan.callers} callers, `ffn` forward and backward, {plan.rows} x {plan.hidden_dim}"
    rivals = [("local", "this process", 0.9)] + [("rival_samples", "hivemind", 1.0)] * bool(rival)
    for name, rival_name, bound in rivals:
        suffix = "" if name == "local" else "_hivemind"
        figures += [
            Figure(
                name=f"samples{suffix}",
                title=f"{work}, against {rival_name}",
                unit="rows/s",
                values=found["samples"].a_second,
                baselines=found[name].a_second,
                goal=Goal(bound=bound, at_least=True),
            ),
            Figure(
                name=f"samples_work{suffix}",
                title="the same, processor time of a row, trainer and host",
                unit="ms",
                values=[each / _MILLI for each in found["samples"].processor],
                baselines=[each / _MILLI for each in found[name].processor],
            ),
        ]
    return figures


def _calls_per_second(plan: Plan, trainer: Trainer) -> float:
    experts = [trainer.expert(f"{NOP}.{number}") for number in range(plan.callers)]
    x = torch.randn(1, plan.hidden_dim)

    def call(number: int) -> None:
        with torch.no_grad():
            experts[number](x)

    return _rate(call, plan.callers, plan.seconds)


def _samples_per_second(plan: Plan, trainer: Trainer) -> float:
    experts = [trainer.expert(f"{FFN}.{number}") for number in range(plan.callers)]
    x, gradient = _batch(plan)

    def step(number: int) -> None:
        experts[number](x.detach().requires_grad_()).backward(gradient)

    return plan.rows * _rate(step, plan.callers, plan.seconds)


def _local_samples_per_second(plan: Plan, experts: Sequence[ExpertBackend]) -> float:
    """Do what the host does for the same callers, one batch after the other."""
    x, gradient = _batch(plan)
    done, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < plan.seconds or done < len(experts):
        expert = experts[done % len(experts)]
        expert.forward([x])
        expert.backward([x], [gradient])
        done += 1
    return plan.rows * done / taken


def _batch(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (plan.rows, plan.hidden_dim)
    return torch.randn(shape), torch.randn(shape) / plan.rows / 1000  # so small that nothing drifts


def _rate(work: Callable[[int], None], callers: int, seconds: float) -> float:
    """Let each caller work in a thread for so long; returns how often all did, in a second."""
    start = threading.Barrier(callers + 1)
    done = [0] * callers
    failures: list[BaseException] = []

    def run(number: int) -> None:
        start.wait()
        try:
            while time.perf_counter() - began < seconds:
                work(number)
                done[number] += 1
        except BaseException as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    start.wait()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - began
    if failures:
        raise failures[0]
    return sum(done) / taken
