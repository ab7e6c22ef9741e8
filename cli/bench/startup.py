"""What a hosting daemon needs of time and memory, against a bare process with the same weights."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from cli.bench.figures import Figure, Goal
from cli.demo.daemons import START_TIMEOUT, DemoDaemon, wait_until
from p2pnode.errors import LocalError

EXPERTS: Final = 3
_SETTLE_TIME: Final = 2.0  # after it is ready, for what a daemon does once
_MEGA: Final = 1e6
_IMPORT: Final = "import torch"
# The layers of `ffn`, without anything else of this package.
_BARE: Final = """
import sys, torch
from torch import nn
dim, count = map(int, sys.argv[1:])
wide = 4 * dim
kept = [
    nn.Sequential(nn.Linear(dim, wide), nn.LayerNorm(wide), nn.ReLU(), nn.Linear(wide, wide),
                  nn.LayerNorm(wide), nn.ReLU(), nn.Linear(wide, dim))
    for _ in range(count)
]
print("ready", flush=True)
sys.stdin.read()
"""


def startup_figures(place: Path, *, rounds: int, hidden_dim: int) -> list[Figure]:
    """Start a daemon with three `ffn` experts, several times.

    Args:
        place: a folder for what it writes.
        rounds: how often.
        hidden_dim: of the experts.

    Raises:
        LocalError: a process could not start.
    """
    seconds, memory, bare_memory = [], [], []
    for number in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", _IMPORT], check=True)  # noqa: S603  # ourselves
        importing = time.perf_counter() - began
        bare_memory.append(_bare_memory(hidden_dim))
        taken, held = _daemon(place / f"startup-{number}", place, hidden_dim)
        seconds.append(taken - importing)
        memory.append(held)
    return [
        Figure(
            name="ready",
            title=f"from start to serving {EXPERTS} `ffn` experts, beyond importing torch",
            unit="s",
            values=seconds,
            goal=Goal(bound=1.5, at_least=False),
        ),
        Figure(
            name="memory",
            title=f"idle daemon with {EXPERTS} `ffn` experts, against torch with their weights",
            unit="MB",
            values=memory,
            baselines=bare_memory,
            goal=Goal(bound=1.3, at_least=False),
        ),
    ]


def _daemon(data_dir: Path, place: Path, hidden_dim: int) -> tuple[float, float]:
    """Start one; returns the seconds until it was ready, and its megabytes when idle."""
    arguments = [
        *("--log-level", "warning", "--experts", f"bench/ffn.[0:{EXPERTS}]"),
        *("--layer", "ffn", "--hidden-dim", str(hidden_dim)),
        *("--set", "hosting.checkpoint_interval=0"),
    ]
    daemon = DemoDaemon(data_dir.name, data_dir, place, arguments)
    try:
        began = time.perf_counter()
        daemon.start()
        wait_until(daemon.poll, "starting a daemon", START_TIMEOUT)
        taken = time.perf_counter() - began
        time.sleep(_SETTLE_TIME)
        return taken, _held(daemon.process_id)
    finally:
        daemon.kill()  # there is nothing to save


def _bare_memory(hidden_dim: int) -> float:
    command = [sys.executable, "-c", _BARE, str(hidden_dim), str(EXPERTS)]
    with subprocess.Popen(  # noqa: S603  # ourselves
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"ready":
            raise LocalError("a bare process with experts did not start")
        held = _held(process.pid)
        process.communicate()
    return held


def _held(process_id: int) -> float:
    """Return the megabytes a process holds; what it shares with others is shared among them."""
    try:
        lines = Path(f"/proc/{process_id}/smaps_rollup").read_text("ascii").splitlines()
    except OSError as error:
        raise LocalError("this system does not tell what memory a process holds") from error
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("Pss:"))
    return int(kilobytes) * 1024 / _MEGA
