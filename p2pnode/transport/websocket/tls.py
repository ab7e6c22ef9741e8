"""TLS for `/wss`: the certificates of WebSocket servers, as browsers know them.

They protect nothing that Noise does not protect anyway; but browsers on secure pages, and many
proxies, let no other WebSockets through. Certificates of our day live for weeks, and are renewed by
programs that know nothing of this one: it looks at the files again from time to time.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConfigError, ProtocolError
from p2pnode.events import Event, EventBus

_ALPN: Final = ["http/1.1"]  # the upgrade is HTTP/1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRenewed(Event):
    """The files of the certificate have changed, and new connections get the new one."""

    level = "info"

    certificate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRefused(Event):
    """The files of the certificate have changed, and cannot be used; the old one stays in use."""

    level = "warning"

    certificate: str
    reason: str


class ServerCertificate:
    """The certificate to listen with, loaded again when its files have changed.

    Args:
        settings: where they are.
        events: where changes are told.

    Raises:
        ConfigError: a file cannot be read, or certificate and key do not belong together.
    """

    def __init__(self, settings: NetworkSettings, events: EventBus) -> None:
        self._files = settings.tls_certificate, settings.tls_key
        self._interval = settings.tls_check_interval
        self._events = events
        self._looked_at: float | None = None
        self._seen = self._stamp()
        self._context = _load(*self._files)

    def context(self, now: float) -> ssl.SSLContext:
        """Return what a handshake that begins at `now` uses."""
        if self._looked_at is None or now >= self._looked_at + self._interval:
            self._looked_at = now
            self._look_again()
        return self._context

    def _look_again(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        certificate = self._files[0]
        try:
            self._context = _load(*self._files)
        except ConfigError as error:  # half of it may be there; the other half changes the stamp
            self._events.emit(CertificateRefused(certificate=certificate, reason=str(error)))
        else:
            self._events.emit(CertificateRenewed(certificate=certificate))

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes whenever one of the files does."""
        stamps = []
        for name in self._files:
            try:
                status = Path(name).stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(stamps)


def server_certificate(settings: NetworkSettings, events: EventBus) -> ServerCertificate | None:
    """Load the certificate to listen with; None when there is none.

    Raises:
        ConfigError: a file cannot be read, or certificate and key do not belong together.
    """
    if not settings.tls_certificate and not settings.tls_key:
        return None
    if not settings.tls_certificate or not settings.tls_key:
        raise ConfigError("network.tls_certificate and network.tls_key go together; set both")
    return ServerCertificate(settings, events)


class TlsStream(trio.abc.Stream):
    """A byte stream over TLS that remembers how it broke.

    Args:
        stream: what it is over; its handshake is still to come.

    Attributes:
        failure: the rule of TLS that the other end broke, if it did.
    """

    def __init__(self, stream: trio.SSLStream[trio.abc.Stream]) -> None:
        self.failure: ProtocolError | None = None
        self._stream = stream

    async def do_handshake(self) -> None:
        """Agree on keys.

        Raises:
            trio.BrokenResourceError: that failed; its cause says why.
        """
        await self._stream.do_handshake()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See `trio.abc.ReceiveStream`."""
        try:
            return await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError as error:
            if (reason := tls_failure(error)) is not None:
                self.failure = ProtocolError(reason)
            raise

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._stream.aclose()


def tls_failure(error: BaseException) -> str | None:
    """Say which rule of TLS was broken; None if that is not why a stream broke."""
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return f"TLS failed: {cause.reason.lower().replace('_', ' ')}"
    return None


def _load(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(_ALPN)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot use the certificate {certificate} with the key {key}: {_reason(error)}"
        ) from error
    return context


def client_context(settings: NetworkSettings) -> ssl.SSLContext:
    """Load the authorities that servers' certificates are checked against.

    Raises:
        ConfigError: the file of extra authorities cannot be read.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(_ALPN)
    if settings.tls_authorities:
        try:
            context.load_verify_locations(settings.tls_authorities)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot read the authorities in {settings.tls_authorities}: {_reason(error)}"
            ) from error
    return context


def _no_password() -> str:
    """Stand in for the question that OpenSSL would ask at the terminal."""
    raise ValueError("the key is locked with a password; unlock it first")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it is not in PEM form").lower().replace("_", " ")
    return (getattr(error, "strerror", None) or str(error)).lower()
