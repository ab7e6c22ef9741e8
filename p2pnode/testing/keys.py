"""Identities of the kinds that other implementations use and this node does not make.

A node's own identity is Ed25519. kubo has long made RSA ones, and secp256k1 and ECDSA are in the
specification (libp2p/specs, peer-ids), so peers with such keys must be talked to like any other.
"""

from typing import Final, Literal, Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.pb import keys_pb2

Kind = Literal["RSA", "Secp256k1", "ECDSA"]
KINDS: Final[tuple[Kind, ...]] = ("RSA", "Secp256k1", "ECDSA")
_RSA_EXPONENT: Final = 65537
_RSA_BITS: Final = 2048

_Signer = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class ForeignKey(PrivateKey):
    """A private key that hosts take like an Ed25519 one; it only cannot be saved."""

    def __init__(self, kind: Kind, signer: _Signer) -> None:
        self._signer = signer
        public = signer.public_key()
        if kind == "Secp256k1":
            data = public.public_bytes(
                serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
            )
        else:
            data = public.public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        message = keys_pb2.PublicKey(Type=kind, Data=data)
        self.public_key = PublicKey.from_bytes(message.SerializeToString(deterministic=True))

    @classmethod
    def generate(cls, kind: Kind = "RSA") -> Self:
        """Make a new identity of one kind."""
        if kind == "RSA":
            return cls(kind, rsa.generate_private_key(_RSA_EXPONENT, _RSA_BITS))
        curve = ec.SECP256K1() if kind == "Secp256k1" else ec.SECP256R1()
        return cls(kind, ec.generate_private_key(curve))

    def sign(self, message: bytes) -> bytes:
        """Sign `message`, as libp2p has it for keys of this kind."""
        if isinstance(self._signer, rsa.RSAPrivateKey):
            return self._signer.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return self._signer.sign(message, ec.ECDSA(hashes.SHA256()))
