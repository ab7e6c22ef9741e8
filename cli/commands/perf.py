"""`perf ADDRESS`: measure how fast data goes to a peer and comes back, by libp2p's perf."""

from pathlib import Path

import click
import trio

from cli.options import Size, config_options, json_option, settings_from
from cli.output import print_json
from p2pnode.config import NetworkSettings, PerfSettings
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.perf.core import PerfResult
from p2pnode.protocols.perf.service import PerfService
from p2pnode.protocols.relay.transport import RelayTransport
from p2pnode.transport.tcp import TcpTransport
from p2pnode.transport.websocket import WebSocketTransport
from p2pnode.wire.addresses import peer_address
from p2pnode.wire.keys import PrivateKey


@click.command()
@click.argument("address")
@click.option("--upload", type=Size(), default="100M", show_default=True, help="Bytes to send.")
@click.option("--download", type=Size(), default="100M", show_default=True, help="Bytes to get.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=PerfSettings().run_timeout,
    show_default=True,
    help="Seconds for all of it.",
)
@config_options
@json_option
def perf(
    *,
    address: str,
    upload: int,
    download: int,
    timeout: float,
    assignments: tuple[str, ...],
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Measure how fast data goes to a peer and comes back.

    ADDRESS ends in /p2p/ID. The peer has to serve libp2p's perf protocol, as a daemon does with
    `--set perf.serve=true`, and as `python -m p2pnode.testing.peer` does. K, M and G are powers
    of 1024. This command dials with an identity of its own and needs no daemon; of the settings,
    those of [network] count, such as certificate authorities and name servers.
    """
    network = settings_from({}, assignments, config_file).network
    result = trio.run(_measure, address, upload, download, timeout, network)
    if as_json:
        print_json(
            {
                "address": address,
                "upload_bytes": result.upload,
                "upload_seconds": result.upload_seconds,
                "upload_rate": result.upload_rate,
                "download_bytes": result.download,
                "download_seconds": result.download_seconds,
                "download_rate": result.download_rate,
            }
        )
        return
    click.echo(_describe("up", result.upload, result.upload_seconds, result.upload_rate))
    click.echo(_describe("down", result.download, result.download_seconds, result.download_rate))


async def _measure(
    address: str, upload: int, download: int, timeout: float, network: NetworkSettings
) -> PerfResult:
    peer_id, dialled = peer_address(address)
    transports = [TcpTransport(network), WebSocketTransport(network)]
    host = NetworkHost(PrivateKey.generate(), transports=transports, settings=network)
    host.add_transport(RelayTransport(host))
    service = PerfService(host, PerfSettings(run_timeout=timeout))
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        result = await service.measure(
            peer_id, upload=upload, download=download, addresses=[dialled]
        )
        nursery.cancel_scope.cancel()
    return result


def _describe(way: str, size: int, seconds: float, rate: float | None) -> str:
    text = f"{way:<4} {size} bytes in {seconds:.3f} s"
    return text if rate is None else f"{text}, {rate / 1e6:.1f} MB/s"
