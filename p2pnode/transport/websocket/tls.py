"""TLS for `/wss`: the certificates of WebSocket servers, as browsers know them.

They protect nothing that Noise does not protect anyway; but browsers on secure pages, and many
proxies, let no other WebSockets through.
"""

import ssl

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConfigError

_ALPN = ["http/1.1"]  # the upgrade is HTTP/1.1


def server_context(settings: NetworkSettings) -> ssl.SSLContext | None:
    """Load the certificate to listen with; None when there is none.

    Raises:
        ConfigError: a file cannot be read, or certificate and key do not belong together.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if not certificate and not key:
        return None
    if not certificate or not key:
        raise ConfigError("network.tls_certificate and network.tls_key go together; set both")
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
