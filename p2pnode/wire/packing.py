"""What the messages of several protocols share: msgpack, a length before it, errors within it."""

from collections.abc import Mapping
from typing import Any, Final

import msgpack

from p2pnode.errors import CallError, P2PNodeError, ProtocolError, from_code
from p2pnode.wire import varint

MAX_SENTENCE: Final = 500  # characters of an error's text, sent or received


def framed(message: Mapping[str, Any]) -> bytes:
    """Return a message behind its uvarint length."""
    packed: bytes = msgpack.packb(message)
    return varint.encode(len(packed)) + packed


def unpack(data: bytes, what: str) -> Any:
    """Read msgpack.

    Args:
        data: as it came.
        what: it is, for the error: `a manifest`.

    Raises:
        ProtocolError: it is no msgpack.
    """
    try:
        return msgpack.unpackb(data)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ProtocolError(f"{what} is not msgpack") from error


def unpack_map(data: bytes, what: str) -> dict[Any, Any]:
    """Read a map in msgpack, whose keys are texts or bytes.

    Raises:
        ProtocolError: it is none.
    """
    message = unpack(data, what)
    if not isinstance(message, dict):
        raise ProtocolError(f"{what} must be a map")
    return message


def pack_error(error: P2PNodeError) -> list[Any]:
    """Return an error as it stands in a message, `[code, sentence]`."""
    return [CallError.code if error.code is None else error.code, str(error)[:MAX_SENTENCE]]


def read_error(data: Any) -> P2PNodeError:
    """Read what `pack_error` gave; an unknown code gives a plain `CallError`.

    Raises:
        ProtocolError: it is malformed.
    """
    if not (isinstance(data, list) and len(data) == 2):
        raise ProtocolError("an error must be a code and a sentence")
    code, sentence = data
    if type(code) is not int or not isinstance(sentence, str):
        raise ProtocolError("an error must be a code and a sentence")
    # The sentence may end on a terminal: nothing in it may move the cursor.
    shown = "".join(c if c.isprintable() else " " for c in sentence[:MAX_SENTENCE])
    return from_code(code, shown)
