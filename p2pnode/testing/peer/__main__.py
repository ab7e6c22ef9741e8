"""`python -m p2pnode.testing.peer`: serve other implementations, or check one of them."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import trio

from p2pnode.errors import LocalError, P2PNodeError, first_leaf
from p2pnode.testing.peer.checks.table import TIMEOUT, Outcome, run_checks, table
from p2pnode.testing.peer.checks.target import Target
from p2pnode.testing.peer.node import KAD, Peer, key_from
from p2pnode.wire.addresses import peer_address

EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
MAX_EXIT: Final = 100  # failures are told by the exit code up to here; 126 and up mean other things

_DESCRIPTION: Final = """\
A libp2p node to test other implementations against. It serves identify, identify push, ping, perf,
a DHT, an echo on /echo/1.0.0, and answers ping:X on the gossipsub topic "interop" with pong:X,
until SIGTERM or SIGINT. The first line of its output is
{"event": "ready", "peer": ..., "addrs": [...]}.

With --dial it checks whoever listens there instead: one line of JSON for each check, and the exit
code is the number of failures. AutoNAT and circuit relay will be served once p2pnode has them.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say in one sentence what is wrong with the options."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see --help\n")


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if 0 < seconds < float("inf"):
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def _target(text: str) -> str:
    try:
        peer_address(text)
    except P2PNodeError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _protocol(text: str) -> str:
    if text.startswith("/") and text.isprintable() and " " not in text:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a protocol such as {KAD}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 if it cannot be understood."""
    parser = _Parser(
        prog="python -m p2pnode.testing.peer",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--tcp", type=_port, default=0, metavar="PORT", help="TCP port; 0, the default, is any")
    add(
        "--ws", type=_port, default=0, metavar="PORT", help="WebSocket port; 0, the default, is any"
    )
    add("--ip", default="127.0.0.1", metavar="IP", help="where to listen [127.0.0.1]")
    add("--kad", type=_protocol, default=KAD, metavar="PROTOCOL", help=f"of the DHT [{KAD}]")
    add("--key-type", choices=["ed25519"], default="ed25519", help="kind of identity [ed25519]")
    add("--seed", metavar="TEXT", help="the same text makes the same identity; otherwise random")
    add("--dial", type=_target, metavar="ADDR", help="check who is there: /ip4/.../p2p/ID")
    add("--timeout", type=_seconds, default=TIMEOUT, metavar="S", help=f"of a check [{TIMEOUT:g}]")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the peer; returns the exit code."""
    options = parse(arguments)
    try:
        return trio.run(_run, options)
    except BaseExceptionGroup as group:
        expected, others = group.split((LocalError, KeyboardInterrupt))
        if expected is None or others is not None:
            raise
        error = first_leaf(expected)
        if isinstance(error, KeyboardInterrupt):
            return EXIT_INTERRUPTED
        print(f"python -m p2pnode.testing.peer: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


async def _run(options: argparse.Namespace) -> int:
    peer = Peer(key_from(options.seed), kad=options.kad)
    base = f"/{'ip6' if ':' in options.ip else 'ip4'}/{options.ip}/tcp"
    listen = [f"{base}/{options.tcp}", f"{base}/{options.ws}/ws"]
    failures = 0
    async with trio.open_nursery() as nursery:
        if options.dial is None:
            await nursery.start(_end_on_signal, nursery.cancel_scope)
        await nursery.start(peer.run)
        addresses = await peer.listen(listen)
        if options.dial is None:
            _print({"event": "ready", "peer": str(peer.network.peer_id), "addrs": addresses})
        else:
            failures = await _check(peer, options)
            nursery.cancel_scope.cancel()
    return min(failures, MAX_EXIT)


async def _check(peer: Peer, options: argparse.Namespace) -> int:
    peer_id, address = peer_address(options.dial)

    async def connect() -> None:
        await peer.network.host.connect(peer_id, [address])

    def report(outcome: Outcome) -> None:
        _print(outcome.as_json())

    target = Target(peer=peer, peer_id=peer_id, address=address, connect=connect)
    return await run_checks(target, table(options.kad), report, timeout=options.timeout)


async def _end_on_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
