"""`bench averaging`: real processes reduce tensors over loopback, beside hivemind's averager.

Both sides have as many peers, each with as many parameters, and only reducing is timed: groups are
there when the clock starts, and it stops when the last peer has the result. The two sides take
turns, so that whatever else the machine does meets both. Where it does much, the processor time is
the steadier figure: a side of more processes gets more of a busy machine.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.bench.figures import Figure, Goal
from cli.bench.rival import AskedProcess
from p2pnode.errors import LocalError

CODECS: Final = ("none", "float16")
_TENSORS: Final = 10  # that the parameters are in
_RIVAL: Final = Path(__file__).with_name("averaging_rival.py")
_MILLI: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: of each figure.
        peers: that reduce together.
        parameters: of each, float32.
        hivemind: an interpreter that can import hivemind, to compare with.
    """

    rounds: int
    peers: int
    parameters: int
    hivemind: Path | None


def run_averaging(plan: Plan, tell: Callable[[str], None]) -> list[Figure]:
    """Start the processes, measure, and end them.

    Args:
        plan: how much.
        tell: is told what happens.

    Raises:
        LocalError: a process could not start, or gave a wrong result.
    """
    with tempfile.TemporaryDirectory(prefix="p2pnode-bench-") as name, contextlib.ExitStack() as to:
        place = Path(name)
        tell("starting the peers")
        sides = {"ours": _start_ours(plan, place, to)}
        if plan.hivemind is not None:
            tell("starting hivemind's peers")
            sides["rival"] = _start_rivals(plan, plan.hivemind, place, to)
        wall: dict[tuple[str, str], list[float]] = {}
        work: dict[tuple[str, str], list[float]] = {}
        for number in range(-1, plan.rounds):
            for codec in CODECS:
                for side, peers in sides.items():
                    seconds, computed = _measure(peers, codec, side)
                    if number >= 0:  # the first one warms up
                        wall.setdefault((side, codec), []).append(seconds / _MILLI)
                        work.setdefault((side, codec), []).append(computed / _MILLI)
            tell(f"round {number + 1} of {plan.rounds} is over")
    title = f"{plan.peers} peers average {plan.parameters / 1e6:g} M parameters, codec {{}}"
    beside = ", against hivemind" if plan.hivemind else ""
    figures = []
    for codec in CODECS:
        for name, measured, what in (
            ("averaging", wall, ""),
            ("averaging_work", work, ": processor time of all"),
        ):
            figures.append(
                Figure(
                    name=f"{name}_{codec}",
                    title=title.format(codec) + what + beside,
                    unit="ms",
                    values=measured["ours", codec],
                    baselines=measured.get(("rival", codec), ()),
                    goal=Goal(bound=1.0, at_least=False) if plan.hivemind else None,
                )
            )
    return figures


def _start_ours(plan: Plan, place: Path, to: contextlib.ExitStack) -> Sequence[AskedProcess]:
    command = [sys.executable, "-P", "-m", "cli.bench.averaging_end"]
    command += [str(plan.parameters // _TENSORS), str(_TENSORS)]
    peers = [
        to.enter_context(AskedProcess.started(command, place, f"peer-{number}"))
        for number in range(plan.peers)
    ]
    addresses = [peer.read()["address"] for peer in peers]
    for peer in peers:
        peer.write(addresses)
    return peers


def _start_rivals(
    plan: Plan, python: Path, place: Path, to: contextlib.ExitStack
) -> Sequence[AskedProcess]:
    command = [str(python), str(_RIVAL), str(plan.peers)]
    command += [str(plan.parameters // _TENSORS), str(_TENSORS)]
    peers: list[AskedProcess] = []
    addresses: list[str] = []
    for number in range(plan.peers):
        name = f"hivemind-{number}"
        peers.append(
            to.enter_context(AskedProcess.started([*command, *addresses[:1]], place, name))
        )
        addresses.append(peers[-1].read()["address"])
    return peers


def _measure(peers: Sequence[AskedProcess], codec: str, side: str) -> tuple[float, float]:
    """Let all peers reduce; returns the slowest one's seconds, and the processor's for all."""
    for number, peer in enumerate(peers):
        peer.write({"codec": codec, "value": float(number)})
    for peer in peers:
        peer.read()
    before = sum(peer.processor_seconds() for peer in peers)
    for peer in peers:
        peer.write({})
    answers = [peer.read() for peer in peers]
    computed = sum(peer.processor_seconds() for peer in peers) - before
    wanted = (len(peers) - 1) / 2
    for answer in answers:
        if abs(answer["value"] - wanted) > 0.01 * len(peers):
            raise LocalError(f"a peer of {side} got {json.dumps(answer)}, not {wanted:g}")
    return max(float(answer["seconds"]) for answer in answers), computed
