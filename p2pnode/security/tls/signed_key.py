"""The extension by which a certificate says whose it is, and proves it.

```
SignedKey ::= SEQUENCE {
    publicKey OCTET STRING,     -- the identity, a PublicKey protobuf
    signature OCTET STRING      -- over "libp2p-tls-handshake:" and the certificate's own key
}
```

Source: libp2p/specs, tls. Read as DER (ITU-T X.690): lengths in their shortest form, and nothing
behind the end.
"""

from dataclasses import dataclass
from typing import Final, Self

from p2pnode.errors import HandshakeError

MAX_BYTES: Final = 8192  # an RSA-8192 identity and its signature need 2.2 KiB
_SEQUENCE: Final = 0x30
_OCTET_STRING: Final = 0x04
_LONG_FORM: Final = 0x80
_MAX_LENGTH_BYTES: Final = 2  # for lengths up to `MAX_BYTES`


@dataclass(frozen=True, slots=True)
class SignedKey:
    """An identity's public key, and its signature over the certificate's key."""

    public_key: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the DER encoding."""
        parts = (_element(_OCTET_STRING, each) for each in (self.public_key, self.signature))
        return _element(_SEQUENCE, b"".join(parts))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the DER encoding.

        Raises:
            HandshakeError: it is anything else, or too long.
        """
        if len(data) > MAX_BYTES:
            raise HandshakeError(
                f"a certificate's libp2p extension of {len(data)} bytes is too long"
            )
        body, rest = _take(_SEQUENCE, data)
        public_key, rest_of_body = _take(_OCTET_STRING, body)
        signature, end = _take(_OCTET_STRING, rest_of_body)
        if rest or end:
            raise _malformed()
        return cls(public_key, signature)


def _element(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < _LONG_FORM:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG_FORM | len(length))) + length + content


def _take(tag: int, data: bytes) -> tuple[bytes, bytes]:
    """Split the element that `data` begins with from the rest; returns its content and the rest."""
    if len(data) < 2 or data[0] != tag:
        raise _malformed()
    size, start = data[1], 2
    if size & _LONG_FORM:
        count = size & ~_LONG_FORM
        start += count
        length = data[2:start]
        size = int.from_bytes(length, "big")
        is_shortest = size >= _LONG_FORM and length[:1] != b"\0"
        if not 1 <= count <= _MAX_LENGTH_BYTES or len(length) < count or not is_shortest:
            raise _malformed()
    if len(data) < start + size:
        raise _malformed()
    return data[start : start + size], data[start + size :]


def _malformed() -> HandshakeError:
    return HandshakeError("a certificate's libp2p extension is malformed")
