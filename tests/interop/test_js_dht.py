"""Our DHT and that of a js-libp2p node, which each other's look-ups go through."""

import pytest
import trio

from p2pnode.clock import wall_time
from p2pnode.protocols.kad.messages import Message, MessageType, Record, decode, encode
from p2pnode.protocols.kad.peers import DhtPeerAdded
from p2pnode.protocols.kad.validators import PublicKeyValidator
from p2pnode.swarm.network import Network
from p2pnode.testing.peer.node import KAD
from p2pnode.wire import varint
from p2pnode.wire.keys import PrivateKey

BOTH_WAYS = [("tcp", "ours dials"), ("ws", "theirs dials")]
pytestmark = [
    pytest.mark.real,
    pytest.mark.interop,
    pytest.mark.parametrize(("transport", "target"), BOTH_WAYS, indirect=True),
]

WITHIN = 60


@pytest.fixture
async def js(fresh_js):
    """A js node whose DHT knows nobody yet."""
    return fresh_js


@pytest.fixture
async def connected(target, ours, js):
    """Our node and the js node, which have each other in their routing tables."""
    with trio.fail_after(WITHIN), ours.network.host.events.subscribe(DhtPeerAdded) as added:
        await target.connect()
        while (await added.get()).peer_id != js.peer_id:
            pass
        await js("identified", peer=str(ours.network.peer_id))
    return ours, js


def key_record(peer_id):
    return b"/pk/" + bytes(peer_id)


async def test_js_stores_a_record_with_us_and_finds_it_again(connected):
    ours, js = connected
    with trio.fail_after(WITHIN):
        assert str(ours.network.peer_id) in await js("putOwnKey")
        value = await ours.network.dht.get_value(key_record(js.peer_id))
        PublicKeyValidator().validate(key_record(js.peer_id), value, wall_time())
        assert await js("getKey", peer=str(js.peer_id)) == value.hex()


async def test_we_store_a_record_with_js_and_it_finds_ours(connected):
    ours, js = connected
    value = ours.network.key.public_key.protobuf
    with trio.fail_after(WITHIN):
        assert await ours.network.dht.put_value(key_record(ours.network.peer_id), value) >= 2
        assert await js("getKey", peer=str(ours.network.peer_id)) == value.hex()


async def test_each_finds_a_peer_that_only_the_other_knows(connected, nursery):
    ours, js = connected
    third = Network(PrivateKey.generate(), ours.settings)
    await nursery.start(third.run)
    await third.listen(["/ip4/127.0.0.1/tcp/0"])
    with trio.fail_after(WITHIN):
        await third.join(ours.network.full_addresses()[:1])
        found = await js("findPeer", peer=str(third.peer_id))
        assert str(third.host.addresses[0]) in found
        assert js.address("tcp") in await third.dht.find_peer(js.peer_id)


async def test_providers_are_found_through_the_other(connected):
    ours, js = connected
    with trio.fail_after(WITHIN):
        await js("provide")
        providing = bytes(js.peer_id)
        while not await ours.network.dht.find_providers(providing):  # noqa: ASYNC110
            await trio.sleep(0.05)
        assert js.peer_id in await ours.network.dht.find_providers(providing)
        await ours.network.dht.provide(bytes(ours.network.peer_id))
        assert str(ours.network.peer_id) in await js(
            "findProviders", peer=str(ours.network.peer_id)
        )


async def test_a_bad_value_of_js_is_refused(connected):
    ours, js = connected
    key, value = key_record(ours.network.peer_id), ours.network.key.public_key.protobuf

    async def ask(kind, record=None):
        data = varint.prefixed(encode(Message(type=kind, key=key, record=record)))
        answer = bytes.fromhex(
            await js("raw", peer=str(ours.network.peer_id), protocol=KAD, data=data.hex())
        )
        return decode(answer[varint.decode(answer)[1] :]) if answer else None

    with trio.fail_after(WITHIN):
        assert await ask(MessageType.PUT_VALUE, Record(key, value[:-1])) is None
        assert (await ask(MessageType.GET_VALUE)).record is None
        assert (await ask(MessageType.PUT_VALUE, Record(key, value))).record.value == value
        assert (await ask(MessageType.GET_VALUE)).record.value == value
