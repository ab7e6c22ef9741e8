import contextlib

import pytest
import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import StreamResetError
from p2pnode.host import PeerIdentified, PeerMisbehaved
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.identify.core import PROTOCOL, PUSH_PROTOCOL, Introduction, encode
from p2pnode.protocols.identify.service import AGENT, IdentifyService
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire import varint
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.pb import identify_pb2
from p2pnode.wire.records import PeerRecord


async def noop(_stream):
    await trio.lowlevel.checkpoint()


async def ask(host, peer_id):
    """Fetch a peer's introduction as a foreign implementation would."""
    stream = await host.open_stream(peer_id, [PROTOCOL])
    messages = []
    while (message := await stream.receive_prefixed(8192)) is not None:
        messages.append(message)
    await stream.aclose()
    return messages


async def settle():
    await trio.sleep(1)


async def test_both_sides_of_a_new_connection_learn_of_each_other(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.05))) as world:
        ours, theirs = await world.add_host(), await world.add_host()
        theirs.set_handler("/test/x", noop)
        with (
            ours.events.subscribe(PeerIdentified) as at_ours,
            theirs.events.subscribe(PeerIdentified) as at_theirs,
        ):
            connection = await ours.connect(theirs.peer_id, theirs.addresses)
            of_theirs, of_ours = await at_ours.get(), await at_theirs.get()
        assert of_theirs.peer_id == theirs.peer_id
        assert of_theirs.protocols == frozenset(theirs.protocols)
        assert of_theirs.addresses == tuple(theirs.addresses)
        assert of_theirs.agent == AGENT
        assert of_theirs.observed_address == connection.local_address
        assert of_ours.peer_id == ours.peer_id
        assert of_ours.addresses == tuple(ours.addresses)
        assert theirs.addresses_of(ours.peer_id) == ours.addresses
        assert theirs.protocols_of(ours.peer_id) == frozenset(ours.protocols)


async def test_the_record_is_signed_and_its_number_rises_with_the_addresses(autojump_clock):
    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        await settle()

        async def record():
            (data,) = await ask(ours, theirs.peer_id)
            return PeerRecord.open(_read(data).signedPeerRecord)

        first, again = await record(), await record()
        assert first == again
        assert first.peer_id == theirs.peer_id
        await theirs.listen(tcp_address(theirs._transports[0].ip, 0))
        later = await record()
        assert later.seq > first.seq
        assert later.addresses == tuple(theirs.addresses)


def _read(data):
    return identify_pb2.Identify.FromString(data)


async def test_changes_are_pushed_once_and_together(autojump_clock):
    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        await settle()
        with theirs.events.subscribe(PeerIdentified) as identified:
            ours.set_handler("/test/x", noop)
            ours.set_handler("/test/y", noop)
            fresh = await ours.listen(tcp_address(ours._transports[0].ip, 0))
            event = await identified.get()
            await trio.sleep(10)
            assert not identified._pending
        assert {"/test/x", "/test/y"} <= event.protocols
        assert fresh[0] in event.addresses
        with theirs.events.subscribe(PeerIdentified) as identified:
            ours.remove_handler("/test/x")
            assert "/test/x" not in (await identified.get()).protocols
        assert "/test/x" not in theirs.protocols_of(ours.peer_id)


async def test_a_change_during_the_greeting_is_not_lost(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.2))) as world:
        ours, theirs = await world.add_host(), await world.add_host()
        await ours.connect(theirs.peer_id, theirs.addresses)
        for step in range(10):  # before, while and after the peer asks who we are
            ours.set_handler(f"/test/{step}", noop)
            await trio.sleep(0.09)
        await trio.sleep(5)
        assert theirs.protocols_of(ours.peer_id) == frozenset(ours.protocols)


async def test_a_push_that_names_only_addresses_keeps_the_protocols(autojump_clock):
    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        await settle()
        before = theirs.protocols_of(ours.peer_id)
        moved = tcp_address("11.1.2.3", 4001)
        stream = await ours.open_stream(theirs.peer_id, [PUSH_PROTOCOL])
        await stream.send_all(encode(Introduction(addresses=(moved,))))
        await stream.aclose()
        await settle()
        assert moved in theirs.addresses_of(ours.peer_id)
        assert theirs.protocols_of(ours.peer_id) == before


@pytest.mark.parametrize(
    "data",
    [
        varint.encode(8193),
        b"\x00" * 11,
        b"",
        varint.prefixed(b"\xff\xff"),
        varint.prefixed(b"\x0a\x05")[:-1],
        encode(Introduction(public_key=PrivateKey.from_seed(b"o" * 32).public_key)),
    ],
    ids=["too long", "too many", "none", "malformed", "truncated", "another key"],
)
async def test_a_bad_push_is_misbehaviour_and_changes_nothing(autojump_clock, data):
    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        await settle()
        with theirs.events.subscribe(PeerMisbehaved, PeerIdentified) as events:
            stream = await ours.open_stream(theirs.peer_id, [PUSH_PROTOCOL])
            with contextlib.suppress(StreamResetError):  # it may be refused before its end
                await stream.send_all(data)
                await stream.send_eof()
            event = await events.get()
        assert isinstance(event, PeerMisbehaved)
        assert event.reason.startswith(PUSH_PROTOCOL)
        assert event.peer_id == ours.peer_id


async def test_a_peer_that_lies_in_its_greeting_is_noted(autojump_clock):
    async def lie(stream):
        await stream.send_all(varint.prefixed(b"\xff\xff"))

    async with full_hosts() as world:
        ours = await world.add_host()
        theirs = await world.add_host(identify=False)
        theirs.set_handler(PROTOCOL, lie)
        with ours.events.subscribe(PeerMisbehaved) as misbehaved:
            await ours.connect(theirs.peer_id, theirs.addresses)
            assert (await misbehaved.get()).reason.startswith(PROTOCOL)


async def test_a_peer_without_identify_can_be_talked_to(autojump_clock):
    async with full_hosts() as world:
        ours = await world.add_host()
        theirs = await world.add_host(identify=False)
        connection = await ours.connect(theirs.peer_id, theirs.addresses)
        ours.set_handler("/test/x", noop)
        await trio.sleep(30)
        assert not connection.is_closed
        assert connection.streams == 0


async def test_a_peer_that_does_not_finish_is_left_in_time(autojump_clock):
    settings = NetworkSettings(identify_timeout=3.0)
    async with full_hosts() as world:
        ours = await world.add_host(settings=settings)
        theirs = await world.add_host(identify=False)

        async def hang(_stream):
            await trio.sleep_forever()

        theirs.set_handler(PROTOCOL, hang)
        await ours.connect(theirs.peer_id, theirs.addresses)
        stream = await theirs.open_stream(ours.peer_id, [PUSH_PROTOCOL])
        await stream.send_all(b"\x05")
        with pytest.raises(StreamResetError):
            await stream.receive_some()
        assert trio.current_time() == pytest.approx(3.0)


async def test_when_the_service_ends_its_protocols_are_served_no_longer(autojump_clock):
    async with full_hosts() as world:
        ours = await world.add_host(identify=False)
        theirs = await world.add_host()
        async with trio.open_nursery() as nursery:
            await nursery.start(IdentifyService(ours).run)
            assert PROTOCOL in ours.protocols
            nursery.cancel_scope.cancel()
        assert ours.protocols == []
        await ours.connect(theirs.peer_id, theirs.addresses)
        await settle()
        assert ours.protocols_of(theirs.peer_id) == frozenset()


async def test_connections_older_than_the_service_are_greeted_too(autojump_clock):
    async with full_hosts() as world:
        ours = await world.add_host(identify=False)
        theirs = await world.add_host()
        await ours.connect(theirs.peer_id, theirs.addresses)
        world.nursery.start_soon(IdentifyService(ours).run)
        await settle()
        assert ours.protocols_of(theirs.peer_id) == frozenset(theirs.protocols)


async def test_a_host_that_does_not_listen_signs_no_record(autojump_clock):
    async with full_hosts() as world:
        ours = await world.add_host()
        trainer = await world.add_host(listen=False)
        await trainer.connect(ours.peer_id, ours.addresses)
        await settle()
        assert isinstance(trainer, NetworkHost)
        (data,) = await ask(ours, trainer.peer_id)
        assert not _read(data).signedPeerRecord
        assert ours.addresses_of(trainer.peer_id) == []


# --- signed records -------------------------------------------------------------------------------

SOMEWHERE = tcp_address("11.1.2.3", 4001)
ELSEWHERE = tcp_address("11.1.2.4", 4001)


def record(key, seq, *addresses):
    return PeerRecord(peer_id=key.peer_id, seq=seq, addresses=addresses).seal(key)


async def push(host, peer_id, introduction):
    stream = await host.open_stream(peer_id, [PUSH_PROTOCOL])
    await stream.send_all(encode(introduction))
    await stream.aclose()
    await settle()


async def test_signed_addresses_replace_each_other_by_their_numbers_alone(autojump_clock):
    async with full_hosts() as world:
        ours = await world.add_host()
        theirs = await world.add_host(identify=False)
        await theirs.connect(ours.peer_id, ours.addresses)
        newer, older = (record(theirs.key, seq, at) for seq, at in [(8, SOMEWHERE), (7, ELSEWHERE)])
        for envelope in (newer, older, newer):
            await push(theirs, ours.peer_id, Introduction(record=envelope))
            assert ours.addresses_of(theirs.peer_id) == [SOMEWHERE]
            assert ours.peerstore.record_of(theirs.peer_id) == newer
        newest = record(theirs.key, 9, ELSEWHERE)
        await push(theirs, ours.peer_id, Introduction(record=newest))
        assert ours.addresses_of(theirs.peer_id) == [ELSEWHERE]
        assert ours.peerstore.record_of(theirs.peer_id) == newest


def _forged(envelope):
    return envelope[:-1] + bytes([envelope[-1] ^ 1])


OTHER_KEY = PrivateKey.from_seed(b"o" * 32)


@pytest.mark.parametrize(
    "envelope_of",
    [
        lambda _key: record(OTHER_KEY, 7, SOMEWHERE),
        lambda key: _forged(record(key, 7, SOMEWHERE)),
        lambda _key: b"no envelope",
    ],
    ids=["of another peer", "forged", "malformed"],
)
async def test_a_wrong_record_is_misbehaviour_and_nothing_beside_it_is_believed(
    autojump_clock, envelope_of
):
    async with full_hosts() as world:
        ours = await world.add_host()
        theirs = await world.add_host(identify=False)
        await theirs.connect(ours.peer_id, ours.addresses)
        with ours.events.subscribe(PeerMisbehaved) as misbehaved:
            said = Introduction(addresses=(ELSEWHERE,), record=envelope_of(theirs.key))
            await push(theirs, ours.peer_id, said)
            assert (await misbehaved.get()).peer_id == theirs.peer_id
        assert ours.addresses_of(theirs.peer_id) == []
        assert ours.peerstore.record_of(theirs.peer_id) is None
        assert ours.peerstore.record_of(OTHER_KEY.peer_id) is None
