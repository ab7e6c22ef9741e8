"""Reservation vouchers: a relay's signed word that it takes connections for a peer.

Source: libp2p/specs, relay/circuit-v2, "Reservation Vouchers"; RFC 2 for the envelope.
"""

from dataclasses import dataclass
from typing import Final, Self

from google.protobuf.message import DecodeError

from p2pnode.errors import InvalidKeyError, ProtocolError
from p2pnode.wire.envelope import open_envelope, seal
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.pb import relay_pb2
from p2pnode.wire.peer_id import PeerId

DOMAIN: Final = "libp2p-relay-rsvp"
PAYLOAD_TYPE: Final = b"\x03\x02"


@dataclass(frozen=True, slots=True, kw_only=True)
class Voucher:
    """What a relay promises to whom.

    Attributes:
        relay: who promises.
        peer: to whom.
        expiration: until when, in seconds since the Unix epoch.
    """

    relay: PeerId
    peer: PeerId
    expiration: int

    def seal(self, key: PrivateKey) -> bytes:
        """Return the voucher in an envelope signed by `key`, which must be the relay's."""
        if key.peer_id != self.relay:
            raise ValueError("a voucher is signed by the relay that gives it")
        payload = relay_pb2.ReservationVoucher(
            relay=bytes(self.relay), peer=bytes(self.peer), expiration=self.expiration
        ).SerializeToString(deterministic=True)
        return seal(key, DOMAIN, PAYLOAD_TYPE, payload)

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Verify an envelope, and that its signer is the relay it speaks of.

        Raises:
            ProtocolError: it is malformed, badly signed, or signed by somebody else.
        """
        public_key, payload_type, payload = open_envelope(data, DOMAIN)
        if payload_type != PAYLOAD_TYPE:
            raise ProtocolError(f"payload type {payload_type.hex()} is not that of a voucher")
        try:
            message = relay_pb2.ReservationVoucher.FromString(payload)
            voucher = cls(
                relay=PeerId(message.relay),
                peer=PeerId(message.peer),
                expiration=message.expiration,
            )
        except (DecodeError, InvalidKeyError) as error:
            raise ProtocolError("a reservation voucher is malformed") from error
        if voucher.relay != public_key.peer_id:
            raise ProtocolError("a reservation voucher was signed by another peer than its relay")
        return voucher
