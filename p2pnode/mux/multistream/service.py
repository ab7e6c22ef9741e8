"""Negotiation over a stream, reading not one byte more than its own."""

from collections.abc import Callable, Sequence

import trio

from p2pnode.errors import NegotiationError
from p2pnode.mux.multistream.core import Dialer, Listener


async def select_outbound(stream: trio.abc.Stream, protocols: Sequence[str]) -> str:
    """Propose `protocols`, the most wanted first, and return the one the peer takes.

    Raises:
        ProtocolNotSupportedError: it takes none of them.
        NegotiationError: its answer is not one, or it hung up.
    """
    dialer = Dialer(protocols)
    await stream.send_all(dialer.first_message())
    while dialer.protocol is None:
        answer = dialer.receive_data(await _receive(stream, dialer.needed))
        if answer:
            await stream.send_all(answer)
    return dialer.protocol


async def select_inbound(stream: trio.abc.Stream, supported: Callable[[str], bool]) -> str:
    """Answer proposals until one is `supported`, and return it.

    Raises:
        NegotiationError: the peer breaks the rules, or hung up without a match.
    """
    listener = Listener(supported)
    while listener.protocol is None:
        answer = listener.receive_data(await _receive(stream, listener.needed))
        if answer:
            await stream.send_all(answer)
    return listener.protocol


async def _receive(stream: trio.abc.Stream, size: int) -> bytes:
    data = await stream.receive_some(size)
    if not data:
        raise NegotiationError("the peer hung up before a protocol was agreed on")
    return bytes(data)
