"""Checks of the DHT: single requests, without look-ups around them."""

import secrets
from typing import Any, Final

import trio

from p2pnode.errors import RemoteError
from p2pnode.protocols.kad.messages import Contact, Message, MessageType, Record
from p2pnode.protocols.kad.requester import Requester
from p2pnode.swarm.network import Network
from p2pnode.testing.peer.checks.target import RETRY_INTERVAL, Facts, Target, expect
from p2pnode.wire.addresses import ip_of, tcp_address
from p2pnode.wire.keys import PrivateKey

SHA2_256: Final = b"\x12\x20"  # a multihash's function and length


class _Dht:
    """Asks the peer."""

    def __init__(self, target: Target) -> None:
        self._peer_id = target.peer_id
        self._requester = Requester(target.host, target.peer.settings.dht)

    async def __call__(self, kind: MessageType, key: bytes, **fields: Any) -> Message:
        return await self._requester.request(self._peer_id, Message(type=kind, key=key, **fields))


async def check_find_node(target: Target) -> Facts:
    """Let a third node connect to the peer, and ask the peer where it is."""
    ask = _Dht(target)
    third = Network(PrivateKey.generate(), target.peer.settings)
    key = bytes(third.peer_id)
    ip = ip_of(target.connection.local_address)
    async with trio.open_nursery() as nursery:
        await nursery.start(third.run)
        await third.host.listen(tcp_address(str(ip), 0))
        await third.host.connect(target.peer_id, [target.address])
        while not any(  # noqa: ASYNC110  # in another process, no event can be waited for
            each.peer_id == third.peer_id and set(each.addresses) & set(third.host.addresses)
            for each in (await ask(MessageType.FIND_NODE, key)).closer
        ):
            await trio.sleep(RETRY_INTERVAL)
        nursery.cancel_scope.cancel()
    return {}


async def check_value(target: Target) -> Facts:
    """Store a public key with the peer, and get it back."""
    ask = _Dht(target)
    owner = PrivateKey.generate()
    record = Record(b"/pk/" + bytes(owner.peer_id), owner.public_key.protobuf)
    answer = await ask(MessageType.PUT_VALUE, record.key, record=record)
    expect(answer.record is not None, "the answer to PUT_VALUE does not repeat the record")
    found = (await ask(MessageType.GET_VALUE, record.key)).record
    expect(found is not None, "the peer did not keep a valid value")
    assert found is not None
    expect((found.key, found.value) == (record.key, record.value), "the peer keeps another value")
    return {}


async def check_bad_value(target: Target) -> Facts:
    """Store what may not stand under its key; the peer must not serve it."""
    ask = _Dht(target)
    owner, stranger = PrivateKey.generate(), PrivateKey.generate()
    value = stranger.public_key.protobuf
    refusals = []
    for key in (b"/pk/" + bytes(owner.peer_id), b"/p2pnode-unknown/x", b"no namespace"):
        try:
            await ask(MessageType.PUT_VALUE, key, record=Record(key, value))
        except RemoteError as error:
            refusals.append(type(error).__name__)
        try:
            found = (await ask(MessageType.GET_VALUE, key)).record
        except RemoteError:  # nothing may be asked for under such a key either
            continue
        expect(found is None, f"the peer serves a bad value under {key!r}")
    return {"refusals": refusals}


async def check_providers(target: Target) -> Facts:
    """Say that we provide something, and ask who provides it."""
    ask = _Dht(target)
    key = SHA2_256 + secrets.token_bytes(32)
    us = Contact(target.host.peer_id, tuple(target.host.addresses), connected=True)
    await ask(MessageType.ADD_PROVIDER, key, providers=(us,))
    while us.peer_id not in {  # noqa: ASYNC110  # as above
        each.peer_id for each in (await ask(MessageType.GET_PROVIDERS, key)).providers
    }:
        await trio.sleep(RETRY_INTERVAL)
    return {}
