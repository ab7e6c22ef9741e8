import pytest
import trio

from p2pnode.config import DcutrSettings
from p2pnode.errors import DialError, HolePunchError, LimitedConnectionError, StreamResetError
from p2pnode.host import ConnectionEnded, PeerMisbehaved
from p2pnode.protocols.dcutr.core import (
    MAX_ATTEMPTS,
    PROTOCOL,
    HolePunchAttemptFailed,
    HolePunched,
    HolePunchFailed,
)
from p2pnode.protocols.dcutr.messages import HolePunch, MessageType, decode, encode
from p2pnode.protocols.dcutr.service import DcutrService
from p2pnode.testing.network import Nat
from p2pnode.wire import varint
from p2pnode.wire.addresses import parse_address

HOME = Nat.PORT_RESTRICTED
SYMMETRIC = Nat.SYMMETRIC


async def test_the_relayed_connection_goes_when_its_streams_have_ended(meet, say, autojump_clock):
    free = {"circuit_bytes": 0, "circuit_seconds": 0}
    async with meet(HOME, HOME, relay=free) as meeting:
        relayed = await meeting.call()
        old = await relayed.open_stream(["/test/echo"])
        await old.send_all(b"before")
        assert await old.receive_exactly(6) == b"before"
        await meeting.until(meeting.a, HolePunched)
        await meeting.until(meeting.b, HolePunched)
        direct, _ = meeting.ends()
        assert direct is not relayed
        await say(direct)
        await trio.sleep(100)
        await old.send_all(b"after")  # it is left in peace for as long as it takes
        assert await old.receive_exactly(5) == b"after"
        assert not relayed.is_closed
        await old.aclose()
        ended = await meeting.until(meeting.a, ConnectionEnded)
        assert ended.connection is relayed
        assert not direct.is_closed


async def test_status_pages_tell_how_a_peer_is_connected_and_why(meet, autojump_clock):
    async with meet(HOME, HOME) as meeting:
        relayed = await meeting.call()
        assert relayed.info().way == "relayed, limited"
        punched = await meeting.until(meeting.b, HolePunched)
        ours, theirs = meeting.ends()
        assert ours.info().way == theirs.info().way == "punched"
        assert theirs.info().note == (
            "made by hole punching, attempt 1, "
            f"{punched.seconds:.2f} s after the peer was connected over a relay"
        )
        assert "attempt 1" in ours.info().note
        assert relayed.info().note == "replaced by a direct connection"


async def test_who_wants_a_direct_connection_waits_for_the_hole(meet, say, autojump_clock):
    async with meet(HOME, HOME) as meeting:
        relayed = await meeting.call()
        with pytest.raises(LimitedConnectionError):
            await say(relayed)
        direct = await meeting.a.connect(meeting.b.peer_id, direct=True)
        assert not direct.is_relayed
        await say(direct)


async def test_who_waits_for_a_hole_that_never_comes_is_told_so(meet, autojump_clock):
    async with meet(SYMMETRIC, SYMMETRIC) as meeting:
        await meeting.call()
        began = trio.current_time()
        with pytest.raises(DialError):
            await meeting.a.connect(meeting.b.peer_id, direct=True)
        waited = trio.current_time() - began
        assert waited <= meeting.a.settings.direct_wait
        with pytest.raises(DialError):  # and not again, once it is clear
            await meeting.a.connect(meeting.b.peer_id, direct=True)
        assert trio.current_time() - began == waited


async def test_an_upgrade_that_failed_is_tried_again_when_the_pause_is_over(meet, autojump_clock):
    free = {"circuit_bytes": 0, "circuit_seconds": 0, "circuit_idle_timeout": 3600.0}
    async with meet(SYMMETRIC, SYMMETRIC, relay=free) as meeting:
        connection = await meeting.call()
        keeps_it_open = await connection.open_stream(["/test/echo"])
        await keeps_it_open.send_all(b"x")
        failed = await meeting.until(meeting.b, HolePunchFailed)
        began = trio.current_time()
        for host in (meeting.a, meeting.b):  # both get better routers
            meeting.machines[host].router.kind = Nat.FULL_CONE
        await meeting.until(meeting.b, HolePunched)
        assert trio.current_time() - began == pytest.approx(failed.retry_in, abs=5)
        await keeps_it_open.aclose()


async def test_a_peer_that_does_not_punch_stays_relayed(meet, autojump_clock):
    async with meet(HOME, HOME, services="b") as meeting:
        await meeting.call()
        failed = await meeting.until(meeting.b, HolePunchFailed)
        assert failed.attempts == 0
        assert "does not know how" in failed.reason
        assert meeting.ends()[1].is_relayed


async def test_a_peer_that_learns_to_punch_is_tried_at_once(meet, autojump_clock):
    """go-libp2p takes part only when four others have told it where they see it."""
    async with meet(HOME, HOME, services="b") as meeting:
        await meeting.call()
        await meeting.until(meeting.b, HolePunchFailed)
        await trio.sleep(1)
        learnt_at = trio.current_time()
        await meeting.world.nursery.start(DcutrService(meeting.a, DcutrSettings()).run)
        punched = await meeting.until(meeting.b, HolePunched)
        assert punched.attempts == 1
        assert trio.current_time() - learnt_at < 5
        assert not meeting.ends()[1].is_relayed


async def test_a_peer_without_a_nat_is_dialled_even_if_it_does_not_punch(meet, autojump_clock):
    async with meet(Nat.NONE, HOME, services="b") as meeting:
        await meeting.call()
        punched = await meeting.until(meeting.b, HolePunched)
        assert punched.attempts == 0
        assert meeting.ends()[1].info().way == "direct"
        assert "made by dialling it" in meeting.ends()[1].info().note


# --- what A takes, and what it refuses ------------------------------------------------------------


async def ask(connection, *messages):
    """Speak as B; returns the stream."""
    stream = await connection.open_stream([PROTOCOL], allow_limited=True)
    for each in messages:
        await stream.send_all(varint.prefixed(each))
    return stream


CONNECT = encode(
    HolePunch(type=MessageType.CONNECT, addresses=(parse_address("/ip4/9.9.9.9/tcp/1"),))
)
SYNC = encode(HolePunch(type=MessageType.SYNC))


async def called(meeting):
    """Return B's end of the relayed connection, which no service upgrades."""
    await meeting.call()
    await trio.sleep(0.5)
    return meeting.ends()[1]


async def test_an_older_peer_with_the_roles_reversed_succeeds_at_the_third_attempt(
    meet, say, autojump_clock
):
    async with meet(HOME, HOME, services="a") as meeting:
        relayed = await called(meeting)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            own = tuple(place.followed_by(b"") for _, place, _ in meeting.b.sightings())
            sent_at = trio.current_time()
            stream = await ask(relayed, encode(HolePunch(type=MessageType.CONNECT, addresses=own)))
            answer = decode(await stream.receive_prefixed(4096))
            round_trip = trio.current_time() - sent_at
            await stream.send_all(varint.prefixed(SYNC))
            await stream.aclose()
            await trio.sleep(round_trip / 2)
            punch = meeting.b.punch(
                relayed.peer_id, answer.addresses, is_client=True, settings=DcutrSettings()
            )
            if attempt < MAX_ATTEMPTS:
                with pytest.raises(HolePunchError):
                    await punch
            else:
                assert (await punch).direction == "outbound"
            await trio.sleep(0.5)
        ours, theirs = meeting.ends()
        assert (ours.direction, theirs.direction) == ("inbound", "outbound")
        await say(ours)
        failures = [
            each.attempt
            for each in meeting.events[meeting.a]
            if isinstance(each, HolePunchAttemptFailed)
        ]
        assert failures == [1, 2]


async def test_a_peer_that_asks_again_and_again_is_refused(meet, autojump_clock):
    settings = DcutrSettings(tries_per_peer=2)
    async with meet(HOME, HOME, services="a", settings=settings) as meeting:
        relayed = await called(meeting)
        for _ in range(2):
            stream = await ask(relayed, CONNECT)
            assert decode(await stream.receive_prefixed(4096)).type is MessageType.CONNECT
            stream.reset()
        stream = await ask(relayed, CONNECT)
        with pytest.raises(StreamResetError):
            await stream.receive_prefixed(4096)


async def test_only_so_many_are_helped_at_once(meet, autojump_clock):
    settings = DcutrSettings(max_punches=1)
    async with meet(HOME, HOME, services="a", settings=settings) as meeting:
        relayed = await called(meeting)
        first = await ask(relayed, CONNECT)
        await first.receive_prefixed(4096)
        second = await ask(relayed, CONNECT)
        with pytest.raises(StreamResetError):
            await second.receive_prefixed(4096)
        first.reset()
        await trio.sleep(0.5)
        third = await ask(relayed, CONNECT)
        await third.receive_prefixed(4096)
        third.reset()


async def test_a_peer_that_falls_silent_is_left(meet, autojump_clock):
    async with meet(HOME, HOME, services="a") as meeting:
        relayed = await called(meeting)
        began = trio.current_time()
        stream = await ask(relayed, CONNECT)
        await stream.receive_prefixed(4096)
        with pytest.raises(StreamResetError):
            await stream.receive_some()
        assert trio.current_time() - began == pytest.approx(10.0, abs=0.5)


async def refused(meeting, stream):
    """Wait until A has reset a stream; returns the rule that it says was broken."""
    told = []
    undo = meeting.a.events.on(PeerMisbehaved, lambda event: told.append(event.reason))
    with pytest.raises(StreamResetError):
        await stream.receive_prefixed(4096)
    undo()
    (reason,) = told
    return reason


async def test_a_direct_connection_is_not_punched_again(meet, autojump_clock):
    async with meet(Nat.NONE, Nat.NONE, services="a") as meeting:
        connection = await meeting.b.connect(meeting.a.peer_id, meeting.a.addresses)
        stream = await ask(connection, CONNECT)
        assert "relayed connections only" in await refused(meeting, stream)


async def test_messages_out_of_turn_are_a_broken_rule(meet, autojump_clock):
    async with meet(HOME, HOME, services="a") as meeting:
        stream = await ask(await called(meeting), SYNC)
        assert "SYNC came where CONNECT is due" in await refused(meeting, stream)


async def test_who_called_over_the_relay_does_not_begin(meet, autojump_clock):
    async with meet(HOME, HOME, services="b") as meeting:
        connection = await meeting.call()
        stream = await ask(connection, CONNECT)
        with pytest.raises(StreamResetError):
            await stream.receive_prefixed(4096)


async def test_an_upgrade_ends_with_its_connection(meet, autojump_clock):
    async with meet(SYMMETRIC, SYMMETRIC) as meeting:
        connection = await meeting.call()
        await trio.sleep(1)
        await connection.aclose()
        await meeting.until(meeting.b, ConnectionEnded)
        await trio.sleep(60)
        events = [type(each) for each in meeting.events[meeting.b]]
        assert HolePunchFailed not in events  # it says nothing about the way between them
        assert HolePunched not in events
