import pytest
import trio
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from p2pnode.config import MetricsSettings
from p2pnode.daemon.metrics.service import MAX_REQUEST, MetricsServer, parse_listen
from p2pnode.errors import AddressInUseError, ConfigError

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9400", "127.0.0.1", 9400),
        ("9400", "127.0.0.1", 9400),
        (":9400", "127.0.0.1", 9400),
        ("0.0.0.0:1", "0.0.0.0", 1),
        ("[::1]:9400", "::1", 9400),
    ],
)
def test_where_to_listen_is_on_loopback_unless_it_says_otherwise(text, host, port):
    assert parse_listen(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", "x", "localhost:9400", "127.0.0.1", "::1:9400", "[127.0.0.1]:1", "1.2.3.4:65536",
             "127.0.0.1:-1", "127.0.0.1:\u0663", "[::1:9400"]
)  # fmt: skip
def test_what_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9400"):
        parse_listen(text)


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    Counter("p2pnode_tests", "Tests.", registry=registry).inc(3)
    return registry


@pytest.fixture
async def start(registry, nursery):
    async def start(**settings):
        server = MetricsServer(MetricsSettings(listen="127.0.0.1:0", **settings), registry)
        await nursery.start(server.run)
        return server

    return start


async def ask(server, request):
    """Send bytes, and return the head and the body of what comes until the end."""
    host, port = server.address.split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(request)
        answer = b""
        with trio.fail_after(5):
            async for data in stream:
                answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().lower(), body.decode()


@pytest.mark.real
async def test_prometheus_reads_the_page(start):
    head, body = await ask(await start(), GET)
    assert head.startswith("http/1.1 200")
    assert "content-type: text/plain; version=" in head
    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert families["p2pnode_tests"].samples[0].value == 3


@pytest.mark.real
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /metrics?a=b HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (2 * MAX_REQUEST), 431),
    ],
)
async def test_other_requests_get_an_answer_that_says_so(start, request_bytes, status):
    head, _ = await ask(await start(), request_bytes)
    assert head.startswith(f"http/1.1 {status}")


@pytest.mark.real
async def test_a_head_has_no_body(start):
    head, body = await ask(await start(), b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith("http/1.1 200")
    assert body == ""


@pytest.mark.real
async def test_who_says_nothing_or_leaves_keeps_no_place(start):
    server = await start(max_requests=1, request_timeout=0.2)
    host, port = server.address.split(":")
    silent = await trio.open_tcp_stream(host, int(port))
    await (await trio.open_tcp_stream(host, int(port))).aclose()
    head, _ = await ask(server, GET)
    assert head.startswith("http/1.1 200")
    await silent.aclose()


@pytest.mark.real
async def test_a_port_that_is_taken_is_named(start, registry):
    taken = (await start()).address
    server = MetricsServer(MetricsSettings(listen=taken), registry)
    with pytest.raises(AddressInUseError, match=taken):
        await server.run()


@pytest.mark.real
async def test_an_address_of_another_machine_is_refused(registry):
    server = MetricsServer(MetricsSettings(listen="192.0.2.1:9400"), registry)
    with pytest.raises(ConfigError, match="cannot listen"):
        await server.run()
