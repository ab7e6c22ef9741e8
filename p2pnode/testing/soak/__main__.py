"""`python -m p2pnode.testing.soak`: see the package; prints lines of JSON, the verdict last."""

import argparse
import functools
import json
import random
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
import trio
from prometheus_client.parser import text_string_to_metric_families

from p2pnode.testing.daemons import Daemon
from p2pnode.testing.soak.growth import Sample, growth
from p2pnode.testing.soak.trainers import FFN, NOP, WIDTH, Outcomes, come_and_go
from p2pnode.wire.addresses import peer_address

SETTLE_TIME: Final = 5.0  # seconds after a wave, for connections to end and records to be saved
# What a node does now and then is done often, and what it remembers is bounded so that the bounds
# are met within the first waves.
SETTINGS: Final = (
    "hosting.update_period=2",
    "hosting.checkpoint_interval=5",
    "hosting.replay_window_calls=512",
    "hosting.replay_window_bytes=1048576",
    "network.max_peerstore_peers=50",
    "network.peerstore_save_interval=2",
)


@contextmanager
def _daemons(folder: Path) -> Iterator[Daemon]:
    """Start the daemon that is called; another one that it knows keeps its DHT at work."""
    common = [word for each in SETTINGS for word in ("--set", each)]
    with (
        Daemon(folder / "other", *common) as other,
        Daemon(
            folder / "soaked",
            *common,
            *("--bootstrap", other.address, "--metrics", "127.0.0.1:0", "--log-level", "warning"),
            *("--experts", NOP, "--layer", "nop", "--hidden-dim", WIDTH),
            command="host",
        ) as daemon,
    ):
        daemon.ask("host", "--experts", FFN, "--layer", "ffn", "--hidden-dim", WIDTH)
        yield daemon


def _sample(url: str) -> Sample:
    with urllib.request.urlopen(url, timeout=30) as page:  # noqa: S310  # the daemon's own
        families = text_string_to_metric_families(page.read().decode())
    found = {each.name: each.value for family in families for each in family.samples}
    return Sample(
        memory=found["process_resident_memory_bytes"],
        tasks=found["p2pnode_tasks"],
        files=found["process_open_fds"],
    )


async def _soak(calls: int, waves: int, trainers: int, malformed: float, seed: int) -> bool:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    outcomes = Outcomes()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, _daemons(Path(folder)) as daemon:
        url = f"http://{daemon.ask('status')['metrics']}/metrics"
        peer_id, address = peer_address(daemon.address)
        began = trio.current_time()
        for wave in range(1, waves + 1):
            outcomes.wanted = calls * wave // waves
            async with trio.open_nursery() as nursery:
                for _ in range(trainers):
                    come = functools.partial(come_and_go, malformed=malformed)
                    own = random.Random(rng.random())
                    nursery.start_soon(come, peer_id, address, outcomes, own)
            await trio.sleep(SETTLE_TIME)
            samples.append(_sample(url))
            seconds = round(trio.current_time() - began, 1)
            line = {"wave": wave, "seconds": seconds, "calls": outcomes.begun}
            print(json.dumps(line | asdict(samples[-1])), flush=True)
        ended = daemon.terminate()
    if ended:
        outcomes.faults[f"the daemon ended with {ended}"] += 1
    grown = growth(samples)
    ok = not (grown or outcomes.faults)
    print(json.dumps(outcomes.describe() | {"grown": grown, "ok": ok}))
    return ok


def main() -> None:
    """Read the command line, and do it; the exit code is 1 if anything leaked or went wrong."""
    parser = argparse.ArgumentParser(prog="python -m p2pnode.testing.soak", description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--waves", type=int, default=24)
    parser.add_argument("--trainers", type=int, default=8, help="at once")
    parser.add_argument("--malformed", type=float, default=0.01, help="share of the calls")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ok = trio.run(_soak, given.calls, given.waves, given.trainers, given.malformed, given.seed)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
