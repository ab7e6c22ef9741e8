"""What js-libp2p does to a peer of ours, over both transports, whichever of them dialled."""

import pytest
import trio

from p2pnode.host import PeerIdentified
from p2pnode.protocols.identify.service import AGENT
from p2pnode.testing.peer.checks.target import RETRY_INTERVAL
from p2pnode.testing.peer.node import ECHO
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.records import PeerRecord

pytestmark = [pytest.mark.real, pytest.mark.interop]

MIB = 1024 * 1024
SIZES = [0, 1, MIB, 50 * MIB]
WITHIN = 60


@pytest.fixture
async def connected(target, ours, js):
    """Our host, the js node, and what our host was told by it, once they are connected."""
    host = ours.network.host
    with host.events.subscribe(PeerIdentified) as identified, trio.fail_after(WITHIN):
        await target.connect()
        event = await identified.get()
    assert event.peer_id == js.peer_id
    return host, js, event


async def test_every_field_of_identify_is_understood_by_both(connected):
    host, js, event = connected
    connection = host.connection_to(js.peer_id)
    assert set(js.hello["protocols"]) <= event.protocols
    assert {str(each) for each in event.addresses} == set(js.hello["addresses"])
    assert event.agent.startswith("js-libp2p/")
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
    host, js, _ = connected
    with host.events.subscribe(PeerIdentified) as identified, trio.fail_after(WITHIN):
        await js("handle", protocol="/p2pnode-test/late/1.0.0")
        while "/p2pnode-test/late/1.0.0" not in (await identified.get()).protocols:
            pass
        await js("unhandle", protocol="/p2pnode-test/late/1.0.0")
        while "/p2pnode-test/late/1.0.0" in (await identified.get()).protocols:
            pass
        assert "/p2pnode-test/late/1.0.0" not in host.protocols_of(js.peer_id)
        await js("identified", peer=str(host.peer_id))
        host.set_handler("/p2pnode-test/ours/1.0.0", trio.sleep)
        await js_learns(js, host, "/p2pnode-test/ours/1.0.0", known=True)
        host.remove_handler("/p2pnode-test/ours/1.0.0")
        await js_learns(js, host, "/p2pnode-test/ours/1.0.0", known=False)


async def js_learns(js, host, protocol, *, known):
    while (protocol in (await js("known", peer=str(host.peer_id)))["protocols"]) is not known:  # noqa: ASYNC110  # in another process, no event can be waited for
        await trio.sleep(RETRY_INTERVAL)


async def test_its_pings_are_answered(connected):
    host, js, _ = connected
    with trio.fail_after(WITHIN):
        for _ in range(3):
            assert 0 <= await js("ping", peer=str(host.peer_id)) < 10_000


async def test_an_unknown_protocol_is_refused(connected):
    host, js, _ = connected
    with trio.fail_after(WITHIN):
        with pytest.raises(Exception, match="UnsupportedProtocol"):
            await js("echo", peer=str(host.peer_id), size=1, protocol="/p2pnode-test/unknown/1.0.0")
        assert (await js("echo", peer=str(host.peer_id), size=1))["whole"]


async def test_the_second_of_two_protocols_is_agreed_on(connected):
    host, js, _ = connected
    with trio.fail_after(WITHIN):
        stream = await host.open_stream(js.peer_id, ["/p2pnode-test/unknown/1.0.0", ECHO])
        assert stream.protocol == ECHO
        await stream.send_all(b"x")
        assert await stream.receive_exactly(1) == b"x"
        await stream.aclose()


@pytest.mark.parametrize("size", SIZES)
async def test_what_it_sends_comes_back_whole(connected, size, transport):
    host, js, _ = connected
    size = min(size, 5 * MIB) if transport == "quic" else size  # which is no way for bulk
    with trio.fail_after(WITHIN):
        answer = await js("echo", peer=str(host.peer_id), size=size)
    assert answer == {"size": size, "whole": True}


async def test_a_finished_sender_still_gets_its_answer(connected):
    host, js, _ = connected
    with trio.fail_after(WITHIN):
        assert await js("perf", peer=str(host.peer_id), upload=3 * MIB, download=2 * MIB) == 2 * MIB
        assert await js("perf", peer=str(host.peer_id), upload=0, download=0) == 0


async def test_two_hundred_streams_at_once_stay_apart(connected):
    host, js, _ = connected
    with trio.fail_after(WITHIN):
        answers = await js("echoes", peer=str(host.peer_id), count=200, size=20_000)
    assert answers == [{"size": 20_000, "whole": True}] * 200


async def test_it_hangs_up_and_they_connect_again(connected, target):
    host, js, _ = connected
    for _ in range(2):
        with trio.fail_after(WITHIN):
            await js("hangUp", peer=str(host.peer_id))
            await target.connect()
            assert (await js("echo", peer=str(host.peer_id), size=1))["whole"]
            assert await target.peer.network.ping.ping(PeerId.from_text(js.hello["peer"])) < 10
