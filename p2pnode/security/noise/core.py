"""`Noise_XX_25519_ChaChaPoly_SHA256` with libp2p's payloads, as pure state machines.

```
initiator -> responder   e
initiator <- responder   e, ee, s, es   payload: identity, signature, muxers
initiator -> responder   s, se          payload: identity, signature, muxers
```

Sources: the Noise Protocol Framework, revision 34, sections 5 and 7.5; libp2p/specs, noise.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from google.protobuf.message import DecodeError

from p2pnode.errors import (
    ConnectionClosedError,
    HandshakeError,
    InvalidKeyError,
    NegotiationError,
    ProtocolError,
    SimultaneousOpenError,
    WrongPeerError,
)
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.pb import noise_pb2
from p2pnode.wire.peer_id import PeerId

MAX_MESSAGE: Final = 65535  # Noise, section 3
TAG_BYTES: Final = 16
MAX_PLAINTEXT: Final = MAX_MESSAGE - TAG_BYTES
KEY_BYTES: Final = 32
MAX_MUXERS: Final = 32  # names in one early-negotiation list; js and go send one or two
_PROTOCOL: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"  # exactly 32 bytes: the hash's own length
_SIGNED: Final = b"noise-libp2p-static-key:"
_LAST_NONCE: Final = 2**64 - 2  # 2**64 - 1 is reserved by the framework
_pack_nonce: Final = struct.Struct("<4xQ").pack  # section 12.3

Buffer = bytes | bytearray | memoryview


class CipherState:
    """One direction's key and nonce (section 5.1)."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = 0

    def _next_nonce(self) -> bytes:
        if self._nonce > _LAST_NONCE:
            raise ConnectionClosedError("the cipher's nonces are used up; connect again")
        nonce = _pack_nonce(self._nonce)
        self._nonce += 1
        return nonce

    def encrypt(self, plaintext: Buffer, associated: bytes | None = None) -> bytes:
        """Return ciphertext and tag.

        Raises:
            ConnectionClosedError: 2**64 - 1 messages were encrypted with this key.
        """
        return self._cipher.encrypt(self._next_nonce(), plaintext, associated)

    def encrypt_into(self, plaintext: Buffer, out: memoryview) -> None:
        """Write ciphertext and tag to `out`, which has 16 bytes more than `plaintext`.

        Raises:
            ConnectionClosedError: 2**64 - 1 messages were encrypted with this key.
        """
        self._cipher.encrypt_into(self._next_nonce(), plaintext, None, out)

    def decrypt(self, ciphertext: Buffer, associated: bytes | None = None) -> bytes:
        """Return the plaintext.

        Raises:
            ProtocolError: the message was changed, replayed or left out on its way.
            ConnectionClosedError: 2**64 - 1 messages were decrypted with this key.
        """
        try:
            return self._cipher.decrypt(self._next_nonce(), ciphertext, associated)
        except InvalidTag:
            raise _undecryptable() from None

    def decrypt_into(self, ciphertext: Buffer, out: memoryview) -> None:
        """Write the plaintext to `out`, which has 16 bytes less than `ciphertext`.

        Raises:
            ProtocolError: as `decrypt`; then what is in `out` is worthless.
            ConnectionClosedError: 2**64 - 1 messages were decrypted with this key.
        """
        try:
            self._cipher.decrypt_into(self._next_nonce(), ciphertext, None, out)
        except InvalidTag:
            raise _undecryptable() from None


def _undecryptable() -> ProtocolError:
    return ProtocolError("a message does not decrypt: it was changed or replayed")


class _SymmetricState:
    """Chaining key and transcript hash (section 5.2)."""

    def __init__(self) -> None:
        self._chaining = self.hash = _PROTOCOL
        self._cipher: CipherState | None = None
        self.mix_hash(b"")  # the empty prologue

    def mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chaining, key = _hkdf(self._chaining, secret)
        self._cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        data = self._cipher.encrypt(plaintext, self.hash) if self._cipher else plaintext
        self.mix_hash(data)
        return data

    def decrypt_and_hash(self, data: bytes) -> bytes:
        plaintext = self._cipher.decrypt(data, self.hash) if self._cipher else data
        self.mix_hash(data)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        first, second = _hkdf(self._chaining, b"")
        return CipherState(first), CipherState(second)


def _hkdf(chaining: bytes, secret: bytes) -> tuple[bytes, bytes]:
    root = hmac.digest(chaining, secret, "sha256")
    first = hmac.digest(root, b"\x01", "sha256")
    return first, hmac.digest(root, first + b"\x02", "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeResult:
    """What a finished handshake proved and agreed on."""

    peer_id: PeerId
    public_key: PublicKey
    muxer: str | None  # None when a side did not offer any: negotiate it afterwards
    sender: CipherState
    receiver: CipherState


class Handshake:
    """One side of the handshake; `receive_message` and `next_message` alternate.

    Args:
        role: who sends first.
        identity: our identity key.
        muxers: stream muxers we offer, the most wanted first; none leaves them out.
        expected: who must answer, if we know.
        static, ephemeral: our X25519 keys for this handshake, fresh ones by default.
    """

    def __init__(
        self,
        role: Literal["initiator", "responder"],
        identity: PrivateKey,
        *,
        muxers: Sequence[str] = (),
        expected: PeerId | None = None,
        static: X25519PrivateKey | None = None,
        ephemeral: X25519PrivateKey | None = None,
    ) -> None:
        self._initiator = role == "initiator"
        self._identity = identity
        self._muxers = tuple(muxers)
        self._expected = expected
        self._static = static or X25519PrivateKey.generate()
        self._ephemeral = ephemeral or X25519PrivateKey.generate()
        self._symmetric = _SymmetricState()
        self._remote_ephemeral = b""
        self._remote_static = b""
        self._remote: tuple[PublicKey, tuple[str, ...]] | None = None
        self._step = 0
        self.result: HandshakeResult | None = None

    @property
    def wants_to_send(self) -> bool:
        """Whether the next message is ours."""
        return self.result is None and (self._step % 2 == 0) == self._initiator

    def next_message(self) -> bytes:
        """Return our next message."""
        assert self.wants_to_send
        state = self._symmetric
        out = b""
        if self._step in {0, 1}:
            ephemeral = self._ephemeral.public_key().public_bytes_raw()
            state.mix_hash(ephemeral)
            out += ephemeral
        if self._step == 1:
            state.mix_key(self._exchange(self._ephemeral, self._remote_ephemeral))
        if self._step in {1, 2}:
            out += state.encrypt_and_hash(self._static.public_key().public_bytes_raw())
            state.mix_key(self._exchange(self._static, self._remote_ephemeral))
        out += state.encrypt_and_hash(b"" if self._step == 0 else self._payload())
        self._advance()
        return out

    def receive_message(self, data: bytes) -> None:
        """Take the peer's next message.

        Raises:
            HandshakeError: it is broken, or the peer is not who it must be.
            NegotiationError: both sides offered muxers and share none.
        """
        assert self.result is None
        assert not self.wants_to_send
        payload = self._open(data)
        if self._step > 0:
            self._verify(payload)
        self._advance()

    def _open(self, data: bytes) -> bytes:
        """Return the payload of the peer's message, having mixed its keys in."""
        state = self._symmetric
        rest = data
        if self._step == 1 and len(data) == KEY_BYTES:  # a second message is longer
            raise SimultaneousOpenError("the peer dialled, too: both sides began the handshake")
        if self._step in {0, 1}:
            self._remote_ephemeral, rest = _take(rest, KEY_BYTES)
            state.mix_hash(self._remote_ephemeral)
        if self._step == 1:
            state.mix_key(self._exchange(self._ephemeral, self._remote_ephemeral))
        if self._step in {1, 2}:
            sealed, rest = _take(rest, KEY_BYTES + TAG_BYTES)
            self._remote_static = self._decrypt(sealed)
            state.mix_key(self._exchange(self._ephemeral, self._remote_static))
        return self._decrypt(rest)

    def _decrypt(self, data: bytes) -> bytes:
        try:
            return self._symmetric.decrypt_and_hash(data)
        except ProtocolError as error:
            raise HandshakeError(f"the peer's handshake is broken: {error}") from None

    def _advance(self) -> None:
        self._step += 1
        if self._step < 3:
            return
        assert self._remote is not None
        key, theirs = self._remote
        first, second = self._symmetric.split()
        self.result = HandshakeResult(
            peer_id=key.peer_id,
            public_key=key,
            muxer=self._agree(theirs),
            sender=first if self._initiator else second,
            receiver=second if self._initiator else first,
        )

    def _agree(self, theirs: tuple[str, ...]) -> str | None:
        if not self._muxers or not theirs:
            return None
        wanted, offered = (self._muxers, theirs) if self._initiator else (theirs, self._muxers)
        for muxer in wanted:
            if muxer in offered:
                return muxer
        shown = ", ".join(theirs)[:200]
        raise NegotiationError(f"the peer offers the muxers {shown!r}, we {list(self._muxers)}")

    def _payload(self) -> bytes:
        static = self._static.public_key().public_bytes_raw()
        message = noise_pb2.NoiseHandshakePayload(
            identity_key=self._identity.public_key.protobuf,
            identity_sig=self._identity.sign(_SIGNED + static),
        )
        if self._muxers:
            message.extensions.stream_muxers.extend(self._muxers)
        return message.SerializeToString(deterministic=True)

    def _verify(self, payload: bytes) -> None:
        try:
            message = noise_pb2.NoiseHandshakePayload.FromString(payload)
            key = PublicKey.from_bytes(message.identity_key)
        except DecodeError as error:
            raise HandshakeError("the peer's handshake payload is malformed") from error
        except InvalidKeyError as error:
            raise HandshakeError(f"the peer's identity key is not usable: {error}") from error
        if not key.verify(_SIGNED + self._remote_static, message.identity_sig):
            raise HandshakeError("the peer did not prove that it owns its identity key")
        if self._expected is not None and key.peer_id != self._expected:
            raise WrongPeerError(f"{key.peer_id} answered where {self._expected} was expected")
        self._remote = (key, tuple(message.extensions.stream_muxers[:MAX_MUXERS]))

    @staticmethod
    def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
        try:
            return private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise HandshakeError("the peer sent a degenerate key") from error


def _take(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise HandshakeError("a handshake message is too short")
    return data[:size], data[size:]
