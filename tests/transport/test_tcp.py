import errno
import os
import socket
import struct

import pytest
import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import AddressInUseError, DialError, InvalidAddressError, NoRouteError
from p2pnode.testing.conformance.transports import TransportConformance
from p2pnode.transport import tcp
from p2pnode.transport.reuse import CAN_REUSE
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import parse_address

LOOPBACK = parse_address("/ip4/127.0.0.1/tcp/0")


class TcpConformance(TransportConformance):
    foreign = (*TransportConformance.foreign, "/ip4/127.0.0.1/tcp/1/ws")

    @pytest.fixture
    def made(self):
        transport = TcpTransport()
        return transport, transport


@pytest.mark.real
class TestTcpOverIp4(TcpConformance):
    wildcard = "/ip4/0.0.0.0/tcp/0"
    named = "/dns4/node.example/tcp/7"

    def listen_address(self, transport):
        return LOOPBACK


@pytest.mark.real
@pytest.mark.usefixtures("_ip6")
class TestTcpOverIp6(TcpConformance):
    wildcard = "/ip6/::/tcp/0"
    named = "/dns6/node.example/tcp/7"

    def listen_address(self, transport):
        return parse_address("/ip6/::1/tcp/0")


@pytest.mark.real
async def test_small_writes_leave_at_once_on_both_sides():
    listener = await TcpTransport().listen(LOOPBACK)
    ours = await TcpTransport().dial(listener.addresses[0])
    theirs = await listener.accept()
    for connection in (ours, theirs):
        assert connection.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await connection.stream.aclose()
    await listener.aclose()


@pytest.mark.real
@pytest.mark.usefixtures("_ip6")
async def test_both_wildcards_share_a_port():
    transport = TcpTransport()
    first = await transport.listen(parse_address("/ip6/::/tcp/0"))
    port = first.addresses[0].value_for_protocol("tcp")
    second = await transport.listen(parse_address(f"/ip4/0.0.0.0/tcp/{port}"))
    await first.aclose()
    await second.aclose()


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EACCES, "choose a port above 1023"),
        (errno.EADDRNOTAVAIL, "cannot listen on"),
    ],
)
async def test_each_reason_not_to_listen_has_its_sentence(monkeypatch, number, sentence):
    def refuse(*_args):
        raise OSError(number, "Reason")

    monkeypatch.setattr(tcp, "_listen", refuse)
    with pytest.raises(InvalidAddressError, match=sentence):
        await TcpTransport().listen(parse_address("/ip4/127.0.0.1/tcp/80"))


@pytest.mark.real
async def test_a_shortage_of_files_is_waited_out(monkeypatch, autojump_clock):
    listener = await TcpTransport().listen(LOOPBACK)
    failures = iter([OSError(errno.EMFILE, "Too many open files")] * 3)

    class Short:
        async def accept(self):
            raise next(failures, OSError(errno.EBADF, "not a shortage"))

    with monkeypatch.context() as patch:
        patch.setattr(listener, "_listener", Short())
        with pytest.raises(OSError, match="not a shortage"):
            await listener.accept()
    await listener.aclose()
    assert trio.current_time() == pytest.approx(3 * tcp._SHORTAGE_PAUSE)


# --- dialling from the listening port ----------------------------------------------------------


async def dial_between(dialler, target):
    """Dial from one transport to a listener of another; returns where from."""
    ours = await dialler.dial(target.addresses[0])
    theirs = await target.accept()
    assert ours.local_address == theirs.remote_address
    await trio.aclose_forcefully(theirs.stream)
    await trio.aclose_forcefully(ours.stream)
    return ours.local_address


@pytest.mark.real
@pytest.mark.parametrize("listen", ["/ip4/127.0.0.1/tcp/0", "/ip4/0.0.0.0/tcp/0"])
async def test_a_node_that_listens_dials_from_its_listening_port(listen):
    dialler = TcpTransport()
    own = await dialler.listen(parse_address(listen))
    one = await TcpTransport().listen(LOOPBACK)
    other = await TcpTransport().listen(LOOPBACK)
    assert await dial_between(dialler, one) == own.addresses[-1]
    assert await dial_between(dialler, other) == own.addresses[-1]
    for listener in (own, one, other):
        await listener.aclose()


@pytest.mark.real
@pytest.mark.usefixtures("_ip6")
async def test_ports_are_reused_within_their_family_alone():
    dialler = TcpTransport()
    own = await dialler.listen(parse_address("/ip6/::1/tcp/0"))
    four = await TcpTransport().listen(LOOPBACK)
    six = await TcpTransport().listen(parse_address("/ip6/::1/tcp/0"))
    port = own.addresses[0].value_for_protocol("tcp")
    assert (await dial_between(dialler, four)).value_for_protocol("tcp") != port
    assert await dial_between(dialler, six) == own.addresses[0]
    for listener in (own, four, six):
        await listener.aclose()


@pytest.mark.real
async def test_a_second_connection_to_the_same_place_gets_a_port_of_its_own():
    dialler = TcpTransport()
    own = await dialler.listen(LOOPBACK)
    target = await TcpTransport().listen(LOOPBACK)
    connections = [await dialler.dial(target.addresses[0]) for _ in range(3)]
    sources = {connection.local_address for connection in connections}
    assert len(sources) == 3
    assert own.addresses[0] in sources
    for connection in connections:
        await connection.stream.aclose()
    await target.aclose()
    await own.aclose()


@pytest.mark.real
async def test_a_dial_to_ones_own_listener_is_answered_by_the_listener():
    transport = TcpTransport()
    own = await transport.listen(LOOPBACK)
    assert await dial_between(transport, own) != own.addresses[0]
    await own.aclose()


@pytest.mark.real
async def test_a_socket_that_would_connect_to_itself_is_refused(monkeypatch):
    """What the system may do by chance, when nobody listens on a port it gives out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = parse_address(f"/ip4/127.0.0.1/tcp/{port}")
    itself = tcp.endpoint_of(address)
    monkeypatch.setattr(tcp, "choose_source", lambda _target, _listening: itself)
    with pytest.raises(tcp.DialError, match="refused"):
        await TcpTransport().dial(address)


@pytest.mark.real
async def test_a_peer_that_leaves_at_once_costs_no_file(monkeypatch):
    opened = []

    async def connect_to_nobody(connecting, _target):
        """As if the peer had been there for a moment: then the system knows no name of it."""
        opened.append(connecting)
        return trio.SocketStream(connecting)

    monkeypatch.setattr(tcp, "_connect", connect_to_nobody)
    for action in (TcpTransport().dial, TcpTransport().connect):
        target = parse_address("/ip4/127.0.0.1/tcp/9")
        with pytest.raises((DialError, OSError)):
            await action(target if action.__name__ == "dial" else tcp.endpoint_of(target))
    assert [each.fileno() for each in opened] == [-1, -1]


async def test_a_port_is_reused_only_while_it_is_listened_on_and_if_the_settings_say_so():
    target = await TcpTransport().listen(LOOPBACK)
    for settings, reuses in [
        (NetworkSettings(), True),
        (NetworkSettings(reuse_port=False), False),
    ]:
        dialler = TcpTransport(settings)
        own = await dialler.listen(LOOPBACK)
        assert (await dial_between(dialler, target) == own.addresses[0]) is reuses
        await own.aclose()
        assert await dial_between(dialler, target) != own.addresses[0]
    await target.aclose()


@pytest.mark.real
async def test_a_second_program_on_a_reused_port_is_refused():
    first, second = TcpTransport(), TcpTransport()
    own = await first.listen(LOOPBACK)
    target = await TcpTransport().listen(LOOPBACK)
    connection = await first.dial(target.addresses[0])
    for address in (
        own.addresses[0],
        parse_address(str(own.addresses[0]).replace("127.0.0.1", "0.0.0.0")),
    ):
        with pytest.raises(AddressInUseError):
            await second.listen(address)
    await own.aclose()
    again = await second.listen(own.addresses[0])  # although a connection still uses the port
    await again.aclose()
    await connection.stream.aclose()
    await target.aclose()


@pytest.mark.real
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOPROTOOPT])
async def test_a_port_that_the_system_does_not_let_it_share_is_not_reused(monkeypatch, number):
    """One below 1024 by a node that is root no longer; a system without SO_REUSEPORT."""
    dialler, target = TcpTransport(), await TcpTransport().listen(LOOPBACK)
    own = await dialler.listen(LOOPBACK)

    async def refuse(_socket, _pair):
        raise OSError(number, "refused")

    monkeypatch.setattr(type(own._listener.socket), "bind", refuse)
    assert await dial_between(dialler, target) != own.addresses[0]
    for listener in (own, target):
        await listener.aclose()


@pytest.mark.real
async def test_a_node_listens_although_its_port_cannot_be_shared(monkeypatch):
    class Old(socket.socket):
        def setsockopt(self, level, option, value):
            if option == socket.SO_REUSEPORT:
                raise OSError(errno.ENOPROTOOPT, "Protocol not available")
            super().setsockopt(level, option, value)

    dialler, target = TcpTransport(), await TcpTransport().listen(LOOPBACK)
    with monkeypatch.context() as patch:
        patch.setattr(tcp.socket, "socket", Old)
        own = await dialler.listen(LOOPBACK)
    assert await dial_between(dialler, target) != own.addresses[0]
    for listener in (own, target):
        await listener.aclose()


@pytest.mark.real
@pytest.mark.parametrize("ip", ["/ip4/0.0.0.0", "/ip6/::"])
async def test_an_address_that_names_no_machine_does_not_lead_to_this_one(ip):
    own = await TcpTransport().listen(parse_address("/ip4/0.0.0.0/tcp/0"))
    port = own.addresses[0].value_for_protocol("tcp")
    with pytest.raises(tcp.DialError, match="no place"):
        await TcpTransport().dial(parse_address(f"{ip}/tcp/{port}"))
    await own.aclose()


@pytest.mark.real
async def test_a_refused_dial_names_the_address_once():
    address = parse_address("/ip4/127.0.0.1/tcp/1")
    with pytest.raises(tcp.DialError) as caught:
        await tcp.TcpTransport().dial(address)
    assert str(caught.value) == f"{address} cannot be reached: connection refused"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENETUNREACH, NoRouteError),
        (errno.ENETDOWN, NoRouteError),
        (errno.EADDRNOTAVAIL, NoRouteError),
        (errno.EMFILE, NoRouteError),
        (errno.ECONNREFUSED, DialError),
        (errno.EHOSTUNREACH, DialError),
        (errno.ETIMEDOUT, DialError),
        (errno.EINVAL, DialError),
    ],
)
def test_a_dial_that_never_left_this_machine_is_told_from_one_that_nobody_answered(number, kind):
    error = tcp.no_answer(LOOPBACK, OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert os.strerror(number).lower() in str(error)


# --- punching -----------------------------------------------------------------------------------


def lingers(connection):
    linger = connection.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    return struct.unpack("ii", linger)[0]


@pytest.mark.real
@pytest.mark.skipif(not CAN_REUSE, reason="this system has no SO_REUSEPORT")
async def test_a_punch_leaves_from_the_listening_port_and_is_reset_until_it_has_settled():
    transport, other = TcpTransport(), TcpTransport()
    ours, theirs = await transport.listen(LOOPBACK), await other.listen(LOOPBACK)
    assert transport.can_punch(theirs.addresses[0])
    for settled in (False, True):
        made = await transport.punch(theirs.addresses[0], is_client=True)
        accepted = await theirs.accept()
        assert [made.local_address] == ours.addresses
        assert lingers(made)
        if settled:
            made.settle()
            assert not lingers(made)
        await made.stream.aclose()
        if settled:
            assert await accepted.stream.receive_some() == b""
        else:  # nothing is left of it, so the next one has the same pair of endpoints
            with pytest.raises(trio.BrokenResourceError):
                await accepted.stream.receive_some()
        await accepted.stream.aclose()
    await ours.aclose()
    await theirs.aclose()


@pytest.mark.real
async def test_a_punch_needs_no_listener_of_its_own():
    other = TcpTransport()
    theirs = await other.listen(LOOPBACK)
    made = await TcpTransport().punch(theirs.addresses[0], is_client=False)
    await made.cut()
    made.settle()  # has no effect any more, and does no harm
    await theirs.aclose()


@pytest.mark.parametrize(
    "address", ["/dns4/node.example/tcp/7", "/ip4/127.0.0.1/udp/7/quic-v1", "/ip4/8.8.8.8/tcp/7/ws"]
)
async def test_only_an_ip_and_a_tcp_port_can_be_punched(address):
    transport = TcpTransport()
    assert not transport.can_punch(parse_address(address))
    with pytest.raises(DialError, match="no hole can be punched"):
        await transport.punch(parse_address(address), is_client=True)


@pytest.mark.real
async def test_a_refused_punch_is_an_error_to_try_again_after():
    with pytest.raises(DialError, match="refused"):
        await TcpTransport().punch(parse_address("/ip4/127.0.0.1/tcp/1"), is_client=True)
