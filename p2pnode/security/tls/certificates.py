"""Certificates that vouch for themselves, and whose extension names a libp2p identity.

The certificate's own key is made for the occasion; the identity signs it within the extension
(`p2pnode.security.tls.signed_key`). So identities of any kind can use TLS, and no name, authority
or subject means anything. Source: libp2p/specs, tls.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from p2pnode.clock import wall_time
from p2pnode.errors import HandshakeError, InvalidKeyError
from p2pnode.security.tls.signed_key import SignedKey
from p2pnode.wire.keys import PrivateKey, PublicKey

EXTENSION: Final = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_SIGNED_PREFIX: Final = b"libp2p-tls-handshake:"
_NAME: Final = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "libp2p")])
# A peer whose clock is wrong must still take it: go-libp2p begins an hour earlier, too, and ends
# after a century. RFC 5280 has 2050 on in another form, which all readers know.
_CLOCK_SKEW: Final = dt.timedelta(hours=1)
_LIFETIME: Final = dt.timedelta(days=100 * 365)
# "Hash functions with an output length less than 256 bits MUST NOT be used."
_MIN_DIGEST_BYTES: Final = 32
# What may be critical: it says what the key is for, and nothing that would forbid our use of it.
_UNDERSTOOD: Final = frozenset(
    {
        EXTENSION,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_SPKI: Final = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class TlsIdentity:
    """A node's certificate for TLS, with its key; one serves all connections of the node.

    Args:
        key: the node's identity.
        now: seconds since 1970, from which the certificate is good.

    Attributes:
        certificate: signed by its own key.
        private_key: that key.
    """

    def __init__(self, key: PrivateKey, now: float | None = None) -> None:
        began = dt.datetime.fromtimestamp(wall_time() if now is None else now, dt.UTC)
        # ECDSA over P-256 is what each implementation must be able to verify (RFC 8446, 9.1).
        self.private_key = ec.generate_private_key(ec.SECP256R1())
        public = self.private_key.public_key()
        signature = key.sign(_SIGNED_PREFIX + public.public_bytes(*_SPKI))
        extension = SignedKey(key.public_key.protobuf, signature).to_bytes()
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(_NAME)
            .issuer_name(_NAME)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(began - _CLOCK_SKEW)
            .not_valid_after(began + _LIFETIME)
            .add_extension(x509.UnrecognizedExtension(EXTENSION, extension), critical=False)
            .sign(self.private_key, hashes.SHA256())
        )

    def verify(self, chain: Sequence[x509.Certificate]) -> PublicKey:
        """Return whose certificate a peer has shown, see `verify_chain`.

        Raises:
            HandshakeError: it proves nothing.
        """
        return verify_chain(chain, wall_time())


def verify_chain(chain: Sequence[x509.Certificate], now: float) -> PublicKey:
    """Return the identity that a peer's certificates prove.

    That the peer has the certificate's key, TLS itself has proven.

    Args:
        chain: what the peer has sent.
        now: seconds since 1970.

    Raises:
        HandshakeError: it is not exactly one certificate, valid now, that signs itself and carries
            an identity's signature, and nothing critical that we do not know.
    """
    if len(chain) != 1:
        raise HandshakeError(f"the peer shows {len(chain)} certificates instead of one")
    certificate = chain[0]
    try:
        _check_validity(certificate, now)
        _check_self_signature(certificate)
        signed = _signed_key(certificate)
        identity = PublicKey.from_bytes(signed.public_key)
        own_key = certificate.public_key().public_bytes(*_SPKI)
    except InvalidKeyError as error:
        raise HandshakeError(f"the identity in the peer's certificate is bad: {error}") from error
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise HandshakeError("the peer's certificate is malformed") from error
    if not identity.verify(_SIGNED_PREFIX + own_key, signed.signature):
        raise HandshakeError("the identity in the peer's certificate has not signed it")
    return identity


def _check_validity(certificate: x509.Certificate, now: float) -> None:
    moment = dt.datetime.fromtimestamp(now, dt.UTC)
    if moment < certificate.not_valid_before_utc:
        raise HandshakeError(
            f"the peer's certificate is good only from {certificate.not_valid_before_utc:%c} UTC "
            "on; one of the two clocks is wrong"
        )
    if moment > certificate.not_valid_after_utc:
        raise HandshakeError(
            f"the peer's certificate was good only until {certificate.not_valid_after_utc:%c} UTC; "
            "one of the two clocks is wrong"
        )


def _check_self_signature(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if isinstance(key, dsa.DSAPublicKey):
        raise HandshakeError("the peer's certificate has a DSA key")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size not in range(2048, 8193):
        raise HandshakeError(f"the peer's certificate has an RSA key of {key.key_size} bits")
    digest = certificate.signature_hash_algorithm  # None for Ed25519, which brings its own
    if digest is not None and digest.digest_size < _MIN_DIGEST_BYTES:
        raise HandshakeError(f"the peer's certificate is signed by way of {digest.name}")
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, TypeError) as error:
        raise HandshakeError("the peer's certificate does not sign itself") from error


def _signed_key(certificate: x509.Certificate) -> SignedKey:
    found = None
    for extension in certificate.extensions:
        if extension.oid == EXTENSION:
            assert isinstance(extension.value, x509.UnrecognizedExtension)
            found = extension.value.value
        elif extension.critical and extension.oid not in _UNDERSTOOD:
            raise HandshakeError(
                f"the peer's certificate demands {extension.oid.dotted_string}, which is unknown"
            )
    if found is None:
        raise HandshakeError("the peer's certificate names no libp2p identity")
    return SignedKey.from_bytes(found)
