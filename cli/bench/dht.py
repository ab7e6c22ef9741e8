"""`bench dht`: real daemons on loopback; how long storing and finding takes, and what is found.

Every request comes from a daemon drawn at random, and one at a time, so that a figure is the time
of one and not of a queue. A value is found from another daemon than the one that stored it; an
expert, from a daemon that has not looked for its neighbours yet.
"""

import base64
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cli.bench.figures import Figure, Goal
from cli.demo.daemons import DemoDaemon, ending, wait_until
from p2pnode.daemon.control.client import call_daemon
from p2pnode.errors import NotFoundError
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid, expand

RUN: Final = "bench"
EXPERTS_EACH: Final = 16
START_TIMEOUT: Final = 30.0  # and this much more for each daemon, when all start at once:
START_TIMEOUT_EACH: Final = 3.0
KNOWN_PEERS: Final = 10  # each daemon knows so many, or all there are, before anything is measured
_ALL: Final = Goal(bound=100, at_least=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        daemons: processes.
        values: stored and found.
        hosts: daemons that host experts.
        seed: of what is drawn.
    """

    daemons: int
    values: int
    hosts: int
    seed: int


def run_dht(plan: Plan, tell: Callable[[str], None]) -> list[Figure]:
    """Start the daemons, measure, and end them.

    Args:
        plan: how much.
        tell: is told what happens.

    Raises:
        LocalError: a daemon could not start.
        DeadlineExceededError: the daemons did not find together.
    """
    rng = random.Random(plan.seed)
    with tempfile.TemporaryDirectory(prefix="p2pnode-bench-") as place:
        daemons = [_daemon(number, Path(place), plan) for number in range(plan.daemons)]
        with ending(daemons):
            tell(f"starting {plan.daemons} daemons")
            seconds = _start(daemons)
            tell(f"ready after {seconds:.1f} s; storing and finding {plan.values} values")
            figures = [Figure(name="start", title="start all, joined", unit="s", values=[seconds])]
            figures += _values(daemons, plan.values, rng)
            if plan.hosts:
                tell(f"looking for {EXPERTS_EACH * plan.hosts} experts")
                figures += _experts(daemons[plan.hosts :], plan.hosts, rng)
    return figures


def _daemon(number: int, place: Path, plan: Plan) -> DemoDaemon:
    arguments = ["--log-level", "warning"]
    if number < plan.hosts:
        arguments += ["--experts", f"{RUN}/ffn.{number}.[0:{EXPERTS_EACH}]", "--hidden-dim", "8"]
    return DemoDaemon(f"daemon-{number}", place / f"daemon-{number}", place, arguments)


def _start(daemons: Sequence[DemoDaemon]) -> float:
    """Start one and then the others, which join through it; returns the seconds it took."""
    began = time.monotonic()
    patience = START_TIMEOUT + START_TIMEOUT_EACH * len(daemons)
    first, *others = reversed(daemons)  # one that hosts nothing is ready soon
    first.start()
    wait_until(first.poll, "starting the first daemon", patience)
    for daemon in others:
        daemon.join(first.address)
        daemon.start()
    wait_until(lambda: all(_poll(daemons)), "starting the daemons", patience)
    enough = min(KNOWN_PEERS, len(daemons) - 1)
    wait_until(
        lambda: all(len(_ask(each, "dht.peers")) >= enough for each in daemons),
        "joining the DHT",
        patience,
    )
    return time.monotonic() - began


def _poll(daemons: Sequence[DemoDaemon]) -> list[bool]:
    """Ask each whether it is ready; one that cannot start is told of at once."""
    return [each.poll() for each in daemons]


def _values(daemons: Sequence[DemoDaemon], count: int, rng: random.Random) -> list[Figure]:
    """Store public keys under the ids of their owners, and find them."""
    stored: list[tuple[DemoDaemon, str, str]] = []
    putting: list[float] = []
    for _ in range(count):
        key = PrivateKey.from_seed(rng.randbytes(32)).public_key
        name, value = f"/pk/{key.peer_id}", base64.b64encode(key.protobuf).decode("ascii")
        daemon = rng.choice(daemons)
        putting.append(_ask(daemon, "dht.put", key=name, value=value)["seconds"])
        stored.append((daemon, name, value))
    getting: list[float] = []
    for storer, name, value in stored:
        asker = rng.choice([each for each in daemons if each is not storer])
        try:
            found = _ask(asker, "dht.get", key=name)
        except NotFoundError:
            continue
        if found["value"] == value:
            getting.append(found["seconds"])
    return [
        *_percentiles("store", "store a value", putting),
        *_percentiles("get", "find a value", getting),
        _share("values_found", "values found", len(getting), count),
    ]


def _experts(askers: Sequence[DemoDaemon], hosts: int, rng: random.Random) -> list[Figure]:
    """Find each expert from a daemon that hosts none and has not asked for its row."""
    taken: list[float] = []
    total = 0
    for row in range(hosts):
        experts = expand(f"ffn.{row}.[0:{EXPERTS_EACH}]", RUN)
        for expert, asker in zip(experts, _shuffled(askers, rng), strict=False):
            total += 1
            began = time.perf_counter()
            if _is_found(asker, expert):
                taken.append(time.perf_counter() - began)
    return [
        *_percentiles("find", "find an expert", taken),
        _share("experts_found", "experts found", len(taken), total),
    ]


def _shuffled(askers: Sequence[DemoDaemon], rng: random.Random) -> Iterator[DemoDaemon]:
    """Return each once, in any order, and all again and again."""
    while True:
        yield from rng.sample(askers, len(askers))


def _is_found(asker: DemoDaemon, expert: Uid) -> bool:
    (found,) = _ask(asker, "find", patterns=[str(expert)])
    return bool(found["hosts"])


def _ask(daemon: DemoDaemon, method: str, **params: Any) -> Any:
    return call_daemon(daemon.data_dir.control_socket, method, **params)


def _percentiles(name: str, title: str, seconds: Sequence[float]) -> list[Figure]:
    """Return the median, with the range, and the 99th percentile; nothing of nothing."""
    if not seconds:
        return []
    ordered = sorted(1000 * each for each in seconds)
    p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return [
        Figure(name=f"{name}_p50", title=f"{title}, median", unit="ms", values=ordered),
        Figure(name=f"{name}_p99", title=f"{title}, 99th percentile", unit="ms", values=[p99]),
    ]


def _share(name: str, title: str, found: int, total: int) -> Figure:
    return Figure(name=name, title=title, unit="%", values=[100 * found / total], goal=_ALL)
