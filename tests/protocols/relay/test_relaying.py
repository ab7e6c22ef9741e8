import pytest
import trio

from p2pnode.errors import LimitedConnectionError
from p2pnode.protocols.relay.addresses import through

ECHO = "/test/echo"
MIB = 1024 * 1024


async def echo(stream):
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


async def exchange(stream, payload):
    """Send `payload` to an echo, and return what comes back."""
    received = bytearray()

    async def send():
        await stream.send_all(payload)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while data := await stream.receive_some(65536):
            received += data
    return bytes(received)


async def test_two_nodes_behind_symmetric_nats_talk_through_a_relay(place, autojump_clock):
    relay = await place.add_relay(circuit_bytes=0, circuit_seconds=0)
    ours, theirs = await place.add_private(relay), await place.add_private(relay)
    theirs.set_handler(ECHO, echo)
    (address,) = theirs.relayed
    assert address == through(relay.addresses[0], relay.peer_id)
    connection = await ours.connect(theirs.peer_id, theirs.addresses)
    assert connection.is_relayed
    assert not connection.is_limited
    payload = bytes(range(256)) * (16 * MIB // 256)  # several windows: a large RPC
    async with await connection.open_stream([ECHO]) as stream:
        assert await exchange(stream, payload) == payload
    assert place.server(relay).info().bytes_carried > 32 * MIB


async def test_a_limited_connection_carries_only_what_allows_it(place, autojump_clock):
    relay = await place.add_relay()
    ours, theirs = await place.add_private(relay), await place.add_private(relay)
    theirs.set_handler(ECHO, echo)
    connection = await ours.connect(theirs.peer_id, theirs.addresses)
    await trio.sleep(1)
    assert connection.is_limited
    assert theirs.connection_to(ours.peer_id).is_limited
    assert ECHO in ours.protocols_of(theirs.peer_id)  # identify allows it
    with pytest.raises(LimitedConnectionError):
        await connection.open_stream([ECHO])
    async with await connection.open_stream([ECHO], allow_limited=True) as stream:
        assert await exchange(stream, b"hello") == b"hello"


async def test_a_node_is_reachable_within_a_second_of_its_start(place, autojump_clock):
    """At a round trip of 50 ms: the relay dialled, the handshakes, and one question."""
    relay = await place.add_relay()
    began = trio.current_time()
    host = await place.add_private(relay)
    assert trio.current_time() - began < 0.5
    other = await place.add_private(relay)
    began = trio.current_time()
    await other.connect(host.peer_id, host.relayed)
    assert trio.current_time() - began < 0.5
