"""The other process of a benchmark: `python -m cli.bench.far_end`.

It prints one line of JSON with its ports and address, serves whoever measures, and ends with the
connection to its control port, or when nobody connects there.
"""

import contextlib
import functools
import gc
import json
import mmap
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from cli.bench import bare
from cli.output import print_event
from p2pnode.config import LimitSettings
from p2pnode.host import Stream
from p2pnode.host.node import NetworkHost
from p2pnode.security.tls import TlsIdentity
from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import quic_address, tcp_address, with_p2p
from p2pnode.wire.keys import PrivateKey

ECHO: Final = "/p2pnode/bench/echo/1.0.0"
SINK: Final = "/p2pnode/bench/sink/1.0.0"
HOST: Final = "127.0.0.1"
ASK_ALL: Final = b"?"  # of what a process uses
ASK_TIME: Final = b"t"  # how long it has computed
COUNT_BYTES: Final = 8
START_TIMEOUT: Final = 30.0
_PIECE_BYTES: Final = 1024 * 1024  # what a reader asks for at once, like a tensor's buffer
_Serve = Callable[[trio.SocketStream], Awaitable[None]]
_STATM: Final = Path("/proc/self/statm")
_BARE: Final = {
    "echo": bare.serve_echo,
    "raw": bare.serve_raw,
    "sealed": bare.serve_sealed,
}


def usage() -> dict[str, float]:
    """Return this process's processor seconds and resident bytes (0 where nobody tells)."""
    return {"cpu": time.process_time(), "memory": _resident_bytes()}


def _resident_bytes() -> int:
    gc.collect()
    try:
        pages = int(_STATM.read_text("ascii").split()[1])
    except OSError:  # not Linux: no other way to ask without a further dependency
        return 0
    return pages * mmap.PAGESIZE


async def echo(stream: Stream) -> None:
    """Send back whatever comes."""
    while data := await stream.receive_some():
        await stream.send_all(data)


async def sink(stream: Stream) -> None:
    """Take as many bytes as announced, and say when they have come; again and again."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while size := int.from_bytes(await stream.receive_exactly(COUNT_BYTES), "big"):
        while size:
            piece = buffer[:size]
            await stream.receive_into(piece)
            size -= len(piece)
        await stream.send_all(bare.DONE)


async def serve_usage(stream: trio.SocketStream, leave: trio.CancelScope) -> None:
    """Tell whoever measures what this process uses, until it has had enough."""
    while question := await stream.receive_some(1):
        # To count memory takes garbage collection, and so processor time.
        found = usage() if question == ASK_ALL else {"cpu": time.process_time()}
        await stream.send_all(json.dumps(found).encode() + b"\n")
    leave.cancel()


async def _serve(max_connections: int) -> None:
    limits = LimitSettings(
        low_water=max_connections,
        high_water=max_connections,
        max_connections=max_connections,
        max_inbound_connections=max_connections,
        max_connections_per_peer=max_connections,
    )
    key = PrivateKey.generate()
    transports = [TcpTransport(), QuicTransport(TlsIdentity(key))]
    host = NetworkHost(key, transports=transports, limits=limits)
    host.set_handler(ECHO, echo)
    host.set_handler(SINK, sink)
    facts: dict[str, Any] = {}
    async with trio.open_nursery() as nursery:
        deadline = trio.current_time() + START_TIMEOUT

        async def control(stream: trio.SocketStream) -> None:
            nursery.cancel_scope.deadline = float("inf")
            await serve_usage(stream, nursery.cancel_scope)

        nursery.cancel_scope.deadline = deadline
        await nursery.start(host.run)
        for name, serve in {**_BARE, "control": control}.items():
            listeners = await nursery.start(
                functools.partial(trio.serve_tcp, _forgiving(serve), 0, host=HOST)
            )
            facts[name] = listeners[0].socket.getsockname()[1]
        (address,) = await host.listen(tcp_address(HOST, 0))
        (facts["quic"],) = map(str, await host.listen(quic_address(HOST, 0)))
        print_event("ready", address=str(with_p2p(address, host.peer_id)), **facts)


def _forgiving(serve: _Serve) -> _Serve:
    async def served(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # whoever measures has had enough
            await serve(stream)

    return served


if __name__ == "__main__":
    trio.run(_serve, int(sys.argv[1]))
