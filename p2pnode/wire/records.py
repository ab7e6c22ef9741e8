"""Peer records: a peer's addresses, signed by itself.

Source: libp2p/specs, RFC 3. The payload type is the two raw bytes 03 01, which is what go, js and
py-libp2p put there; the RFC's text says otherwise.
"""

from dataclasses import dataclass
from typing import Final, Self

from google.protobuf.message import DecodeError
from multiaddr import Multiaddr

from p2pnode.errors import InvalidKeyError, ProtocolError
from p2pnode.wire.addresses import read_addresses
from p2pnode.wire.envelope import open_envelope, seal
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.pb import record_pb2
from p2pnode.wire.peer_id import PeerId

DOMAIN: Final = "libp2p-peer-record"
PAYLOAD_TYPE: Final = b"\x03\x01"
MAX_RECORD_ADDRESSES: Final = 128  # 8 KiB of identify message hold no more useful ones


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """Where a peer can be reached.

    Attributes:
        peer_id: whose addresses these are.
        seq: rises with every change; the record with the highest one counts.
        addresses: without their `/p2p` part.
    """

    peer_id: PeerId
    seq: int
    addresses: tuple[Multiaddr, ...]

    def seal(self, key: PrivateKey) -> bytes:
        """Return the record in an envelope signed by `key`, which must be the peer's own."""
        if key.peer_id != self.peer_id:
            raise ValueError("a peer record is signed by the peer it speaks of")
        payload = record_pb2.PeerRecord(
            peer_id=bytes(self.peer_id),
            seq=self.seq,
            addresses=[
                record_pb2.PeerRecord.AddressInfo(multiaddr=each.to_bytes())
                for each in self.addresses
            ],
        ).SerializeToString(deterministic=True)
        return seal(key, DOMAIN, PAYLOAD_TYPE, payload)

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Verify an envelope, and that its signer is the peer it speaks of.

        Raises:
            ProtocolError: it is malformed, badly signed, or signed by another peer.
        """
        public_key, payload_type, payload = open_envelope(data, DOMAIN)
        if payload_type != PAYLOAD_TYPE:
            raise ProtocolError(f"payload type {payload_type.hex()} is not that of a peer record")
        try:
            message = record_pb2.PeerRecord.FromString(payload)
            if not message.IsInitialized():  # the decoder itself does not insist on it
                raise ProtocolError("a peer record is malformed: it lacks a field")
            peer_id = PeerId(message.peer_id)
        except (DecodeError, InvalidKeyError) as error:
            raise ProtocolError("a peer record is malformed") from error
        if peer_id != public_key.peer_id:
            raise ProtocolError("a peer record was signed by another peer than it speaks of")
        addresses = read_addresses(
            (each.multiaddr for each in message.addresses), limit=MAX_RECORD_ADDRESSES
        )
        return cls(peer_id=peer_id, seq=message.seq, addresses=tuple(addresses))
