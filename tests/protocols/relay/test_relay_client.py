import dataclasses

import pytest
import trio
from multiaddr import Multiaddr

from p2pnode.clock import wall_time
from p2pnode.config import NetworkSettings, RelaySettings
from p2pnode.errors import (
    DialError,
    HandshakeError,
    ProtocolError,
    ProtocolNotSupportedError,
    RelayRefusedError,
    StreamResetError,
)
from p2pnode.host import PeerIdentified, PeerMisbehaved, ReachabilityChanged
from p2pnode.host.interfaces import Reachability
from p2pnode.protocols.relay.addresses import through
from p2pnode.protocols.relay.client import RelayFailed, RelayLost, RelayReserved
from p2pnode.protocols.relay.exchanges import CircuitStream, ask_stop, receive, send_hop
from p2pnode.protocols.relay.messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    HopMessage,
    HopType,
    Reservation,
    Status,
    StopMessage,
    StopType,
    encode_hop,
)
from p2pnode.protocols.relay.transport import RelayListener, RelayTransport
from p2pnode.protocols.relay.vouchers import Voucher
from p2pnode.testing.network import Nat
from p2pnode.transport.base import RawConnection
from p2pnode.wire import varint
from p2pnode.wire.addresses import with_p2p

ECHO = "/test/echo"


async def echo(stream):
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


async def is_echoed(connection):
    async with await connection.open_stream([ECHO], allow_limited=True) as stream:
        await stream.send_all(b"x")
        return await stream.receive_exactly(1) == b"x"


def reach(host, reachability):
    host.events.emit(ReachabilityChanged(reachability=reachability))


# --- holding reservations -----------------------------------------------------------------------


async def test_a_private_node_reserves_at_relays_it_meets_and_tells_its_peers(
    place, autojump_clock
):
    relays = [await place.add_relay() for _ in range(3)]
    friend = await place.world.add_host()
    host = await place.world.add_host(
        machine=place.world.network.add_machine(nat=Nat.SYMMETRIC),
        relay=RelaySettings(server="never"),
    )
    for each in (*relays, friend):
        await host.connect(each.peer_id, each.addresses)
    await trio.sleep(1)
    assert host.relayed == []  # nobody has said that it is private
    reach(host, Reachability.PRIVATE)
    await place.reserved(host, 2)
    await trio.sleep(1)
    held = place.client(host).info().held
    assert {each.relay for each in held} < {each.peer_id for each in relays}
    assert set(host.relayed) == {address for each in held for address in each.addresses}
    assert set(host.relayed) <= set(friend.addresses_of(host.peer_id))
    reach(host, Reachability.PUBLIC)
    await trio.sleep(1)
    assert host.relayed == []
    assert not set(friend.addresses_of(host.peer_id, hearsay=False)) & {
        address for each in held for address in each.addresses
    }
    assert not any(host.is_protected(each.peer_id) for each in relays)


@pytest.mark.parametrize(
    ("client", "reachability", "count"),
    [
        ("auto", None, 1),  # a relay was named
        ("auto", Reachability.PUBLIC, 0),
        ("always", Reachability.PUBLIC, 1),
    ],
)
async def test_when_reservations_are_held(place, client, reachability, count, autojump_clock):
    relay = await place.add_relay()
    host = await place.add_private(relay, client=client)
    if reachability is not None:
        reach(host, reachability)
    await trio.sleep(10)
    assert len(place.client(host).info().held) == count


async def test_a_reservation_is_renewed_before_it_ends_and_stays_valid(place, autojump_clock):
    relay = await place.add_relay(reservation_lifetime=100.0)
    host = await place.add_private(relay)
    host.set_handler(ECHO, echo)
    other = await place.world.add_host(relay=RelaySettings(client="never", server="never"))
    with host.events.subscribe(RelayLost) as lost:
        await trio.sleep(1000)
        assert await is_echoed(await other.connect(host.peer_id, host.relayed))
        with trio.move_on_after(0):
            raise AssertionError(await lost.get())
    assert place.server(relay).core.refused.total() == 0


async def test_a_lost_relay_is_replaced_and_one_that_returns_is_used_again(place, autojump_clock):
    first, second = await place.add_relay(), await place.add_relay()
    host = await place.add_private(first, reservations=1)
    await host.connect(second.peer_id, second.addresses)
    await trio.sleep(1)
    with host.events.subscribe(RelayLost, RelayReserved) as changes:
        place.world.kill(first)
        with trio.fail_after(5):
            assert (await changes.get()).relay == first.peer_id
            assert (await changes.get()).relay == second.peer_id
    assert host.relayed == [through(second.addresses[0], second.peer_id)]


async def test_a_relay_that_stops_relaying_is_left(place, autojump_clock):
    relay = await place.add_relay(reservation_lifetime=100.0)
    host = await place.add_private(relay)
    place.server(relay)._serve(False)
    with host.events.subscribe(RelayFailed) as failed:
        assert (await failed.get()).kind is ProtocolNotSupportedError
    await trio.sleep(100)
    assert place.client(host).info().held == ()
    assert host.relayed == []


async def test_the_connection_to_a_relay_is_kept_however_idle(place, autojump_clock):
    relay = await place.add_relay()
    host = await place.add_private(relay)
    await trio.sleep(1200)
    assert host.connection_to(relay.peer_id) is not None
    assert len(place.client(host).info().held) == 1


# --- relays that lie ----------------------------------------------------------------------------


class Liar:
    """A relay that does something else than it should."""

    def __init__(self, host):
        self.host = host
        self.asked = 0
        host.set_handler(HOP_PROTOCOL, self.answer)

    async def answer(self, stream):
        self.asked += 1
        await receive(stream)
        await self.act(stream)

    async def act(self, stream):
        raise NotImplementedError

    def grant(self, stream, **changes):
        """Say yes as an honest relay does, but for `changes` of the voucher."""
        expire = int(wall_time()) + 3600
        honest = Voucher(relay=self.host.peer_id, peer=stream.peer_id, expiration=expire)
        reservation = Reservation(
            expire=expire,
            addresses=tuple(self.host.addresses),
            voucher=dataclasses.replace(honest, **changes).seal(self.host.key),
        )
        return HopMessage(type=HopType.STATUS, status=Status.OK, reservation=reservation)


class Silent(Liar):
    async def act(self, stream):
        await trio.sleep_forever()


class ClosesAtOnce(Liar):
    async def act(self, stream):
        pass


class Resets(Liar):
    async def act(self, stream):
        stream.reset()


class Garbage(Liar):
    async def act(self, stream):
        await stream.send_all(b"\x04" + b"\xff" * 4)


class Endless(Liar):
    async def act(self, stream):
        await stream.send_all(varint.encode(1 << 40))


class AnswersWithARequest(Liar):
    async def act(self, stream):
        await send_hop(stream, HopMessage(type=HopType.RESERVE))


class Refuses(Liar):
    async def act(self, stream):
        await send_hop(stream, HopMessage(type=HopType.STATUS, status=Status.RESERVATION_REFUSED))


class PromisesNothing(Liar):
    async def act(self, stream):
        await send_hop(stream, HopMessage(type=HopType.STATUS, status=Status.OK))


class WrongVoucher(Liar):
    async def act(self, stream):
        await send_hop(stream, self.grant(stream, peer=self.host.peer_id))


class IsOver(Liar):
    async def act(self, stream):
        granted = self.grant(stream)
        over = dataclasses.replace(granted.reservation, expire=int(wall_time()) + 1)
        await send_hop(stream, dataclasses.replace(granted, reservation=over))


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Silent, DialError),
        (ClosesAtOnce, ProtocolError),
        (Resets, StreamResetError),
        (Garbage, ProtocolError),
        (Endless, ProtocolError),
        (AnswersWithARequest, ProtocolError),
        (Refuses, RelayRefusedError),
        (PromisesNothing, ProtocolError),
        (WrongVoucher, ProtocolError),
        (IsOver, ProtocolError),
    ],
)
async def test_a_relay_that_lies_is_left_alone_for_longer_and_longer_and_another_one_used(
    place, kind, error, autojump_clock
):
    liar = kind(await place.world.add_host())
    honest = await place.add_relay()
    addresses = [str(with_p2p(each.addresses[0], each.peer_id)) for each in (liar.host, honest)]
    host = await place.world.add_host(
        machine=place.world.network.add_machine(nat=Nat.SYMMETRIC),
        relay=RelaySettings(server="never", relays=tuple(addresses[:1]), reserve_timeout=5.0),
    )
    with host.events.subscribe(RelayFailed, RelayReserved, PeerMisbehaved) as events:
        failure = await events.get()
        assert isinstance(failure, RelayFailed)
        assert (failure.relay, failure.kind) == (liar.host.peer_id, error)
        if error is ProtocolError:
            assert isinstance(await events.get(), PeerMisbehaved)
        await host.connect(honest.peer_id, honest.addresses)
        while not isinstance(event := await events.get(), RelayReserved):
            pass
    assert event.relay == honest.peer_id
    asked = liar.asked
    await trio.sleep(120)
    assert asked <= liar.asked <= asked + 8  # two minutes of doubling pauses that begin with 2 s


# --- dialling through relays --------------------------------------------------------------------


class Takes(Liar):
    """Takes CONNECT, and then does as it likes."""

    async def act(self, stream):
        status = HopMessage(type=HopType.STATUS, status=Status.OK)
        await stream.send_all(varint.prefixed(encode_hop(status)) + b"behind it")
        await trio.sleep_forever()


@pytest.fixture
async def dialler(place):
    """A node that dials through relays, and is reached by none."""
    return await place.world.add_host(
        relay=RelaySettings(client="never", server="never", connect_timeout=3.0)
    )


def way_to(host, relay):
    return with_p2p(through(relay.addresses[0], relay.peer_id), host.peer_id)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Silent, (DialError, "did not connect this node to it within 3 s")),
        (ClosesAtOnce, (ProtocolError, "the stream ended")),
        (Resets, (StreamResetError, "reset")),
        (Garbage, (ProtocolError, "malformed")),
        (Endless, (ProtocolError, "exceeds the limit")),
        (AnswersWithARequest, (ProtocolError, "answered with a request")),
        (Refuses, (RelayRefusedError, "reservation refused")),
    ],
)
async def test_a_dial_through_a_relay_that_lies_fails_in_time_and_says_why(
    place, dialler, kind, expected, autojump_clock
):
    error, why = expected
    liar, target = kind(await place.world.add_host()), await place.world.add_host()
    transport = RelayTransport(dialler, RelaySettings(connect_timeout=3.0))
    with trio.fail_after(4), pytest.raises(error, match=why):
        await transport.dial(way_to(target, liar.host))
    with trio.fail_after(4), pytest.raises(DialError, match=why):
        await dialler.connect(target.peer_id, [way_to(target, liar.host)])
    with pytest.raises(DialError, match="backed off"):
        await dialler.connect(target.peer_id, [way_to(target, liar.host)])


async def test_bytes_right_behind_the_answer_belong_to_the_connection(
    place, dialler, autojump_clock
):
    relay, target = Takes(await place.world.add_host()), await place.world.add_host()
    raw = await RelayTransport(dialler).dial(way_to(target, relay.host))
    assert await raw.stream.receive_some(100) == b"behind it"
    assert not raw.is_limited
    await raw.stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await raw.stream.receive_some(1)


async def test_a_relay_that_brings_another_peer_is_found_out(place, dialler, autojump_clock):
    """The dialler checks whom it wanted, the target who the relay said is there."""
    target, wrong = [await place.world.add_host() for _ in range(2)]

    class Swaps(Liar):
        async def act(self, stream):
            connection = await self.host.connect(wrong.peer_id, wrong.addresses)
            far = await connection.open_stream(["/test/take"])
            await send_hop(stream, HopMessage(type=HopType.STATUS, status=Status.OK))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, stream, far)
                nursery.start_soon(pump, far, stream)

    async def pump(source, sink):
        while data := await source.receive_some(65536):
            await sink.send_all(data)

    async def pretend(stream):
        await wrong._upgrader.inbound(
            RawConnection(
                stream=CircuitStream(stream),
                local_address=wrong.addresses[0],
                remote_address=dialler.addresses[0],
            )
        )
        await trio.sleep_forever()

    wrong.set_handler("/test/take", pretend)
    liar = Swaps(await place.world.add_host())
    with pytest.raises(HandshakeError, match="could not be reached"):
        await dialler.connect(target.peer_id, [way_to(target, liar.host)])


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("/ip4/52.0.0.1/tcp/1/p2p-circuit", "does not lead through one relay"),
        ("{relay}/p2p-circuit", "does not say whom"),
        ("{relay}/p2p-circuit/p2p/{own}", "no relay to itself"),
    ],
)
async def test_addresses_that_lead_nowhere_are_dial_errors(
    place, dialler, address, why, autojump_clock
):
    relay = await place.add_relay()
    text = address.format(relay=with_p2p(relay.addresses[0], relay.peer_id), own=dialler.peer_id)
    with pytest.raises(DialError, match=why):
        await RelayTransport(dialler).dial(Multiaddr(text))


async def test_a_relay_whose_place_is_not_said_is_found_by_its_id(place, dialler, autojump_clock):
    relay = await place.add_relay()
    host = await place.add_private(relay)
    host.set_handler(ECHO, echo)
    await dialler.connect(relay.peer_id, relay.addresses)
    way = Multiaddr(f"/p2p/{relay.peer_id}/p2p-circuit/p2p/{host.peer_id}")
    assert await is_echoed(await dialler.connect(host.peer_id, [way]))


async def test_many_dials_through_a_relay_that_must_be_dialled_itself_do_not_lock_up(
    place, autojump_clock
):
    relay = await place.add_relay()
    targets = [await place.add_private(relay) for _ in range(3)]
    host = await place.world.add_host(
        settings=NetworkSettings(max_dials=3),
        relay=RelaySettings(client="never", server="never"),
    )
    with trio.fail_after(3):
        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(host.connect, target.peer_id, target.relayed)
    assert all(host.connection_to(target.peer_id).is_relayed for target in targets)


async def test_a_direct_dial_takes_no_relay_and_no_relayed_connection(
    place, dialler, autojump_clock
):
    relay = await place.add_relay()
    host = await place.add_private(relay)
    relayed = await dialler.connect(host.peer_id, host.relayed)
    assert relayed.is_relayed
    with pytest.raises(DialError, match="it leads through a relay"):
        await dialler.connect(host.peer_id, direct=True)
    with pytest.raises(DialError):  # a stream that is not for limited connections
        await dialler.open_stream(host.peer_id, [ECHO])
    assert await dialler.connect(host.peer_id) is relayed


async def test_a_direct_connection_takes_over_and_the_relayed_one_ends(place, autojump_clock):
    relay = await place.add_relay()
    host = await place.add_private(relay, nat=Nat.NONE)
    host.set_handler(ECHO, echo)
    ours = await place.add_private(relay, nat=Nat.NONE)
    relayed = await ours.connect(host.peer_id, host.relayed)
    old = await relayed.open_stream([ECHO], allow_limited=True)
    await old.send_all(b"x")
    assert await old.receive_exactly(1) == b"x"
    direct = await ours.connect(host.peer_id, host.listening, direct=True)
    assert not direct.is_relayed
    assert ours.connection_to(host.peer_id) is direct
    await trio.sleep(30)
    await old.send_all(b"x")  # what has begun on the relayed one goes on there
    assert await old.receive_exactly(1) == b"x"
    await old.aclose()
    await trio.sleep(30)
    assert relayed.is_closed
    assert not direct.is_closed
    assert place.server(relay).info().circuits == 0


# --- being dialled ------------------------------------------------------------------------------


async def bring(relay, host, message):
    """Bring a circuit to a peer, as a relay does; returns the answer's status and the stream."""
    stream = await relay.connection_to(host.peer_id).open_stream([STOP_PROTOCOL])
    return (await ask_stop(stream, message)).status, stream


async def test_circuits_are_taken_only_from_relays_where_reservations_are_held(
    place, autojump_clock
):
    relay, stranger = await place.add_relay(), await place.world.add_host()
    host = await place.add_private(relay)
    await host.connect(stranger.peer_id, stranger.addresses)
    call = StopMessage(type=StopType.CONNECT, peer=stranger.peer_id)
    await trio.sleep(1)
    assert (await bring(stranger, host, call))[0] == Status.NO_RESERVATION
    assert (await bring(relay, host, call))[0] == Status.OK
    for nonsense in (host.peer_id, relay.peer_id):
        call = StopMessage(type=StopType.CONNECT, peer=nonsense)
        assert (await bring(relay, host, call))[0] == Status.PERMISSION_DENIED


async def test_only_so_many_circuits_wait_for_their_handshakes(place, autojump_clock):
    relay = await place.add_relay()
    host = await place.add_private(relay)
    listener = place.client(host)._transport.listener = RelayListener(1)  # nobody accepts
    call = StopMessage(type=StopType.CONNECT, peer=(await place.world.add_host()).peer_id)
    status, stream = await bring(relay, host, call)
    assert status == Status.OK
    assert (await bring(relay, host, call))[0] == Status.RESOURCE_LIMIT_EXCEEDED
    await listener.aclose()
    with trio.fail_after(1):  # what waited is cut
        assert await stream.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    assert listener.addresses == []


async def test_a_relay_that_names_another_peer_than_comes_is_refused(place, autojump_clock):
    """A relay cannot pass one peer off as another, nor hide who comes."""
    relay = await place.add_relay()
    host = await place.add_private(relay)
    stranger = (await place.world.add_host()).peer_id
    status, stream = await bring(relay, host, StopMessage(type=StopType.CONNECT, peer=stranger))
    assert status == Status.OK
    raw = RawConnection(
        stream=CircuitStream(stream),
        local_address=relay.addresses[0],
        remote_address=host.relayed[0],
    )
    with host.events.subscribe(PeerMisbehaved) as misbehaved:
        await relay._upgrader.outbound(raw, host.peer_id)
        assert str(stranger) in (await misbehaved.get()).reason
    assert not host.connection_to(relay.peer_id).is_relayed
    assert len(host.connections()) == 1


async def test_identify_says_nothing_of_where_it_sees_a_relayed_peer(place, autojump_clock):
    relay = await place.add_relay()
    ours, theirs = await place.add_private(relay), await place.add_private(relay)
    with theirs.events.subscribe(PeerIdentified) as identified:
        await ours.connect(theirs.peer_id, theirs.relayed)
        while (event := await identified.get()).peer_id != ours.peer_id:
            pass
    assert event.observed_address is None
    assert set(ours.relayed) <= set(event.addresses)
