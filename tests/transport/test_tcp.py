import errno
import socket

import pytest
import trio

from p2pnode.errors import DialError, InvalidAddressError
from p2pnode.testing.conformance.transports import TransportConformance
from p2pnode.transport import tcp
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import parse_address


def has_ip6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.real
class TestTcpOverIp4(TransportConformance):
    def make_transports(self):
        transport = TcpTransport()
        return transport, transport

    def listen_address(self, transport):
        return parse_address("/ip4/127.0.0.1/tcp/0")


@pytest.mark.real
@pytest.mark.skipif(not has_ip6(), reason="this machine has no IPv6 loopback")
class TestTcpOverIp6(TransportConformance):
    def make_transports(self):
        transport = TcpTransport()
        return transport, transport

    def listen_address(self, transport):
        return parse_address("/ip6/::1/tcp/0")


@pytest.mark.real
async def test_small_writes_leave_at_once_on_both_sides():
    listener = await TcpTransport().listen(parse_address("/ip4/127.0.0.1/tcp/0"))
    ours = await TcpTransport().dial(listener.addresses[0])
    theirs = await listener.accept()
    for connection in (ours, theirs):
        assert connection.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await connection.stream.aclose()
    await listener.aclose()


@pytest.mark.real
@pytest.mark.parametrize(("text", "version"), [("/ip4/0.0.0.0/tcp/0", 4), ("/ip6/::/tcp/0", 6)])
async def test_a_wildcard_listener_names_addresses_that_can_be_dialled(text, version):
    if version == 6 and not has_ip6():
        pytest.skip("this machine has no IPv6 loopback")
    transport = TcpTransport()
    listener = await transport.listen(parse_address(text))
    assert listener.addresses
    for address in listener.addresses:
        assert not str(address).startswith(text.removesuffix("/0"))
        connection = await transport.dial(address)
        await connection.stream.aclose()
    assert str(listener.addresses[-1]).startswith(("/ip4/127.0.0.1/", "/ip6/::1/"))
    await listener.aclose()


@pytest.mark.real
@pytest.mark.skipif(not has_ip6(), reason="this machine has no IPv6 loopback")
async def test_both_wildcards_share_a_port():
    transport = TcpTransport()
    first = await transport.listen(parse_address("/ip6/::/tcp/0"))
    port = first.addresses[0].value_for_protocol("tcp")
    second = await transport.listen(parse_address(f"/ip4/0.0.0.0/tcp/{port}"))
    await first.aclose()
    await second.aclose()


class Resolver(trio.abc.HostnameResolver):
    """A name server of one name."""

    def __init__(self):
        self.asked = []

    async def getaddrinfo(self, host, port, family=0, type=0, *_rest):  # noqa: A002  # trio's name
        self.asked.append((host, family))
        if host != b"node.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = {
            socket.AF_INET: ("192.0.2.1", port),
            socket.AF_INET6: ("2001:db8::1", port, 0, 0),
        }
        wanted = [family] if family else [socket.AF_INET6, socket.AF_INET]
        # A real resolver repeats itself, too.
        return [(each, type, 0, "", answers[each]) for each in wanted for _ in range(2)]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.fixture
async def resolver():
    resolver = Resolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dns4", ["/ip4/192.0.2.1/tcp/7"]),
        ("dns6", ["/ip6/2001:db8::1/tcp/7"]),
        ("dns", ["/ip6/2001:db8::1/tcp/7", "/ip4/192.0.2.1/tcp/7"]),
    ],
)
async def test_names_resolve_to_addresses_of_their_family(resolver, kind, expected):
    address = parse_address(f"/{kind}/node.example/tcp/7")
    assert TcpTransport().can_dial(address)
    assert [str(each) for each in await TcpTransport().resolve(address)] == expected


async def test_an_unknown_name_fails_and_is_named(resolver):
    with pytest.raises(DialError, match=r"nowhere\.example cannot be resolved"):
        await TcpTransport().resolve(parse_address("/dns4/nowhere.example/tcp/7"))


async def test_a_name_is_not_dialled_unresolved():
    with pytest.raises(ValueError, match="resolved before"):
        await TcpTransport().dial(parse_address("/dns4/node.example/tcp/7"))


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EACCES, "choose a port above 1023"),
        (errno.EADDRNOTAVAIL, "cannot listen on"),
    ],
)
async def test_each_reason_not_to_listen_has_its_sentence(monkeypatch, number, sentence):
    async def refuse(*_args, **_kwargs):
        raise OSError(number, "Reason")

    monkeypatch.setattr(trio, "open_tcp_listeners", refuse)
    with pytest.raises(InvalidAddressError, match=sentence):
        await TcpTransport().listen(parse_address("/ip4/127.0.0.1/tcp/80"))


@pytest.mark.real
async def test_a_shortage_of_files_is_waited_out(monkeypatch, autojump_clock):
    listener = await TcpTransport().listen(parse_address("/ip4/127.0.0.1/tcp/0"))
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
