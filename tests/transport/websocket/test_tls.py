"""Certificates of `/wss`."""

import contextlib
import dataclasses
import ssl
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConfigError, DialError
from p2pnode.events import EventBus
from p2pnode.testing.certificates import write_certificate
from p2pnode.transport.websocket import UpgradeFailed, WebSocketTransport
from p2pnode.transport.websocket.tls import (
    CertificateRefused,
    CertificateRenewed,
    ServerCertificate,
)
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


class Renewal:
    """A certificate that is replaced while a transport listens with it."""

    def __init__(self, folder, events):
        self.folder = folder
        self.files = write_certificate(folder)
        self.settings = NetworkSettings(
            tls_certificate=str(self.files.certificate), tls_key=str(self.files.key)
        )
        self.told = []
        events.on(CertificateRenewed, self.told.append)
        events.on(CertificateRefused, self.told.append)
        self.certificate = ServerCertificate(self.settings, events)

    def renew(self):
        self.files = write_certificate(self.folder)

    def shown(self, now):
        """Return the serial number that a handshake at `now` shows."""
        context = self.certificate.context(now)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        client = trusting.wrap_bio(to_client, to_server)
        server = context.wrap_bio(to_server, to_client, server_side=True)
        for side in (client, server, client):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        return x509.load_der_x509_certificate(client.getpeercert(binary_form=True)).serial_number


@pytest.fixture
def renewal(tmp_path):
    return Renewal(tmp_path, EventBus())


def test_a_renewed_certificate_is_shown_within_a_minute_and_told_of(renewal):
    old = renewal.files.serial_number
    assert renewal.shown(now=0) == old
    renewal.renew()
    assert renewal.shown(now=59) == old
    assert renewal.shown(now=60) == renewal.files.serial_number != old
    assert renewal.told == [CertificateRenewed(certificate=renewal.settings.tls_certificate)]


def test_files_that_did_not_change_are_not_loaded_again(renewal):
    context = renewal.certificate.context(0)
    assert all(renewal.certificate.context(now) is context for now in range(0, 1000, 60))
    assert renewal.told == []


@pytest.mark.parametrize("half", ["certificate", "key"])
def test_half_a_renewal_is_told_once_and_the_old_certificate_stays(renewal, half):
    before = renewal.files
    old_key, old_certificate = before.key.read_bytes(), before.certificate.read_bytes()
    renewal.renew()
    new_key = renewal.files.key.read_bytes()
    new_certificate = renewal.files.certificate.read_bytes()
    if half == "certificate":
        before.key.write_bytes(old_key)
    else:
        before.certificate.write_bytes(old_certificate)
    for now in (0, 60, 120):
        assert renewal.shown(now) == before.serial_number
    (refused,) = renewal.told
    assert "key values mismatch" in refused.reason
    before.key.write_bytes(new_key)
    before.certificate.write_bytes(new_certificate)
    assert renewal.shown(now=180) == renewal.files.serial_number


def test_a_certificate_that_is_gone_for_a_while_stays_in_use(renewal):
    renewal.files.certificate.unlink()
    assert renewal.shown(now=0) == renewal.files.serial_number
    assert "no such file" in renewal.told[0].reason
    renewal.renew()
    assert renewal.shown(now=60) == renewal.files.serial_number


@pytest.mark.real
async def test_a_listener_shows_the_renewed_certificate_without_a_restart(nursery, tmp_path):
    files = write_certificate(tmp_path)
    listening = NetworkSettings(
        tls_certificate=str(files.certificate), tls_key=str(files.key), tls_check_interval=1e-9
    )
    transport = WebSocketTransport(listening)
    await nursery.start(transport.run)
    listener = await transport.listen(SECURE)
    for _ in range(2):
        trusting = NetworkSettings(tls_authorities=str(write_certificate(tmp_path).certificate))
        async with trio.open_nursery() as accepting:
            accepting.start_soon(listener.accept)
            assert await dial(trusting, listener, "/wss") == "connected"
    await listener.aclose()
