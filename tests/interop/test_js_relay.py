"""Circuit relays together with js-libp2p: each relays for the other, and is reached so."""

import contextlib

import pytest
import trio

from p2pnode.protocols.relay.client import RelayReserved
from p2pnode.testing.peer.node import ECHO
from p2pnode.wire.addresses import parse_address, with_p2p

pytestmark = [pytest.mark.real, pytest.mark.interop]

WITHIN = 30


@pytest.fixture
async def add_js(start_js):
    """Add a js-libp2p node; the argument `relay` makes it a relay."""
    async with contextlib.AsyncExitStack() as stack:

        async def add(*arguments):
            return await stack.enter_async_context(start_js("relay.mjs", *arguments))

        yield add


def address_of(js):
    return f"{js.hello['addresses'][0]}/p2p/{js.peer_id}"


async def is_echoed(host, peer_id):
    connection = host.connection_to(peer_id)
    async with await connection.open_stream([ECHO], allow_limited=True) as stream:
        await stream.send_all(b"hello")
        await stream.send_eof()
        return await stream.receive_exactly(5) == b"hello"


async def test_we_are_reached_through_a_js_relay(start, add_js):
    js_relay, js_dialler = await add_js("relay"), await add_js()
    ours = await start(relays=(address_of(js_relay),))
    with ours.host.events.subscribe(RelayReserved) as reserved, trio.fail_after(WITHIN):
        if not ours.host.relayed:
            await reserved.get()
    assert await js_relay("reservations") == 1
    (held,) = ours.client.info().held
    assert held.seconds_left > 3600
    way = str(with_p2p(ours.host.relayed[0], ours.host.peer_id))
    with trio.fail_after(WITHIN):
        dialled = await js_dialler("dial", address=way)
        assert dialled["peer"] == str(ours.host.peer_id)
        assert dialled["limits"]["bytes"] > 0
        assert (
            await js_dialler("echo", peer=str(ours.host.peer_id), text="to and fro") == "to and fro"
        )
        other = await start()
        connection = await other.host.connect(ours.host.peer_id, ours.host.relayed)
        assert connection.is_limited
        assert await is_echoed(other.host, ours.host.peer_id)


async def test_js_is_reached_through_our_relay(start, add_js):
    relay, js_target, js_dialler = await start(server="always"), await add_js(), await add_js()
    dialler = await start()
    with trio.fail_after(WITHIN):
        (way,) = await js_target("reserve", address=relay.address)
        assert way == f"{relay.address}/p2p-circuit/p2p/{js_target.peer_id}"
        connection = await dialler.host.connect(js_target.peer_id, [parse_address(way)])
        assert connection.is_relayed
        assert connection.is_limited
        assert await is_echoed(dialler.host, js_target.peer_id)
        dialled = await js_dialler("dial", address=way)
        assert dialled["peer"] == str(js_target.peer_id)
        assert dialled["limits"]["seconds"] == 120
        assert 64 * 1024 < dialled["limits"]["bytes"] <= 128 * 1024  # it counts what is left
        assert await js_dialler("echo", peer=str(js_target.peer_id), text="js to js") == "js to js"
    assert relay.server.info().circuits == 2


async def test_js_reaches_us_through_our_relay_and_without_limits_where_there_are_none(
    start, add_js
):
    relay = await start(server="always", circuit_bytes=0, circuit_seconds=0)
    ours, js = await start(relays=(relay.address,)), await add_js()
    with ours.host.events.subscribe(RelayReserved) as reserved, trio.fail_after(WITHIN):
        if not ours.host.relayed:
            await reserved.get()
        way = str(with_p2p(ours.host.relayed[0], ours.host.peer_id))
        dialled = await js("dial", address=way)
        assert dialled["limits"] is None
        text = "x" * 1_000_000
        assert await js("echo", peer=str(ours.host.peer_id), text=text) == text
        assert not ours.host.connection_to(js.peer_id).is_limited
        assert await is_echoed(ours.host, js.peer_id)
