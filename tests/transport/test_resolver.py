"""Names are asked of a small name server on loopback, and of a stand-in for the system's."""

import contextlib
import dataclasses
import ipaddress
import os
import socket
import threading

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConfigError, DialError
from p2pnode.transport import resolver as resolver_module
from p2pnode.transport.resolver import Resolver, parse_server, read_list
from p2pnode.wire.addresses import parse_address, with_p2p
from p2pnode.wire.keys import PrivateKey

PEER = PrivateKey.from_seed(bytes(32)).peer_id
OTHER = PrivateKey.from_seed(bytes([1] * 32)).peer_id


class NameServer:
    """Answers from `records`, by name and kind; what is not there does not exist.

    Answers that do not fit into a datagram are given over TCP, as everywhere.
    """

    def __init__(self):
        self.records = {}
        self.asked = []
        self.silent = False
        self.silent_about = set()

    async def run(self, *, task_status):
        while True:
            (tcp,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = tcp.socket.getsockname()[1]
            udp = trio.socket.socket(type=socket.SOCK_DGRAM)
            try:
                await udp.bind(("127.0.0.1", self.port))
                break
            except OSError:  # free for one, and not for the other
                await tcp.aclose()
                udp.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self.serve_stream, [tcp])
            task_status.started()
            with udp:
                await self.serve_datagrams(udp)

    async def serve_datagrams(self, udp):
        while True:
            query, peer = await udp.recvfrom(4096)
            answer = self.answer(query)
            if len(answer) > 1200:
                answer = self.answer(query, truncated=True)
            if not self.silent and self.asked[-1] not in self.silent_about:
                await udp.sendto(answer, peer)

    async def serve_stream(self, stream):
        async with stream:
            data = b""
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                data += await stream.receive_some()
            answer = self.answer(data[2:])
            await stream.send_all(len(answer).to_bytes(2, "big") + answer)

    def answer(self, data, *, truncated=False):
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = str(question.name).rstrip("."), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        reply = dns.message.make_response(query)
        found = self.records.get((name, kind))
        if truncated:
            reply.flags |= dns.flags.TC
        elif found:
            reply.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", kind, found))
        elif not any(each == name for each, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply.to_wire()

    def list(self, name, *addresses):
        self.records[f"_dnsaddr.{name}", "TXT"] = [f'"dnsaddr={each}"' for each in addresses]

    @property
    def settings(self):
        return NetworkSettings(dns_servers=(f"127.0.0.1:{self.port}",))


def open_files():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # only how many there are


@pytest.fixture
async def server(nursery):
    server = NameServer()
    await nursery.start(server.run)
    return server


async def resolve(server, text, peer_id=PEER, **settings):
    resolver = Resolver(dataclasses.replace(server.settings, **settings))
    return [str(each) for each in await resolver.resolve(parse_address(text), peer_id)]


@pytest.mark.real
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dns4/node.example/tcp/7", ["/ip4/192.0.2.1/tcp/7", "/ip4/192.0.2.2/tcp/7"]),
        ("/dns6/node.example/tcp/7/ws", ["/ip6/2001:db8::1/tcp/7/ws"]),
        (
            "/dns/node.example/tcp/7/tls/ws",
            [
                "/ip6/2001:db8::1/tcp/7/tls/sni/node.example/ws",
                "/ip4/192.0.2.1/tcp/7/tls/sni/node.example/ws",
                "/ip4/192.0.2.2/tcp/7/tls/sni/node.example/ws",
            ],
        ),
        ("/dns4/four.example/tcp/443/wss", ["/ip4/192.0.2.4/tcp/443/tls/sni/four.example/ws"]),
        ("/dns/four.example/tcp/1", ["/ip4/192.0.2.4/tcp/1"]),
        (
            "/dns4/four.example/tcp/443/tls/sni/else.example/ws",
            ["/ip4/192.0.2.4/tcp/443/tls/sni/else.example/ws"],
        ),
        ("/ip4/192.0.2.9/tcp/1", ["/ip4/192.0.2.9/tcp/1"]),
    ],
)
async def test_names_become_addresses_of_their_family(server, text, expected):
    server.records = {
        ("node.example", "A"): ["192.0.2.1", "192.0.2.2"],
        ("node.example", "AAAA"): ["2001:db8::1"],
        ("four.example", "A"): ["192.0.2.4"],
    }
    assert sorted(await resolve(server, text)) == sorted(expected)  # servers shuffle


@pytest.mark.real
async def test_a_list_is_followed_through_lists_and_names_for_the_wanted_peer_alone(server):
    server.list(
        "boot.example",
        f"/dnsaddr/one.example/p2p/{PEER}",
        f"/dnsaddr/two.example/p2p/{OTHER}",
        "/ip4/192.0.2.3/tcp/3",
        f"/ip4/192.0.2.4/tcp/4/p2p/{OTHER}",
    )
    server.list(
        "one.example",
        f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}",
        f"/dns4/node.example/tcp/443/wss/p2p/{PEER}",
        "/no/multiaddr",
    )
    server.records["node.example", "A"] = ["192.0.2.7"]
    found = await resolve(server, f"/dnsaddr/boot.example/p2p/{PEER}")
    assert found == [
        "/ip4/192.0.2.3/tcp/3",
        "/ip4/192.0.2.1/tcp/1",
        "/ip4/192.0.2.7/tcp/443/tls/sni/node.example/ws",
    ]
    assert ("_dnsaddr.two.example", "TXT") not in server.asked


@pytest.mark.real
async def test_the_peer_id_in_the_address_counts_when_the_caller_has_none(server):
    server.list("x.example", *(f"/ip4/192.0.2.1/tcp/1/p2p/{each}" for each in (OTHER, PEER)))
    server.list("y.example", f"/ip4/192.0.2.2/tcp/1/p2p/{OTHER}")
    assert await resolve(server, f"/dnsaddr/x.example/p2p/{PEER}", None) == ["/ip4/192.0.2.1/tcp/1"]
    with pytest.raises(DialError, match=r"y\.example .* it has no addresses"):
        await resolve(server, f"/dnsaddr/y.example/p2p/{PEER}", None)


@pytest.mark.real
async def test_what_stands_behind_a_list_must_end_its_addresses(server):
    server.list("x.example", "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/tcp/2/ws")
    assert await resolve(server, "/dnsaddr/x.example/tcp/2/ws") == ["/ip4/192.0.2.1/tcp/2/ws"]


@pytest.mark.real
async def test_a_long_list_is_read_over_tcp_and_cut_at_the_limit(server):
    server.list("x.example", *(f"/ip4/192.0.2.1/tcp/{port}" for port in range(1, 200)))
    found = await resolve(server, "/dnsaddr/x.example", dns_max_addresses=50)
    assert len(set(found)) == 50


@pytest.mark.real
async def test_lists_that_lead_in_a_circle_come_to_an_end(server):
    server.list("a.example", "/dnsaddr/b.example")
    server.list("b.example", "/dnsaddr/a.example", "/dnsaddr/b.example")
    with pytest.raises(DialError, match=r"a\.example cannot be resolved"):
        await resolve(server, "/dnsaddr/a.example")
    assert len(server.asked) == 2


@pytest.mark.real
async def test_depth_and_number_of_names_are_bounded(server):
    for number in range(10):
        server.list(f"{number}.example", f"/dnsaddr/{number + 1}.example")
    with pytest.raises(DialError, match="lists too often"):
        await resolve(server, "/dnsaddr/0.example", dnsaddr_max_depth=3)
    assert len(server.asked) == 4
    server.asked.clear()
    server.list("many.example", *(f"/dnsaddr/{number}.example" for number in range(20, 30)))
    with pytest.raises(DialError, match=r"many\.example cannot be resolved"):
        await resolve(server, "/dnsaddr/many.example", dnsaddr_max_names=5)
    assert len(server.asked) == 5


@pytest.mark.real
@pytest.mark.parametrize("kind", ["dns", "dns4", "dns6", "dnsaddr"])
async def test_an_unknown_name_fails_and_is_named(server, kind):
    with pytest.raises(DialError, match=r"nowhere\.example cannot be resolved: .*not exist"):
        await resolve(server, f"/{kind}/nowhere.example/tcp/7")


@pytest.mark.real
async def test_a_server_that_is_silent_is_not_waited_for_longer_than_the_limit(server):
    server.silent = True
    with pytest.raises(DialError, match=r"node\.example cannot be resolved"):
        await resolve(server, "/dns4/node.example/tcp/7", dns_timeout=0.1)


@pytest.mark.real
@pytest.mark.parametrize(("silent", "left"), [("AAAA", "/ip4"), ("A", "/ip6")])
async def test_a_server_that_is_silent_about_one_family_does_not_hide_the_other(
    server, monkeypatch, silent, left
):
    monkeypatch.setattr(resolver_module, "_OTHER_FAMILY_PATIENCE", 0.05)
    server.records["node.example", "A"] = ["192.0.2.1"]
    server.records["node.example", "AAAA"] = ["2001:db8::1"]
    server.silent_about = {("node.example", silent)}
    found = await resolve(server, "/dns/node.example/tcp/7")
    assert found
    assert all(each.startswith(left) for each in found)


@pytest.mark.real
async def test_a_silent_name_in_a_list_does_not_hide_the_others(server):
    server.list("net.example", "/dns4/node.example/tcp/7", "/dns4/mute.example/tcp/7")
    server.records["node.example", "A"] = ["192.0.2.1"]
    server.silent_about = {("mute.example", "A")}
    found = await resolve(server, "/dnsaddr/net.example", dns_timeout=0.3)
    assert found == ["/ip4/192.0.2.1/tcp/7"]


@pytest.mark.real
async def test_a_cancelled_lookup_leaves_no_socket_open(server):
    server.silent = True
    await resolve(server, "/ip4/192.0.2.1/tcp/1")
    before = open_files()
    resolver = Resolver(server.settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.resolve, parse_address("/dnsaddr/node.example"), PEER)
        await wait_all_tasks_blocked(0.05)
        assert server.asked
        assert open_files() > before
        nursery.cancel_scope.cancel()
    assert open_files() == before


def test_lists_keep_what_this_node_can_read():
    address = with_p2p(parse_address("/ip4/192.0.2.1/tcp/1"), PEER)
    texts = [f"dnsaddr={address}", "v=spf1", "dnsaddr=", "dnsaddr=/ip4/x", f"dnsaddr={address}"]
    assert read_list(texts) == [address]


@given(st.lists(st.text().map(lambda text: f"dnsaddr=/{text}")))
def test_no_text_breaks_the_reading_of_a_list(texts):
    assert len(read_list(texts)) <= len(texts)


# --- the system's resolver -----------------------------------------------------------------------


@pytest.fixture
def system(monkeypatch):
    """A system that knows one name; the list of the families asked for."""
    asked = []

    def getaddrinfo(host, port, *, family, type):  # noqa: A002  # socket's name
        asked.append(family)
        if host != "node.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = {
            socket.AF_INET: ("192.0.2.1", port),
            socket.AF_INET6: ("fe80::1%eth0", port, 0, 0),
        }
        wanted = [family] if family else [socket.AF_INET6, socket.AF_INET]
        # A real resolver repeats itself, too.
        return [(each, type, 0, "", answers[each]) for each in wanted for _ in range(2)]

    monkeypatch.setattr(resolver_module.socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dns4", ["/ip4/192.0.2.1/tcp/7"]),
        ("dns6", ["/ip6/fe80::1/tcp/7"]),
        ("dns", ["/ip6/fe80::1/tcp/7", "/ip4/192.0.2.1/tcp/7"]),
    ],
)
async def test_machines_are_asked_of_the_system_by_default(system, kind, expected):
    resolver = Resolver(NetworkSettings())
    found = await resolver.resolve(parse_address(f"/{kind}/node.example/tcp/7"))
    assert [str(each) for each in found] == expected
    assert len(system) == 1


async def test_what_the_system_does_not_know_fails_and_is_named(system):
    with pytest.raises(DialError, match=r"nowhere\.example cannot be .*service not known"):
        await Resolver(NetworkSettings()).resolve(parse_address("/dns4/nowhere.example/tcp/7"))


@pytest.mark.real  # threads
async def test_a_slow_system_is_left_behind_and_does_not_stop_the_loop(monkeypatch):
    release = threading.Event()

    def hang(*_args, **_kwargs):
        release.wait()
        return []

    monkeypatch.setattr(resolver_module.socket, "getaddrinfo", hang)
    resolver = Resolver(NetworkSettings(dns_timeout=0.05))
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        with pytest.raises(DialError, match=r"no answer within 0\.05 s"):
            await resolver.resolve(parse_address("/dns4/node.example/tcp/7"))
        nursery.cancel_scope.cancel()
    release.set()
    assert ticks > 1


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]:54", ("::1", 54)),
    ],
)
def test_name_servers_are_ip_addresses_with_or_without_a_port(text, expected):
    assert parse_server(text) == expected


@pytest.mark.parametrize(
    "text", ["", "dns.example", "192.0.2.1:", "192.0.2.1:x", "192.0.2.1:0", "[::1]:65536", "[::1]5"]
)
def test_other_name_servers_are_refused_by_name(text):
    with pytest.raises(ConfigError, match=r"network\.dns_servers"):
        Resolver(NetworkSettings(dns_servers=(text,)))


@given(st.text())
def test_no_text_breaks_the_reading_of_a_name_server(text):
    with contextlib.suppress(ConfigError):
        host, port = parse_server(text)
        assert ipaddress.ip_address(host)
        assert 0 < port < 1 << 16
