"""The command line's side of the control socket: one blocking call, without an event loop."""

import contextlib
import socket
from pathlib import Path
from typing import Any, Final

from p2pnode.daemon.control import core
from p2pnode.daemon.control.paths import short_path
from p2pnode.errors import (
    BadRequestError,
    DaemonNotRunningError,
    DeadlineExceededError,
    LocalError,
    OverloadedError,
)

DEFAULT_TIMEOUT: Final = 60.0
_CHUNK: Final = 64 * 1024


def call_daemon(path: Path, method: str, *, timeout: float = DEFAULT_TIMEOUT, **params: Any) -> Any:
    """Ask the daemon that listens at `path`, and return its result.

    Raises:
        DaemonNotRunningError: none listens there.
        DeadlineExceededError: it did not answer within `timeout` seconds.
        OverloadedError: too many others wait for its answer.
        LocalError: this user may not reach it.
        P2PNodeError: what the daemon answered, as its own class.
    """
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        client.settimeout(timeout)
        try:
            client.connect(stack.enter_context(short_path(path)))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise DaemonNotRunningError(
                f"no daemon runs on {path.parent}; start one with `p2pnode join`"
            ) from None
        except BlockingIOError:  # so many wait already that the system takes no more
            raise OverloadedError(f"the daemon on {path.parent} is too busy to answer") from None
        except OSError as error:
            raise LocalError(
                f"cannot reach the daemon on {path.parent}: {error.strerror or error}"
            ) from error
        try:
            client.sendall(core.Request(method=method, params=params).encode())
            return core.decode_reply(_read_line(client))
        except TimeoutError:
            raise DeadlineExceededError(
                f"the daemon on {path.parent} did not answer within {timeout:g} s"
            ) from None
        except OSError as error:
            raise DaemonNotRunningError(f"the daemon on {path.parent} went away") from error


def _read_line(client: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        data = client.recv(_CHUNK)
        line += data
        if not data or len(line) > core.MAX_REPLY_BYTES:
            raise BadRequestError("the daemon closed the control socket without an answer")
    return bytes(line)
