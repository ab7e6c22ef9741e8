"""Certificates of `/wss`."""

import dataclasses
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives import serialization

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConfigError, DialError
from p2pnode.events import EventBus
from p2pnode.transport.websocket import UpgradeFailed, WebSocketTransport
from p2pnode.wire.addresses import parse_address

SECURE = parse_address("/ip4/127.0.0.1/tcp/0/tls/ws")


@pytest.fixture
async def listener(nursery, tls_settings):
    transport = WebSocketTransport(tls_settings)
    await nursery.start(transport.run)
    listener = await transport.listen(SECURE)
    yield listener
    await listener.aclose()


async def dial(settings, listener, tail, *, events=None):
    port = listener.addresses[0].value_for_protocol("tcp")
    address = parse_address(f"/ip4/127.0.0.1/tcp/{port}{tail}")
    async with trio.open_nursery() as nursery:
        transport = WebSocketTransport(settings, events=events)
        await nursery.start(transport.run)
        try:
            with trio.fail_after(5):
                connection = await transport.dial(address)
                assert connection.remote_address == address
                assert str(connection.local_address).endswith("/ws")
                await connection.stream.aclose()
        except DialError as error:
            return str(error)
        finally:
            nursery.cancel_scope.cancel()
    return "connected"


@pytest.mark.real
@pytest.mark.parametrize("tail", ["/wss", "/tls/ws", "/tls/sni/node.example/ws"])
async def test_a_trusted_certificate_of_the_right_name_is_taken(tls_settings, listener, tail):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept)
        assert await dial(tls_settings, listener, tail) == "connected"


@pytest.mark.real
async def test_a_certificate_of_another_name_is_refused(tls_settings, listener):
    outcome = await dial(tls_settings, listener, "/tls/sni/other.example/ws")
    assert "not to be trusted" in outcome
    assert "other.example" in outcome


@pytest.mark.real
async def test_a_certificate_nobody_vouches_for_is_refused(listener):
    outcome = await dial(NetworkSettings(), listener, "/tls/sni/node.example/ws")
    assert "not to be trusted" in outcome


@pytest.mark.real
async def test_plain_and_secure_do_not_mix(nursery, tls_settings, listener):
    assert "hung up" in await dial(tls_settings, listener, "/ws")
    events = EventBus()
    transport = WebSocketTransport(tls_settings, events=events)
    await nursery.start(transport.run)
    plain = await transport.listen(parse_address("/ip4/127.0.0.1/tcp/0/ws"))
    with events.subscribe(UpgradeFailed) as failed:
        assert "TLS failed" in await dial(tls_settings, plain, "/tls/ws")
        assert "makes no sense" in (await failed.get()).reason
    await plain.aclose()


@pytest.mark.real
async def test_listening_without_a_certificate_says_what_to_set(nursery):
    transport = WebSocketTransport()
    await nursery.start(transport.run)
    with pytest.raises(ConfigError, match=r"network\.tls_certificate"):
        await transport.listen(SECURE)


@pytest.fixture
def locked(tls_settings, tmp_path):
    key = serialization.load_pem_private_key(Path(tls_settings.tls_key).read_bytes(), None)
    path = tmp_path / "locked.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return str(path)


@pytest.mark.parametrize("name", ["tls_certificate", "tls_key", "tls_authorities"])
@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff" * 100])
def test_a_file_that_is_missing_or_broken_is_named(tls_settings, tmp_path, name, content):
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        WebSocketTransport(dataclasses.replace(tls_settings, **{name: str(path)}))


def test_a_locked_key_is_refused_without_a_question(tls_settings, locked):
    with pytest.raises(ConfigError, match="password"):
        WebSocketTransport(dataclasses.replace(tls_settings, tls_key=locked))


@pytest.mark.parametrize("name", ["tls_certificate", "tls_key"])
def test_certificate_and_key_go_together(tls_settings, name):
    with pytest.raises(ConfigError, match="set both"):
        WebSocketTransport(dataclasses.replace(tls_settings, **{name: ""}))
