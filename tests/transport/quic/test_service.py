import contextlib
import math
import socket
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    ConnectionClosedError,
    DialError,
    HandshakeError,
    NoRouteError,
    StreamResetError,
)
from p2pnode.security.tls import TlsIdentity
from p2pnode.testing.conformance.transports import TransportConformance
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.transport.quic import QuicTransport
from p2pnode.transport.session import Unmetered
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

LOOPBACK = parse_address("/ip4/127.0.0.1/udp/0/quic-v1")
# A busy machine ends a handshake in this; nobody's answer is waited for as long.
PATIENT = NetworkSettings(handshake_timeout=3)
IMPATIENT = NetworkSettings(handshake_timeout=0.5)


def make(settings=None, *, seed=1):
    return QuicTransport(TlsIdentity(PrivateKey.from_seed(bytes([seed]) * 32)), settings)


@contextlib.contextmanager
def _broken_like_a_pipe():
    try:
        yield
    except (StreamResetError, ConnectionClosedError) as error:
        raise trio.BrokenResourceError(str(error)) from error


class OnlyStream(trio.abc.HalfCloseableStream):
    """The one stream of a session that has no other, and ends with it."""

    def __init__(self, session, stream):
        self._session, self._stream = session, stream
        self._is_sending = False

    @contextlib.contextmanager
    def _sending(self):
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending")
        self._is_sending = True
        try:
            with _broken_like_a_pipe():
                yield
        finally:
            self._is_sending = False

    async def send_all(self, data):
        with self._sending():
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self):
        with self._sending():
            await self._stream.wait_send_all_might_not_block()

    async def send_eof(self):
        with self._sending():
            await self._stream.send_eof()

    async def receive_some(self, max_bytes=None):
        if isinstance(max_bytes, float):
            raise TypeError("there are no parts of bytes")
        with _broken_like_a_pipe():
            return await self._stream.receive_some(max_bytes)

    async def aclose(self):
        try:
            await self._stream.aclose()
        finally:
            await self._session.aclose()


class OneStream(Transport):
    """QUIC as a transport of byte streams, to hold it to what all of them must do."""

    def __init__(self, quic):
        self.quic = quic

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        async with trio.open_nursery() as self.nursery:
            await self.nursery.start(self.quic.run)
            task_status.started()

    def can_dial(self, address):
        return self.quic.can_dial(address)

    async def dial(self, address, *, reuse_port=True):
        secured = await self.quic.dial(address, reuse_port=reuse_port)
        try:
            secured.session.charge_to(Unmetered())
            stream = await secured.session.open_stream()
            await stream.send_all(b"!")  # before it, the other side sees no stream
        except BaseException:
            await secured.cut()
            raise
        return raw(secured, stream)

    async def listen(self, address):
        listener = OneStreamListener(await self.quic.listen(address))
        self.nursery.start_soon(listener.run, self.nursery)
        return listener


class OneStreamListener(Listener):
    def __init__(self, listener):
        self.listener = listener
        self.waiting = []
        self.send, self.receive = trio.open_memory_channel(math.inf)

    @property
    def addresses(self):
        return self.listener.addresses

    async def run(self, nursery):
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                secured = await self.listener.accept()
                self.waiting.append(secured)
                nursery.start_soon(self.take, secured)

    async def take(self, secured):
        secured.session.charge_to(Unmetered())
        found = []
        with contextlib.suppress(ConnectionClosedError), trio.CancelScope() as scope:

            def take(stream):
                found.append(stream)
                scope.cancel()

            await secured.session.serve(take)
        if found:
            assert await found[0].receive_some(1) == b"!"
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.send.send(raw(secured, found[0]))

    async def accept(self):
        try:
            connection = await self.receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None
        self.waiting = [
            each for each in self.waiting if each.session is not connection.stream._session
        ]
        return connection

    async def aclose(self):
        await self.listener.aclose()
        self.send.close()
        for secured in self.waiting:
            await secured.cut()


def raw(secured, stream):
    return RawConnection(
        stream=OnlyStream(secured.session, stream),
        local_address=secured.local_address,
        remote_address=secured.remote_address,
    )


class QuicConformance(TransportConformance):
    resumable = False
    sockets = False  # all connections share one
    foreign = (
        *TransportConformance.foreign[:-1],
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/127.0.0.1/udp/1/quic",
        "/ip4/127.0.0.1/udp/1/quic-v1/webtransport",
    )

    @pytest.fixture
    def made(self):
        return OneStream(make(PATIENT)), OneStream(make(PATIENT, seed=2))


@pytest.mark.real
class TestQuicOverIp4(QuicConformance):
    wildcard = "/ip4/0.0.0.0/udp/0/quic-v1"
    named = "/dns4/localhost/udp/1/quic-v1"

    def listen_address(self, transport):
        return LOOPBACK


@pytest.mark.real
@pytest.mark.usefixtures("_ip6")
class TestQuicOverIp6(QuicConformance):
    wildcard = "/ip6/::/udp/0/quic-v1"
    named = "/dns6/localhost/udp/1/quic-v1"

    def listen_address(self, transport):
        return parse_address("/ip6/::1/udp/0/quic-v1")


@pytest.fixture
async def pair(nursery):
    """A transport that dials and one that listens, with its listener."""
    dialer, listening = make(PATIENT), make(PATIENT, seed=2)
    for each in (dialer, listening):
        await nursery.start(each.run)
    return dialer, listening, await listening.listen(LOOPBACK)


@pytest.mark.real
async def test_who_listens_dials_from_the_port_it_listens_on(pair):
    dialer, _, there = pair
    here = await dialer.listen(LOOPBACK)
    ours = await dialer.dial(there.addresses[0])
    theirs = await there.accept()
    assert ours.local_address == theirs.remote_address == here.addresses[0]
    other = await dialer.dial(there.addresses[0], reuse_port=False)
    assert other.local_address != here.addresses[0]


@pytest.mark.real
async def test_two_that_dial_each_other_at_once_from_their_ports_get_two_connections(pair):
    one, other, there = pair
    here = await one.listen(LOOPBACK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.dial, there.addresses[0])
        nursery.start_soon(other.dial, here.addresses[0])
    assert (await here.accept()).remote_address == there.addresses[0]
    assert (await there.accept()).remote_address == here.addresses[0]


@pytest.mark.real
async def test_a_socket_is_closed_with_its_last_connection(pair, nursery):
    dialer, _, there = pair
    ours = await dialer.dial(there.addresses[0])
    assert len(dialer._carriers) == 1
    await ours.session.aclose()
    with trio.fail_after(5):
        while dialer._carriers:  # the last packets have their time
            await wait_all_tasks_blocked(0.01)


@pytest.mark.real
async def test_a_place_without_a_route_is_told_from_a_silent_one(nursery):
    dialer = make(IMPATIENT)
    await nursery.start(dialer.run)
    with pytest.raises(NoRouteError, match="no route"):
        await dialer.dial(parse_address("/ip4/255.255.255.255/udp/1/quic-v1"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/udp/{silent.getsockname()[1]}/quic-v1"
        with pytest.raises(DialError, match=f"{address} cannot be reached"):
            await dialer.dial(parse_address(address))


@pytest.mark.real
async def test_a_server_that_is_no_libp2p_peer_fails_the_handshake(pair):
    dialer, _, there = pair

    def refuse(_):
        raise HandshakeError("its certificate is bad")

    dialer._identity.verify = refuse
    with pytest.raises(HandshakeError, match="certificate is bad"):
        await dialer.dial(there.addresses[0])


@pytest.mark.real
async def test_noise_to_a_listener_harms_nobody(pair):
    dialer, _, there = pair
    port = int(there.addresses[0].value_for_protocol("udp"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noisy:
        for size in (0, 1, 20, 1200, 1500, 60_000):
            noisy.sendto(bytes([0xC3]) * size, ("127.0.0.1", port))
            noisy.sendto(bytes([0x40]) * size, ("127.0.0.1", port))
    await dialer.dial(there.addresses[0])
    await there.accept()


@pytest.mark.real
async def test_a_punch_reaches_the_other_side_from_the_port_listened_on(pair):
    dialer, _, _ = pair
    here = await dialer.listen(LOOPBACK)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(5)
        port = other.getsockname()[1]
        address = parse_address(f"/ip4/127.0.0.1/udp/{port}/quic-v1")
        with trio.move_on_after(0.15):
            await dialer.punch(address, is_client=False)
        data, source = other.recvfrom(100)
    assert data
    assert source[1] == int(here.addresses[0].value_for_protocol("udp"))


@pytest.mark.real
async def test_the_client_of_two_that_punch_gets_the_connection_the_others_listener_has(pair):
    one, other, there = pair
    here = await one.listen(LOOPBACK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(other.punch, here.addresses[0], is_client=False))
        ours = await one.punch(there.addresses[0], is_client=True)
        theirs = await there.accept()
        nursery.cancel_scope.cancel()
    assert ours.local_address == theirs.remote_address == here.addresses[0]


@pytest.mark.real
async def test_a_node_that_does_not_listen_on_udp_punches_no_holes(pair):
    with pytest.raises(DialError, match="does not listen on UDP"):
        await pair[0].punch(pair[2].addresses[0], is_client=False)


@pytest.mark.real
async def test_a_transport_that_is_stopped_says_goodbye(pair):
    _, _, there = pair
    dialer = make(seed=3)
    async with trio.open_nursery() as nursery:
        await nursery.start(dialer.run)
        await dialer.dial(there.addresses[0])
        theirs = await there.accept()
        nursery.cancel_scope.cancel()
    with trio.fail_after(2), pytest.raises(ConnectionClosedError, match="peer closed"):
        await theirs.session.run()
