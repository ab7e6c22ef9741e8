"""Negotiation over a stream, reading not one byte more than its own."""

import math
from collections.abc import Callable, Sequence

import trio

from p2pnode.errors import NegotiationError
from p2pnode.mux.multistream.core import HEADER, Dialer, Listener, encode_line


async def select_outbound(stream: trio.abc.Stream, protocols: Sequence[str]) -> str:
    """Propose `protocols`, the most wanted first, and return the one the peer takes.

    Raises:
        ProtocolNotSupportedError: it takes none of them.
        NegotiationError: its answer is not one, or it hung up.
    """
    return await _propose(stream, Dialer(protocols))


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


async def select_either(stream: trio.abc.Stream, protocol: str, *, patience: float) -> bool:
    """Agree on `protocol` with a peer that should propose it, but may be waiting for us to.

    That happens where both have dialled: if one dial was accepted by the other's listener after
    all, there the peer waits. It shows itself by a header that no proposal follows.

    Args:
        stream: to the peer.
        protocol: the only one.
        patience: seconds from the peer's header to our own proposal.

    Returns:
        Whether it was this side that proposed.

    Raises:
        NegotiationError: the peer breaks the rules, takes something else, or hung up.
    """
    await stream.send_all(encode_line(HEADER))  # listeners answer it; who proposes skips it
    listener = Listener(protocol.__eq__, header_sent=True)
    propose_at = math.inf
    while listener.protocol is None:
        data = b""
        with trio.move_on_at(propose_at):
            data = await _receive(stream, listener.needed)
        if not data:
            await _propose(stream, Dialer([protocol], greeted=True))
            return True
        answer = listener.receive_data(data)
        if answer:
            await stream.send_all(answer)
        waits = listener.waits_for_proposal
        propose_at = min(propose_at, trio.current_time() + patience) if waits else math.inf
    return False


async def _propose(stream: trio.abc.Stream, dialer: Dialer) -> str:
    await stream.send_all(dialer.first_message())
    while dialer.protocol is None:
        answer = dialer.receive_data(await _receive(stream, dialer.needed))
        if answer:
            await stream.send_all(answer)
    return dialer.protocol


async def _receive(stream: trio.abc.Stream, size: int) -> bytes:
    data = await stream.receive_some(size)
    if not data:
        raise NegotiationError("the peer hung up before a protocol was agreed on")
    return bytes(data)
