"""The daemon's side of the control socket."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.daemon.control import core
from p2pnode.daemon.control.paths import short_path
from p2pnode.errors import BadRequestError, LocalError, P2PNodeError

MAX_CLIENTS: Final = 32  # commands at once; more wait in the socket's backlog
REQUEST_TIMEOUT: Final = 10.0  # for the request line to arrive, and for the reply to be taken

Method = Callable[[Mapping[str, Any]], Awaitable[Any]]


class ControlServer:
    """Answers commands by calling the method of that name."""

    def __init__(self, path: Path, methods: Mapping[str, Method], *, request_limit: int) -> None:
        self._path = path
        self._methods = methods
        self._request_limit = request_limit
        self._slots = trio.CapacityLimiter(MAX_CLIENTS)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. The caller holds the data directory's lock.

        Raises:
            LocalError: the socket cannot be made.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
            try:
                self._path.unlink(missing_ok=True)  # left behind by a daemon that was killed
                with short_path(self._path) as name:
                    raw.bind(name)
                self._path.chmod(0o600)
                raw.listen(MAX_CLIENTS)
            except OSError as error:
                raise LocalError(
                    f"cannot listen on the control socket {self._path}: {error.strerror or error}"
                ) from error
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(raw))
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(trio.serve_listeners, self._serve, [listener])
                    task_status.started()
            finally:
                self._path.unlink(missing_ok=True)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream, self._slots:
            with contextlib.suppress(trio.BrokenResourceError, trio.TooSlowError):
                reply = await self._answer(stream)
                with trio.fail_after(REQUEST_TIMEOUT):
                    await stream.send_all(reply)

    async def _answer(self, stream: trio.SocketStream) -> bytes:
        try:
            with trio.fail_after(REQUEST_TIMEOUT):
                line = await self._read_line(stream)
            request = core.Request.decode(line)
            method = self._methods.get(request.method)
            if method is None:
                raise BadRequestError(f"this daemon has no command {request.method!r}")
            return core.encode_result(await method(request.params))
        except P2PNodeError as error:
            return core.encode_error(error)

    async def _read_line(self, stream: trio.SocketStream) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            data = await stream.receive_some(self._request_limit)
            line += data
            if not data or len(line) > self._request_limit:
                raise BadRequestError("the control request is cut off or too long")
        return bytes(line)
