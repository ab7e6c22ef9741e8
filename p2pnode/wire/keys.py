"""Identity keys: Ed25519 for ourselves; RSA, secp256k1 and ECDSA of others verify too.

Source: libp2p/specs, peer-ids. Marshalled keys are deterministic: both fields, in tag order.
"""

import functools
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from google.protobuf.message import DecodeError

from p2pnode.errors import InvalidKeyError
from p2pnode.wire.pb import keys_pb2
from p2pnode.wire.peer_id import PeerId

MAX_KEY_BYTES: Final = 2048  # a marshalled RSA-8192 key needs 1.1 KiB; larger ones only cost time
_RSA_BITS: Final = range(2048, 8193)  # the bounds go-libp2p accepts

_Verifier = ed25519.Ed25519PublicKey | rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key of any libp2p kind, kept in its marshalled form."""

    protobuf: bytes

    @classmethod
    def from_bytes(cls, protobuf: bytes) -> Self:
        """Read a PublicKey protobuf, and check that its key is well formed.

        Raises:
            InvalidKeyError: it is malformed, oversized or of an unknown kind.
        """
        _load_public(protobuf)
        return cls(_canonical(protobuf))

    @classmethod
    def from_ed25519(cls, raw: bytes) -> Self:
        """Read the 32 bytes of an Ed25519 key.

        Raises:
            InvalidKeyError: they are none.
        """
        return cls.from_bytes(_marshal_public(keys_pb2.Ed25519, raw))

    @property
    def kind(self) -> str:
        """The key's type by its libp2p name, such as `Ed25519`."""
        return keys_pb2.KeyType.Name(keys_pb2.PublicKey.FromString(self.protobuf).Type)

    @property
    def peer_id(self) -> PeerId:
        """The peer id this key owns."""
        return PeerId.from_public_key_bytes(self.protobuf)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Tell whether `signature` over `message` was made with this key."""
        key = _load_public(self.protobuf)
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, message)
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            else:
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """An Ed25519 identity."""

    def __init__(self, key: ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes_raw()
        self.public_key = PublicKey(_marshal_public(keys_pb2.Ed25519, raw))

    @classmethod
    def generate(cls) -> Self:
        """Make a new identity."""
        return cls(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Make the identity of a 32-byte seed."""
        return cls(ed25519.Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_bytes(cls, protobuf: bytes) -> Self:
        """Read a PrivateKey protobuf: 64 bytes (seed, public), or 96 with the public key twice.

        Raises:
            InvalidKeyError: it is malformed, of another kind, or its halves disagree.
        """
        try:
            message = keys_pb2.PrivateKey.FromString(protobuf)
        except DecodeError as error:
            raise InvalidKeyError("the private key is not a PrivateKey protobuf") from error
        data = message.Data
        if message.Type != keys_pb2.Ed25519 or len(data) not in {64, 96}:
            raise InvalidKeyError("the private key is not an Ed25519 key of 64 or 96 bytes")
        key = cls.from_seed(data[:32])
        public = key._key.public_key().public_bytes_raw()  # noqa: SLF001  # its own class
        if any(data[start : start + 32] != public for start in range(32, len(data), 32)):
            raise InvalidKeyError("the two halves of the private key do not belong together")
        return key

    def to_bytes(self) -> bytes:
        """Return the PrivateKey protobuf."""
        seed = self._key.private_bytes_raw()
        public = self._key.public_key().public_bytes_raw()
        message = keys_pb2.PrivateKey(Type=keys_pb2.Ed25519, Data=seed + public)
        return message.SerializeToString(deterministic=True)

    @property
    def peer_id(self) -> PeerId:
        """The peer id this key owns."""
        return self.public_key.peer_id

    def sign(self, message: bytes) -> bytes:
        """Sign `message`."""
        return self._key.sign(message)


def _marshal_public(kind: keys_pb2.KeyType, data: bytes) -> bytes:
    return keys_pb2.PublicKey(Type=kind, Data=data).SerializeToString(deterministic=True)


def _canonical(protobuf: bytes) -> bytes:
    message = keys_pb2.PublicKey.FromString(protobuf)
    return _marshal_public(message.Type, message.Data)


@functools.lru_cache(maxsize=1024)
def _load_public(protobuf: bytes) -> _Verifier:
    if len(protobuf) > MAX_KEY_BYTES:
        raise InvalidKeyError(f"a public key of {len(protobuf)} bytes is too large")
    try:
        message = keys_pb2.PublicKey.FromString(protobuf)
        if message.Type == keys_pb2.Ed25519:
            return ed25519.Ed25519PublicKey.from_public_bytes(message.Data)
        if message.Type == keys_pb2.Secp256k1:
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), message.Data)
        key = serialization.load_der_public_key(message.Data)
    except (DecodeError, ValueError, UnsupportedAlgorithm) as error:
        raise InvalidKeyError("the public key is malformed") from error
    if message.Type == keys_pb2.RSA and isinstance(key, rsa.RSAPublicKey):
        if key.key_size not in _RSA_BITS:
            raise InvalidKeyError(f"RSA keys of {key.key_size} bits are not accepted")
        return key
    if message.Type == keys_pb2.ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
        return key
    raise InvalidKeyError("the public key is not of the kind it says")
