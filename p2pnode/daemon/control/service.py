"""The daemon's side of the control socket."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.daemon.control import core
from p2pnode.daemon.control.paths import short_path
from p2pnode.errors import BadRequestError, LocalError, P2PNodeError, first_leaf

MAX_CLIENTS: Final = 32  # commands at once; more wait
REQUEST_TIMEOUT: Final = 10.0  # for the request line to arrive
REPLY_TIMEOUT: Final = 5.0  # for the reply to be taken

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
            try:
                request = await self._read_request(stream)
            except BadRequestError as error:
                await _reply(stream, core.encode_error(error))
            except trio.BrokenResourceError:
                return  # it has left already
            else:
                await self._carry_out(request, stream)

    async def _carry_out(self, request: core.Request, stream: trio.SocketStream) -> None:
        """Run a command and reply, unless the client leaves before it is done."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, stream, nursery.cancel_scope)
            try:
                reply = core.encode_result(await self._methods[request.method](request.params))
            except* P2PNodeError as errors:
                reply = core.encode_error(first_leaf(errors))
            await _reply(stream, reply)
            nursery.cancel_scope.cancel()

    async def _read_request(self, stream: trio.SocketStream) -> core.Request:
        with trio.move_on_after(REQUEST_TIMEOUT):
            request = core.Request.decode(await self._read_line(stream))
            if request.method not in self._methods:
                raise BadRequestError(f"this daemon has no command {request.method!r}")
            return request
        raise BadRequestError(f"no control request came within {REQUEST_TIMEOUT:g} s")

    async def _read_line(self, stream: trio.SocketStream) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            data = await stream.receive_some(self._request_limit)
            line += data
            if not data or len(line) > self._request_limit:
                raise BadRequestError("the control request is cut off or too long")
        return bytes(line)


async def _reply(stream: trio.SocketStream, reply: bytes) -> None:
    """Send a reply, also when the daemon stops meanwhile: this very command may be why."""
    with (
        trio.move_on_after(REPLY_TIMEOUT, shield=True),
        contextlib.suppress(trio.BrokenResourceError),
    ):
        await stream.send_all(reply)


async def _cancel_when_gone(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass  # there is one command to a connection; what follows it is not for us
    scope.cancel()
