"""Requests and replies of the control socket, as lines of JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from p2pnode import errors
from p2pnode.errors import BadRequestError, P2PNodeError

MAX_REPLY_BYTES: Final = 16 * 1024 * 1024  # the status of 10,000 experts needs about 2 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One command for the daemon."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the request as a line."""
        return _line({"method": self.method, "params": dict(self.params)})

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """Read a request.

        Raises:
            BadRequestError: the line is not one.
        """
        match _object(line):
            case {"method": str(method), "params": dict(params)}:
                return cls(method=method, params=params)
        raise BadRequestError("a control request needs a method and its params")


def encode_result(result: Any) -> bytes:
    """Return a successful reply as a line."""
    return _line({"result": result})


def encode_error(error: P2PNodeError) -> bytes:
    """Return a failed reply as a line."""
    return _line({"error": {"type": type(error).__name__, "message": str(error)}})


def decode_reply(line: bytes) -> Any:
    """Return the result in a reply.

    Raises:
        P2PNodeError: the error the reply carries, as its own class where this side knows it.
        BadRequestError: the line is not a reply.
    """
    match _object(line):
        case {"result": result}:
            return result
        case {"error": {"type": str(name), "message": str(message)}}:
            kind = getattr(errors, name, P2PNodeError)
            known = isinstance(kind, type) and issubclass(kind, P2PNodeError)
            raise (kind if known else P2PNodeError)(message)
    raise BadRequestError("the daemon's reply cannot be understood")


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRequestError("a line on the control socket is not JSON") from error
    return value if isinstance(value, dict) else {}
