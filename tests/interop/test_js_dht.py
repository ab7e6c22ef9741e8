"""Our DHT and that of a js-libp2p node, which each other's look-ups go through."""

import pytest
import trio

from p2pnode.clock import wall_time
from p2pnode.config import Settings
from p2pnode.protocols.kad.peers import DhtPeerAdded
from p2pnode.protocols.kad.validators import PublicKeyValidator
from p2pnode.swarm.network import Network
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

pytestmark = [pytest.mark.real, pytest.mark.interop]

WITHIN = 60


@pytest.fixture
async def connected(js_dht, nursery):
    """Our node and the js node, which have each other in their routing tables; and its id."""
    ours = Network(PrivateKey.generate(), Settings())
    await nursery.start(ours.run)
    await ours.listen(["/ip4/127.0.0.1/tcp/0"])
    (address,) = ours.full_addresses()
    with trio.fail_after(WITHIN), ours.host.events.subscribe(DhtPeerAdded) as added:
        await js_dht("dial", address=address)
        theirs = (await added.get()).peer_id
    assert str(theirs) == js_dht.peer_id
    return ours, js_dht, theirs


def key_record(peer_id):
    return b"/pk/" + bytes(peer_id)


async def test_js_stores_a_record_with_us_and_finds_it_again(connected):
    ours, js, theirs = connected
    with trio.fail_after(WITHIN):
        assert str(ours.peer_id) in await js("putOwnKey")
        value = await ours.dht.get_value(key_record(theirs))
        PublicKeyValidator().validate(key_record(theirs), value, wall_time())
        assert await js("getKey", peer=js.peer_id) == value.hex()


async def test_we_store_a_record_with_js_and_it_finds_ours(connected):
    ours, js, _ = connected
    value = ours.key.public_key.protobuf
    with trio.fail_after(WITHIN):
        assert await ours.dht.put_value(key_record(ours.peer_id), value) == 2
        assert await js("getKey", peer=str(ours.peer_id)) == value.hex()


async def test_each_finds_a_peer_that_only_the_other_knows(connected, nursery):
    ours, js, theirs = connected
    third = Network(PrivateKey.generate(), Settings())
    await nursery.start(third.run)
    await third.listen(["/ip4/127.0.0.1/tcp/0"])
    with trio.fail_after(WITHIN):
        await third.join(ours.full_addresses())
        found = await js("findPeer", peer=str(third.peer_id))
        assert str(third.host.addresses[0]) in found
        assert parse_address(js.address) in await third.dht.find_peer(theirs)


async def test_providers_are_found_through_the_other(connected):
    ours, js, theirs = connected
    with trio.fail_after(WITHIN):
        await js("provide")
        assert theirs in await ours.dht.find_providers(bytes(theirs))
        await ours.dht.provide(bytes(ours.peer_id))
        assert str(ours.peer_id) in await js("findProviders", peer=str(ours.peer_id))
