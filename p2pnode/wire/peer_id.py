"""Peer ids: the multihash of a public key, and their text forms.

Source: libp2p/specs, peer-ids. An id is the identity multihash of the PublicKey protobuf when
that has at most 42 bytes (Ed25519, secp256k1), and its sha2-256 multihash otherwise (RSA).
"""

import functools
import hashlib
from typing import Final, Self

import base58

from p2pnode.errors import InvalidKeyError

MAX_INLINE_KEY_BYTES: Final = 42
_IDENTITY: Final = 0x00
_SHA2_256: Final = 0x12
_CIDV1_LIBP2P_KEY: Final = b"\x01\x72"
_BASE36: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"


class PeerId(bytes):
    """A libp2p peer id; the value is its binary multihash, `str` its base58 text."""

    __slots__ = ()

    def __new__(cls, multihash: bytes) -> Self:
        """Check that `multihash` is an identity or sha2-256 multihash.

        Raises:
            InvalidKeyError: it is neither.
        """
        if len(multihash) < 3 or len(multihash) != 2 + multihash[1]:
            raise InvalidKeyError("a peer id must be a whole multihash")
        inline = multihash[0] == _IDENTITY and multihash[1] <= MAX_INLINE_KEY_BYTES
        hashed = multihash[0] == _SHA2_256 and multihash[1] == 32
        if not (inline or hashed):
            raise InvalidKeyError("a peer id must be an identity or sha2-256 multihash")
        return super().__new__(cls, multihash)

    @classmethod
    def from_public_key_bytes(cls, protobuf: bytes) -> Self:
        """Return the id of a marshalled PublicKey."""
        if len(protobuf) <= MAX_INLINE_KEY_BYTES:
            return cls(bytes((_IDENTITY, len(protobuf))) + protobuf)
        return cls(bytes((_SHA2_256, 32)) + hashlib.sha256(protobuf).digest())

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read base58 (`12D3…`, `Qm…`) or a CIDv1 in base32 (`bafz…`) or base36 (`k51…`).

        Raises:
            InvalidKeyError: `text` is none of these.
        """
        try:
            if text.startswith(("12D3", "16Ui", "Qm", "1")):
                return cls(base58.b58decode(text))
            return cls(_decode_cid(text))
        except (ValueError, IndexError) as error:
            raise InvalidKeyError(f"{text[:80]!r} is not a peer id") from error

    @property
    def inline_key_bytes(self) -> bytes | None:
        """The PublicKey protobuf that the id itself holds, if it does."""
        return bytes(self[2:]) if self[0] == _IDENTITY else None

    @property
    def short(self) -> str:
        """The last eight characters, for people."""
        return "…" + str(self)[-8:]

    def __str__(self) -> str:
        """Return the base58 text."""
        return _base58(bytes(self))

    def __repr__(self) -> str:
        """Return the text within the class name."""
        return f"PeerId({self})"


@functools.lru_cache(maxsize=4096)
def _base58(data: bytes) -> str:
    return base58.b58encode(data).decode("ascii")


def _decode_cid(text: str) -> bytes:
    alphabets = {"b": _BASE32, "k": _BASE36}
    alphabet = alphabets[text[0]] if text[:1] in alphabets else ""
    if not alphabet or len(text) > 200:
        raise ValueError("not a CID in base32 or base36")
    digits = text[1:]
    number = 0
    for digit in digits:
        number = number * len(alphabet) + alphabet.index(digit)
    if alphabet is _BASE32:
        number >>= len(digits) * 5 % 8
        data = number.to_bytes(len(digits) * 5 // 8, "big")
    else:
        data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    if not data.startswith(_CIDV1_LIBP2P_KEY):
        raise ValueError("the CID is not of a libp2p key")
    return data[len(_CIDV1_LIBP2P_KEY) :]
