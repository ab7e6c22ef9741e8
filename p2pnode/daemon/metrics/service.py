"""The page that Prometheus reads: `GET /metrics`, and nothing else.

Whoever can open the port can read it, so it is on loopback unless its owner says otherwise. A
request is small, has little time, and few are served at once; after the answer the connection ends.
"""

import contextlib
import errno
import ipaddress
from collections.abc import Callable, Sequence
from typing import Final

import h11
import trio
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from p2pnode.config import MetricsSettings
from p2pnode.errors import AddressInUseError, ConfigError

PATH: Final = b"/metrics"
MAX_REQUEST: Final = 8 * 1024  # bytes of request line and headers
MAX_DRAINED: Final = 64 * 1024  # bytes of a request that was refused
_READ: Final = 4096
_LOOPBACK: Final = "127.0.0.1"

Headers = Sequence[tuple[str, str]]


class MetricsServer:
    """Serves a registry.

    Args:
        settings: where, and how long a request may take.
        registry: what is served.

    Attributes:
        address: where it listens, once it runs: with the port the system chose, if it was 0.

    Raises:
        ConfigError: the address cannot be read.
    """

    def __init__(self, settings: MetricsSettings, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._render: Callable[[], bytes] = lambda: generate_latest(registry)
        self._host, self._port = parse_listen(settings.listen)
        self._slots = trio.CapacityLimiter(settings.max_requests)
        self.address: str | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises:
            AddressInUseError: another program listens there.
            ConfigError: this machine cannot listen there.
        """
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=self._host)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUseError(
                    f"metrics.listen = {self._settings.listen} is taken; stop the program that"
                    " listens there, or choose another port"
                ) from error
            raise ConfigError(
                f"this machine cannot listen on metrics.listen = {self._settings.listen}:"
                f" {error.strerror or error}"
            ) from error
        host, port = listeners[0].socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve, listeners)
            task_status.started()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream, self._slots:
            with (
                trio.move_on_after(self._settings.request_timeout),
                contextlib.suppress(trio.BrokenResourceError, h11.RemoteProtocolError),
            ):
                await self._answer(stream)

    async def _answer(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        try:
            request = await _receive(http, stream)
        except h11.RemoteProtocolError as error:
            await _send(http, stream, error.error_status_hint, b"this is no request\n")
            await _drain(stream)
            return
        if request is None:
            return
        with_body = request.method != b"HEAD"
        if request.method not in (b"GET", b"HEAD"):
            allow = (("Allow", "GET, HEAD"),)
            await _send(http, stream, 405, b"only GET is served\n", allow)
            await _drain(stream)
        elif request.target.partition(b"?")[0] != PATH:
            text = b"the figures are at /metrics\n"
            await _send(http, stream, 404, text, with_body=with_body)
        else:
            kind = (("Content-Type", CONTENT_TYPE_LATEST),)
            await _send(http, stream, 200, self._render(), kind, with_body=with_body)


async def _receive(http: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """Read a request's head; None if the peer leaves before."""
    while True:
        event = http.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        http.receive_data(await stream.receive_some(_READ))


async def _send(
    http: h11.Connection,
    stream: trio.SocketStream,
    status: int,
    body: bytes,
    headers: Headers = (),
    *,
    with_body: bool = True,
) -> None:
    head = h11.Response(
        status_code=status,
        headers=[*headers, ("Content-Length", str(len(body))), ("Connection", "close")],
    )
    events = [head, *([h11.Data(data=body)] if with_body else ()), h11.EndOfMessage()]
    await stream.send_all(b"".join(http.send(event) or b"" for event in events))


async def _drain(stream: trio.SocketStream) -> None:
    """Take a little of what still comes: closing before it has would reset our answer away."""
    await stream.send_eof()
    left = MAX_DRAINED
    while left > 0 and (data := await stream.receive_some(_READ)):
        left -= len(data)


def parse_listen(text: str) -> tuple[str, int]:
    """Read `IP:PORT`, `[IPV6]:PORT`, or a port alone, which is on loopback.

    Raises:
        ConfigError: it is none of them.
    """
    host, _, port = text.strip().rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]") or _LOOPBACK)
        if (
            port.isascii()
            and port.isdigit()
            and int(port) < 2**16
            and ((ip.version == 6) == host.startswith("[") == host.endswith("]"))
        ):
            return str(ip), int(port)
    except ValueError:
        pass
    raise ConfigError(
        f"metrics.listen must be an address and a port such as 127.0.0.1:9400, not {text!r}"
    )
