"""The checks pass on a peer of ours, and each one fails on a peer that does what it is about."""

import pytest
import trio

from p2pnode.errors import ProtocolError
from p2pnode.protocols.identify.core import PROTOCOL as IDENTIFY
from p2pnode.protocols.identify.core import PUSH_PROTOCOL as PUSH
from p2pnode.protocols.kad.messages import Message, MessageType, decode, encode
from p2pnode.protocols.perf.core import PROTOCOL as PERF
from p2pnode.protocols.ping.core import PROTOCOL as PING
from p2pnode.protocols.pubsub.state import PROTOCOLS as MESHSUB
from p2pnode.testing.peer.checks import connection, dht, streams, topics
from p2pnode.testing.peer.checks.table import Check, run_checks, table
from p2pnode.testing.peer.checks.target import CheckFailedError, Target
from p2pnode.testing.peer.node import ECHO, KAD, Peer, key_from
from p2pnode.wire import varint
from p2pnode.wire.addresses import parse_address, split_p2p
from p2pnode.wire.keys import PrivateKey

pytestmark = pytest.mark.real

ALL = table(KAD)
NAMES = [each.name for each in ALL]
SOON = 1.0  # seconds a peer that never answers is waited for


@pytest.fixture
async def theirs(nursery):
    """The peer that is checked."""
    peer = Peer(PrivateKey.generate())
    await nursery.start(peer.run)
    return peer


@pytest.fixture
async def target(theirs, nursery):
    """What the checks are run on: `theirs`, as a peer of its own sees it."""
    (address,) = await theirs.listen(["/ip4/127.0.0.1/tcp/0"])
    bare, peer_id = split_p2p(parse_address(address))
    ours = Peer(PrivateKey.generate())
    await nursery.start(ours.run)
    await ours.listen(["/ip4/127.0.0.1/tcp/0"])

    async def connect():
        await ours.network.host.connect(peer_id, [bare])

    return Target(peer=ours, peer_id=peer_id, address=bare, connect=connect)


async def outcomes_of(target, checks=ALL, **options):
    outcomes = []
    failures = await run_checks(target, checks, outcomes.append, **options)
    assert failures == sum(each.error is not None for each in outcomes)
    return {each.check: each for each in outcomes}


async def test_a_peer_of_ours_passes_every_check(target):
    outcomes = await outcomes_of(target)
    assert list(outcomes) == NAMES
    assert [each for each in outcomes.values() if not each.ok] == []
    assert outcomes["identify"].facts["missing"] == []
    assert outcomes["kad-bad-value"].facts["refusals"] == ["StreamResetError"] * 3
    assert len(outcomes["ping"].facts["rtts"]) == 3


async def test_what_a_peer_does_not_list_is_skipped(target, theirs):
    host = theirs.network.host
    for protocol in (ECHO, PERF, PING, PUSH, KAD, *MESHSUB):
        host.remove_handler(protocol)
    outcomes = await outcomes_of(target)
    ran = {"connect", "identify", "unknown-protocol"}
    assert {name for name, each in outcomes.items() if each.ok} == ran
    for name in set(NAMES) - ran:
        assert "does not list" in outcomes[name].skipped
        assert outcomes[name].as_json() == {"check": name, "skipped": outcomes[name].skipped}


async def test_of_a_peer_that_is_not_there_only_the_connection_fails(target, theirs):
    async def connect():
        await target.host.connect(PrivateKey.generate().peer_id, [target.address])

    outcomes = await outcomes_of(
        Target(peer=target.peer, peer_id=target.peer_id, address=target.address, connect=connect)
    )
    assert outcomes.pop("connect").as_json()["error"].startswith("HandshakeError: ")
    assert {each.skipped for each in outcomes.values()} == {"there is no connection"}


async def lose_the_last_byte(stream):
    held = b""
    while data := await stream.receive_some():
        await stream.send_all(held)
        await stream.send_all(data[:-1])
        held = bytes(data[-1:])


async def change_a_byte(stream):
    while data := await stream.receive_some():
        await stream.send_all(bytes([data[0] ^ 1]) + data[1:])


async def never_end(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)
    await trio.sleep_forever()


async def add_a_byte(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.send_all(b"!")


async def refuse(_stream):
    raise ProtocolError("not today")


async def silent(_stream):
    await trio.sleep_forever()


async def junk(stream):
    await stream.send_all(b"\x05hello")


async def keep_anything(stream):
    """A DHT that keeps every value, and knows nobody."""
    kept = {}
    while (data := await stream.receive_prefixed(100_000)) is not None:
        asked = decode(data)
        if asked.type is MessageType.PUT_VALUE:
            kept[asked.key] = asked.record
        if asked.type is not MessageType.ADD_PROVIDER:
            answer = Message(type=asked.type, key=asked.key, record=kept.get(asked.key))
            await stream.send_all(varint.prefixed(encode(answer)))


async def keep_nothing(stream):
    while (data := await stream.receive_prefixed(100_000)) is not None:
        asked = decode(data)
        await stream.send_all(varint.prefixed(encode(asked)))
        if asked.type is MessageType.PUT_VALUE:
            await stream.send_all(varint.prefixed(encode(Message(type=MessageType.GET_VALUE))))


def echo_of(size):
    return lambda target: streams.check_echo(target, size)


@pytest.mark.parametrize(
    ("check", "sabotage", "says"),
    [
        (connection.check_identify, (IDENTIFY, junk), "ProtocolError"),
        (connection.check_identify, (IDENTIFY, silent), "not done"),
        (connection.check_push, (PUSH, refuse), "StreamResetError"),
        (connection.check_push, (PUSH, junk), "answers an identify push"),
        (connection.check_push, (PUSH, silent), "not done"),
        (connection.check_ping, (PING, change_a_byte), "not what was sent"),
        (connection.check_unknown, (connection.UNKNOWN, never_end), "was agreed on"),
        (connection.check_reconnect, (PING, refuse), "StreamResetError"),
        (echo_of(0), (ECHO, add_a_byte), "1 of 0 bytes"),
        (echo_of(1), (ECHO, change_a_byte), "other bytes"),
        (echo_of(70_000), (ECHO, lose_the_last_byte), "69999 of 70000"),
        (echo_of(70_000), (ECHO, never_end), "not done"),
        (echo_of(70_000), (ECHO, refuse), "StreamResetError"),
        (streams.check_half_close, (ECHO, never_end), "not done"),
        (streams.check_half_close, (ECHO, add_a_byte), "nobody sent"),
        (streams.check_half_close, (ECHO, change_a_byte), "other bytes"),
        (streams.check_many_streams, (ECHO, change_a_byte), "another stream's"),
        (streams.check_many_streams, (ECHO, add_a_byte), "nobody sent"),
        (streams.check_many_streams, (ECHO, never_end), "not done"),
        (streams.check_perf, (PERF, refuse), "StreamResetError"),
        (streams.check_perf, (PERF, silent), "not done"),
        (topics.check_gossipsub, (MESHSUB[0], silent), "not done"),
        (dht.check_find_node, (KAD, keep_anything), "not done"),
        (dht.check_find_node, (KAD, refuse), "StreamResetError"),
        (dht.check_value, (KAD, keep_nothing), "did not keep"),
        (dht.check_bad_value, (KAD, keep_anything), "serves a bad value under b"),
        (dht.check_providers, (KAD, keep_anything), "not done"),
    ],
)
async def test_a_peer_that_does_otherwise_fails_the_check(target, theirs, check, sabotage, says):
    theirs.network.host.set_handler(*sabotage)
    checks = (
        ALL[0],
        Check(name="sabotaged", run=check),
        Check(name="behind it", run=connection.check_connect),
    )
    timeout = SOON if says == "not done" else 30.0
    outcomes = await outcomes_of(target, checks, timeout=timeout)
    assert says in outcomes["sabotaged"].error
    line = outcomes["sabotaged"].as_json()
    assert line == {
        "check": "sabotaged",
        "ok": False,
        "seconds": line["seconds"],
        "error": outcomes["sabotaged"].error,
    }
    assert outcomes["behind it"].ok


async def test_a_check_that_costs_the_connection_does_not_cost_the_others(target):
    async def close(target):
        await target.connection.aclose()
        raise CheckFailedError("gone")

    checks = (
        ALL[0],
        Check(name="closing", run=close),
        Check(name="ping", run=connection.check_ping),
    )
    outcomes = await outcomes_of(target, checks)
    assert outcomes["closing"].error == "CheckFailedError: gone"
    assert outcomes["ping"].ok


async def test_a_bug_in_a_check_is_not_taken_for_a_failure(target):
    async def broken(_target):
        async with trio.open_nursery():
            raise ZeroDivisionError

    checks = (ALL[0], Check(name="broken", run=broken))
    with pytest.raises(ExceptionGroup):
        await outcomes_of(target, checks)


def test_a_seed_makes_the_same_identity_again():
    assert key_from("a").peer_id == key_from("a").peer_id
    assert len({key_from(seed).peer_id for seed in ("a", "b", None, None)}) == 4
