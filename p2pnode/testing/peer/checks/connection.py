"""Checks of the connection itself, and of what every libp2p node serves."""

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

from p2pnode.errors import ConnectionClosedError, ProtocolNotSupportedError, StreamResetError
from p2pnode.host import ConnectionEnded
from p2pnode.protocols.identify import core as identify
from p2pnode.protocols.identify.service import AGENT
from p2pnode.testing.peer.checks.target import (
    RETRY_INTERVAL,
    CheckFailedError,
    Facts,
    Target,
    expect,
)
from p2pnode.wire.addresses import ip_of

TRIES: Final = 6
UNKNOWN: Final = "/p2pnode-interop/unknown/1.0.0"
LATE: Final = "/p2pnode-interop/late/1.0.0"

T = TypeVar("T")


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """Make an attempt again, a few times, when the peer resets its stream.

    js-libp2p serves a single stream of identify, and one of push, to a peer at a time; the
    identify service of ours may have that one open.
    """
    for _ in range(TRIES - 1):
        try:
            return await attempt()
        except StreamResetError:
            await trio.sleep(RETRY_INTERVAL)
    return await attempt()


async def check_connect(target: Target) -> Facts:
    """Connect."""
    await target.connect()
    return {"address": str(target.connection.remote_address)}


async def introduce(target: Target) -> identify.Introduction:
    """Ask the peer who it is, beside the identify service, which asks at the same time."""
    stream = await target.open(identify.PROTOCOL)
    await stream.send_eof()
    settings = target.host.settings
    messages = []
    while (message := await stream.receive_prefixed(settings.identify_max_message)) is not None:
        messages.append(message)
    await stream.aclose()
    connection = target.connection
    return identify.decode(
        messages,
        connection.public_key,
        connection.remote_address,
        limit=settings.max_addresses_per_peer,
    )


async def check_identify(target: Target) -> Facts:
    """Read each field; that key and record are the peer's own is part of decoding."""
    said = await patiently(lambda: introduce(target))
    fields = {
        "publicKey": said.public_key,
        "listenAddrs": said.addresses,
        "protocols": said.protocols,
        "observedAddr": said.observed_address,
        "protocolVersion": said.protocol_version,
        "agentVersion": said.agent,
        "signedPeerRecord": said.record,
    }
    expect(identify.PROTOCOL in said.protocols, "identify does not list identify itself")
    local = target.connection.local_address
    observed = said.observed_address
    if observed is not None and ip_of(local) == ip_of(observed):  # else there is a NAT between
        expect(
            "tcp" not in observed
            or observed.value_for_protocol("tcp") == local.value_for_protocol("tcp"),
            f"we are at {local}, and were told {observed}",
        )
    return {
        "agent": said.agent,
        "protocol_version": said.protocol_version,
        "addresses": [str(each) for each in said.addresses],
        "observed": None if observed is None else str(observed),
        "protocols": list(said.protocols),
        "missing": [name for name, value in fields.items() if not value],
    }


async def check_push(target: Target) -> Facts:
    """Push a protocol more, then the truth; the peer must read both to their end."""
    for extra in ([LATE], []):
        await patiently(functools.partial(push, target, extra))
    return {}


async def push(target: Target, extra: Sequence[str]) -> None:
    """Tell the peer about us, with some protocols more."""
    host = target.host
    message = identify.encode(
        identify.Introduction(
            public_key=host.key.public_key,
            addresses=tuple(host.addresses),
            protocols=(*host.protocols, *extra),
            observed_address=target.connection.remote_address,
            protocol_version=identify.PROTOCOL_VERSION,
            agent=AGENT,
        )
    )
    stream = await target.open(identify.PUSH_PROTOCOL)
    await stream.send_all(message)
    await stream.send_eof()
    expect(not await stream.receive_some(), "the peer answers an identify push")
    await stream.aclose()


async def check_ping(target: Target) -> Facts:
    """Ping three times."""
    service = target.peer.network.ping
    return {"rtts": [await service.ping(target.peer_id) for _ in range(3)]}


async def check_unknown(target: Target) -> Facts:
    """Propose protocols that nobody serves: alone with data behind, and two in a row."""
    stream = await target.open(UNKNOWN)
    await stream.send_all(b"in the hope of an answer")
    for attempt in (stream.receive_some, lambda: target.open(UNKNOWN, UNKNOWN + "1")):
        try:
            await attempt()
        except ProtocolNotSupportedError:
            continue
        raise CheckFailedError("a protocol that nobody serves was agreed on")
    return {}


async def check_reconnect(target: Target) -> Facts:
    """Close the connection and connect again, twice."""
    for _ in range(2):
        with target.host.events.subscribe(ConnectionEnded) as ended:
            while (connection := target.host.connection_to(target.peer_id)) is not None:
                await connection.aclose()  # all of them, if both sides have dialled
                while not connection.is_closed:
                    await ended.get()
        await target.connect()
        try:
            await target.peer.network.ping.ping(target.peer_id)
        except ConnectionClosedError:  # what else it runs has dialled, too, and it keeps one
            await target.connect()
            await target.peer.network.ping.ping(target.peer_id)
    return {}
