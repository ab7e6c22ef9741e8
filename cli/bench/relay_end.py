"""The other processes of `bench relay`: `python -m cli.bench.relay_end [RELAY]`.

Without an argument it is a relay without limits. With the address of one it takes connections
through that relay, and at its own address, and takes what it is sent.
"""

import contextlib
import functools
import sys
from typing import Any, Final

import trio

from cli.bench import far_end
from cli.output import print_event
from p2pnode.config import RelaySettings
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.relay.client import RelayClient, RelayReserved
from p2pnode.protocols.relay.server import RelayServer
from p2pnode.protocols.relay.transport import RelayTransport
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import tcp_address, with_p2p
from p2pnode.wire.keys import PrivateKey

RELAYING: Final = RelaySettings(
    server="always",
    client="never",
    circuit_bytes=0,
    circuit_seconds=0.0,
)


def relayed_host() -> tuple[NetworkHost, RelayTransport]:
    """Make a host that reaches others through relays, too, and the transport that does it."""
    host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
    transport = RelayTransport(host)
    host.add_transport(transport)
    return host, transport


async def _serve(relay: str | None) -> None:
    host, transport = relayed_host()
    host.set_handler(far_end.SINK, far_end.sink)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + far_end.START_TIMEOUT

        async def control(stream: trio.SocketStream) -> None:
            nursery.cancel_scope.deadline = float("inf")
            with contextlib.suppress(trio.BrokenResourceError):  # whoever measures has had enough
                await far_end.serve_usage(stream, nursery.cancel_scope)
            nursery.cancel_scope.cancel()

        await nursery.start(host.run)
        (address,) = await host.listen(tcp_address(far_end.HOST, 0))
        facts: dict[str, Any] = {"address": str(with_p2p(address, host.peer_id))}
        if relay is None:
            await nursery.start(RelayServer(host, RELAYING).run)
        else:
            settings = RelaySettings(server="never", client="always", relays=(relay,))
            with host.events.subscribe(RelayReserved) as reserved:
                await nursery.start(RelayClient(host, transport, settings).run)
                await reserved.get()
            facts["relayed"] = str(host.relayed[0])
        listeners = await nursery.start(
            functools.partial(trio.serve_tcp, control, 0, host=far_end.HOST)
        )
        print_event("ready", control=listeners[0].socket.getsockname()[1], **facts)


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1] if len(sys.argv) > 1 else None)
