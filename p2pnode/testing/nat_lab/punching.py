"""How often holes are punched through real NATs, and at which attempt.

```
python -m p2pnode.testing.nat_lab.punching --rounds 5 --transport quic --loss 0.01
```

Each round has routers and daemons of its own: a relay, and two machines behind each kind of NAT,
50 ms from each other. Each of the first machines calls each of the second ones over the relay, all
at the same time. It needs what the laboratory needs, docs/nat-lab.md.
"""

import argparse
import contextlib
import itertools
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.errors import P2PNodeError
from p2pnode.testing.daemons import Daemon
from p2pnode.testing.nat_lab.lab import Lab, Machine
from p2pnode.testing.network import Nat

LISTEN: Final = {"tcp": "/ip4/0.0.0.0/tcp/4001", "quic": "/ip4/0.0.0.0/udp/4001/quic-v1"}
DIRECT: Final = 0  # of attempts: the peer could simply be dialled
FAILED: Final = -1
_ONE_WAY: Final = 0.0125  # seconds from each machine to the middle of the internet
_LOOKS_AT_PORTS: Final = {Nat.PORT_RESTRICTED, Nat.SYMMETRIC}
_PATIENCE: Final = 60.0  # seconds for one upgrade, beside all the others
_RELAY: Final = ("relay.server=always", "relay.circuit_bytes=0", "relay.circuit_seconds=0")


def can_be_punched(one: Nat, other: Nat) -> bool:
    """Tell whether either side knows from where the other's packets come, or need not know."""
    return not (
        (one is Nat.SYMMETRIC and other in _LOOKS_AT_PORTS)
        or (other is Nat.SYMMETRIC and one in _LOOKS_AT_PORTS)
    )


def punch_all(folder: Path, transport: str, loss: float, seed: int) -> dict[tuple[Nat, Nat], int]:
    """Punch between all pairs for which that is possible; returns the attempts that each took.

    Args:
        folder: where the daemons keep what they have.
        transport: `tcp` or `quic`.
        loss: the share of packets lost on the way from each machine to the internet.
        seed: which ones.
    """
    with Lab(seed=seed) as lab, contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:

        def start(name: str, machine: Machine, *assignments: str) -> Daemon:
            chosen = [f"--set={each}" for each in ("portmap.mode=off", *assignments)]
            daemon = machine.daemon(folder / name, *chosen, listen=LISTEN[transport])
            return stack.enter_context(daemon)

        relay = start("relay", lab.host(), *_RELAY)

        def start_private(number: int, nat: Nat) -> Daemon:
            machine = lab.router(nat, delay=_ONE_WAY, loss=loss).host()
            hidden = "relay.server=never", "relay.client=always", f"relay.relays={relay.address}"
            daemon = start(f"{number}-{nat.value}", machine, *hidden)
            _until(lambda: "p2p-circuit" in str(_ask(daemon, "status")["addresses"]))
            return daemon

        nats = list(Nat)
        callers = [start_private(number, nat) for number, nat in enumerate(nats)]
        called = [start_private(number, nat) for number, nat in enumerate(nats, len(nats))]

        def meet(one: Daemon, other: Daemon) -> int:
            with contextlib.suppress(P2PNodeError):  # its way may change under its feet
                _ask(one, "ping", peer=f"{relay.address}/p2p-circuit/p2p/{other.peer_id}")
            until = time.monotonic() + _PATIENCE
            while time.monotonic() < until:
                for attempts in _attempts(other, one):
                    return attempts
                time.sleep(0.2)
            return FAILED

        everybody = itertools.product(range(len(nats)), repeat=2)
        pairs = [(i, j) for i, j in everybody if can_be_punched(nats[i], nats[j])]
        found = pool.map(lambda pair: meet(callers[pair[0]], called[pair[1]]), pairs)
        return {(nats[i], nats[j]): took for (i, j), took in zip(pairs, found, strict=True)}


def _ask(daemon: Daemon, method: str, **params: Any) -> Any:
    return call_daemon(DataDir(daemon.data_dir).control_socket, method, **params)


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("a daemon has no reservation at the relay")
        time.sleep(0.1)


def _attempts(daemon: Daemon, other: Daemon) -> Iterator[int]:
    """Yield how many attempts each direct connection took, as the one that was called says."""
    for each in _ask(daemon, "peers"):
        if each["peer_id"] == other.peer_id and each["way"] in {"direct", "punched"}:
            said = re.search(r"attempt (\d+)", each["note"])
            yield int(said[1]) if said else DIRECT


def main() -> int:
    """Measure, and print one line of JSON for each round and for all."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--transport", choices=LISTEN, default="tcp")
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total: Counter[int] = Counter()
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            seed = options.seed + number
            taken = punch_all(Path(folder), options.transport, options.loss, seed)
        total.update(taken.values())
        late = {
            f"{a.value} x {b.value}": took for (a, b), took in taken.items() if took not in (0, 1)
        }
        _print("round", Counter(taken.values()), seed=seed, late=late)
    _print("all", total)
    return 0 if not total[FAILED] else 1


def _print(event: str, counts: Counter[int], **facts: object) -> None:
    punched = sum(count for attempts, count in counts.items() if attempts > 0)
    line = {
        "event": event,
        "dialled": counts[DIRECT],
        "punched": punched,
        "at the first attempt": counts[1],
        "failed": counts[FAILED],
        **facts,
    }
    print(json.dumps(line), flush=True)  # noqa: T201  # a program of its own


if __name__ == "__main__":
    sys.exit(main())
