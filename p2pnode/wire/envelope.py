"""Signed envelopes: a payload, its type and its signer, bound to one purpose by a domain.

Source: libp2p/specs, RFC 2. The signature covers the domain, the payload type and the payload,
each behind its uvarint length; the domain itself is not sent, so that what was signed for one
purpose can never pass for another.
"""

from typing import NamedTuple

from google.protobuf.message import DecodeError

from p2pnode.errors import InvalidKeyError, ProtocolError
from p2pnode.wire import varint
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.pb import keys_pb2, record_pb2


class Opened(NamedTuple):
    """The contents of an envelope whose signature was verified."""

    public_key: PublicKey
    payload_type: bytes
    payload: bytes


def seal(key: PrivateKey, domain: str, payload_type: bytes, payload: bytes) -> bytes:
    """Sign `payload` for the purpose `domain`, and return the Envelope protobuf."""
    return record_pb2.Envelope(
        public_key=keys_pb2.PublicKey.FromString(key.public_key.protobuf),
        payload_type=payload_type,
        payload=payload,
        signature=key.sign(signed_bytes(domain, payload_type, payload)),
    ).SerializeToString(deterministic=True)


def open_envelope(data: bytes, domain: str) -> Opened:
    """Verify an Envelope protobuf that must have been sealed for `domain`.

    Raises:
        ProtocolError: it is malformed, or its signature does not hold.
    """
    try:
        envelope = record_pb2.Envelope.FromString(data)
        if not envelope.IsInitialized():  # the decoder itself does not insist on required fields
            raise ProtocolError("a signed envelope is malformed: it lacks a field")
        public_key = PublicKey.from_bytes(envelope.public_key.SerializeToString())
    except (DecodeError, InvalidKeyError) as error:
        raise ProtocolError(f"a signed envelope is malformed: {error}") from error
    signed = signed_bytes(domain, envelope.payload_type, envelope.payload)
    if not public_key.verify(signed, envelope.signature):
        raise ProtocolError("the signature of a signed envelope does not hold")
    return Opened(public_key, envelope.payload_type, envelope.payload)


def signed_bytes(domain: str, payload_type: bytes, payload: bytes) -> bytes:
    """Return what an envelope's signature covers."""
    return b"".join(map(varint.prefixed, (domain.encode(), payload_type, payload)))
