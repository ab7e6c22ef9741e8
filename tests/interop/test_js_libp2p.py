"""Our node and a js-libp2p node, over real TCP, in both directions."""

import hashlib
import json

import pytest
import trio

from p2pnode.errors import ProtocolNotSupportedError
from p2pnode.host import PeerIdentified
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.identify.service import AGENT, IdentifyService
from p2pnode.protocols.ping.service import PingService
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import parse_address, with_p2p
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.records import PeerRecord

pytestmark = [pytest.mark.real, pytest.mark.interop]

ECHO = "/p2pnode-test/echo/1.0.0"
HALF = "/p2pnode-test/answer-at-the-end/1.0.0"
MIB = 1024 * 1024
SIZES = [0, 1, MIB, 50 * MIB]
WITHIN = 90


@pytest.fixture
async def host(nursery):
    host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
    await nursery.start(host.run)
    await nursery.start(IdentifyService(host).run)
    await nursery.start(PingService(host).run)
    host.set_handler(ECHO, echo)
    host.set_handler(HALF, answer_at_the_end)
    await host.listen(parse_address("/ip4/127.0.0.1/tcp/0"))
    return host


@pytest.fixture(params=["ours dials", "theirs dials"])
async def connected(request, host, js):
    """Both nodes, connected in either direction, and the js node's id."""
    peer_id = PeerId.from_text(js.peer_id)
    with host.events.subscribe(PeerIdentified) as identified, trio.fail_after(WITHIN):
        await connect(request.param, host, js)
        event = await identified.get()
    assert event.peer_id == peer_id
    return host, js, peer_id, event


async def connect(who, host, js):
    if who == "ours dials":
        await host.connect(PeerId.from_text(js.peer_id), [parse_address(js.address)])
    else:
        answer = await js("dial", address=str(with_p2p(host.addresses[0], host.peer_id)))
        assert answer["encryption"] == "/noise"
        assert answer["muxer"] == "/yamux/1.0.0"


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


async def answer_at_the_end(stream):
    size, digest = 0, hashlib.sha256()
    while data := await stream.receive_some():
        digest.update(data)
        size += len(data)
    answer = {"size": size, "sha256": digest.hexdigest()}
    await stream.send_all(json.dumps(answer).encode())


async def send_and_hash(host, peer_id, protocol, data):
    """Send `data` and our end of the stream; return the digest of all that comes back."""
    stream = await host.open_stream(peer_id, [protocol])
    digest = hashlib.sha256()

    async def send():
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while received := await stream.receive_some():
            digest.update(received)
    await stream.aclose()
    return digest.digest()


def pattern(size):
    block = hashlib.shake_256(b"p2pnode").digest(65521)  # a prime: no border falls on a frame's
    return (block * (size // len(block) + 1))[:size]


async def test_every_field_of_identify_is_understood_by_both(connected):
    host, js, peer_id, event = connected
    assert set(js.hello["protocols"]) <= event.protocols
    assert [str(each) for each in event.addresses] == js.hello["addresses"]
    assert event.agent.startswith("js-libp2p/")
    connection = host.connection_to(peer_id)
    assert event.observed_address == connection.local_address
    with trio.fail_after(WITHIN):
        said = await js("identified", peer=str(host.peer_id))
        known = await js("known", peer=str(host.peer_id))
    assert said["protocolVersion"] == "p2pnode/1.0.0"
    assert said["agentVersion"] == AGENT
    assert said["observedAddr"] == str(connection.remote_address)
    assert set(said["protocols"]) == set(host.protocols)
    assert set(known["protocols"]) == set(host.protocols)
    assert said["listenAddrs"] == [str(each) for each in host.addresses]
    assert said["record"]["addresses"] == [str(each) for each in host.addresses]
    record = PeerRecord.open(bytes.fromhex(known["envelope"]))
    assert record.peer_id == host.peer_id
    assert str(record.seq) == said["record"]["seq"]


async def test_new_protocols_are_pushed_both_ways(connected):
    host, js, peer_id, _ = connected
    with host.events.subscribe(PeerIdentified) as identified, trio.fail_after(WITHIN):
        await js("handle", protocol="/p2pnode-test/late/1.0.0")
        while "/p2pnode-test/late/1.0.0" not in (await identified.get()).protocols:
            pass
        await js("unhandle", protocol="/p2pnode-test/late/1.0.0")
        while "/p2pnode-test/late/1.0.0" in (await identified.get()).protocols:
            pass
        assert "/p2pnode-test/late/1.0.0" not in host.protocols_of(peer_id)
        await js("identified", peer=str(host.peer_id))
        host.set_handler("/p2pnode-test/ours/1.0.0", echo)
        await js_learns(js, host, "/p2pnode-test/ours/1.0.0", known=True)
        host.remove_handler("/p2pnode-test/ours/1.0.0")
        await js_learns(js, host, "/p2pnode-test/ours/1.0.0", known=False)


async def js_learns(js, host, protocol, *, known):
    while (protocol in (await js("known", peer=str(host.peer_id)))["protocols"]) is not known:  # noqa: ASYNC110  # in another process, no event can be waited for
        await trio.sleep(0.02)


async def test_pings_are_answered_both_ways(connected):
    host, js, peer_id, _ = connected
    with trio.fail_after(WITHIN):
        assert 0 < await PingService(host).ping(peer_id) < 10
        assert 0 <= await js("ping", peer=str(host.peer_id)) < 10_000


async def test_an_unknown_protocol_is_refused_by_both(connected):
    host, js, peer_id, _ = connected
    with trio.fail_after(WITHIN):
        stream = await host.open_stream(peer_id, ["/p2pnode-test/unknown/1.0.0"])
        await stream.send_all(b"in the hope of an answer")
        with pytest.raises(ProtocolNotSupportedError):
            await stream.receive_some()
        with pytest.raises(ProtocolNotSupportedError):
            await host.open_stream(peer_id, ["/p2pnode-test/a", "/p2pnode-test/b"])
        with pytest.raises(Exception, match="UnsupportedProtocol"):
            await js("echo", peer=str(host.peer_id), size=1, protocol="/p2pnode-test/unknown/1.0.0")
        assert await send_and_hash(host, peer_id, ECHO, b"still here") == digest(b"still here")


async def test_the_second_of_two_protocols_is_agreed_on(connected):
    host, _, peer_id, _ = connected
    with trio.fail_after(WITHIN):
        stream = await host.open_stream(peer_id, ["/p2pnode-test/unknown/1.0.0", ECHO])
        assert stream.protocol == ECHO
        await stream.send_all(b"x")
        assert await stream.receive_exactly(1) == b"x"
        await stream.aclose()


@pytest.mark.parametrize("size", SIZES)
async def test_what_we_send_comes_back_whole(connected, size):
    host, _, peer_id, _ = connected
    data = pattern(size)
    with trio.fail_after(WITHIN):
        assert await send_and_hash(host, peer_id, ECHO, data) == digest(data)


@pytest.mark.parametrize("size", SIZES)
async def test_what_they_send_comes_back_whole(connected, size):
    host, js, _, _ = connected
    with trio.fail_after(WITHIN):
        answer = await js("echo", peer=str(host.peer_id), size=size)
    assert answer == {"size": size, "whole": True}


async def test_a_finished_sender_still_gets_its_answer(connected):
    host, js, peer_id, _ = connected
    data = pattern(3 * MIB)
    expected = {"size": len(data), "sha256": digest(data).hex()}
    with trio.fail_after(WITHIN):
        stream = await host.open_stream(peer_id, [HALF])
        await stream.send_all(data)
        await stream.send_eof()
        answer = b""
        while piece := await stream.receive_some():
            answer += piece
        assert json.loads(answer) == expected
        assert await js("half", peer=str(host.peer_id), size=3 * MIB) == {"whole": True}


async def test_a_hundred_streams_at_once_stay_apart(connected):
    host, js, peer_id, _ = connected

    async def one(number):
        data = number.to_bytes(4, "big") * 5000
        assert await send_and_hash(host, peer_id, ECHO, data) == digest(data)

    with trio.fail_after(WITHIN):
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
        answers = await js("echoes", peer=str(host.peer_id), count=100, size=20_000)
    assert answers == [{"size": 20_000, "whole": True}] * 100


@pytest.mark.parametrize("who", ["ours dials", "theirs dials"])
@pytest.mark.parametrize("closer", ["we close", "they close"])
async def test_after_a_close_they_connect_again(host, js, who, closer):
    peer_id = PeerId.from_text(js.peer_id)
    with trio.fail_after(WITHIN):
        for _ in range(2):
            await connect(who, host, js)
            assert await send_and_hash(host, peer_id, ECHO, b"hello") == digest(b"hello")
            if closer == "we close":
                await host.connection_to(peer_id).aclose()
            else:
                await js("hangUp", peer=str(host.peer_id))
            while host.connections() or await js("connections", peer=str(host.peer_id)):  # noqa: ASYNC110  # as above
                await trio.sleep(0.02)


def digest(data):
    return hashlib.sha256(data).digest()
