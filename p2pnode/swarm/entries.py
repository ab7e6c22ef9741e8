"""One signed entry of the index: what a peer says about itself in one record.

An entry is the msgpack list `[public key, body, signature]`. The body is the msgpack list

    [served, withdrawn, issued, lifetime, load, throughput, addresses, token]

with two sets of coordinates (little-endian bytes without zeros at the end), the wall-clock time
and the lifetime in milliseconds, the calls queued at the host, how fast it is, binary multiaddrs,
and the peer's proof of membership (empty in an open run). An entry in a record of branches has but
coordinates served, times and token.

A throughput of r rows a second is told as the whole number nearest to 16 log2(1 + 1000 r): to some
2 %, and 0 where it is not known.

The signature is that of a libp2p envelope (RFC 2) whose payload is the body and whose payload type
is the DHT key. So an entry need not repeat run, prefix and peer, and stands nowhere else. About
150 bytes in an open run and 750 in a closed one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from multiaddr import Multiaddr

from p2pnode.errors import InvalidKeyError, InvalidUidError, ProtocolError
from p2pnode.protocols.kad.messages import read_peer_address
from p2pnode.swarm.places import NAMESPACE, SPAN, Kind, Place
from p2pnode.wire.envelope import signed_bytes
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.packing import unpack
from p2pnode.wire.peer_id import PeerId

MAX_OPEN_BYTES: Final = 500  # of an entry in an open run; room for some eight addresses
MAX_CLOSED_BYTES: Final = 1300  # and in a closed one: a token passed on twice has about 820
MAX_ADDRESSES: Final = 8
MAX_LIFETIME: Final = 3600.0  # seconds; a host that dies must not be listed for ever
MAX_LOAD: Final = 2**31 - 1
MAX_THROUGHPUT_STEP: Final = 640  # some 1e9 rows a second
_STEPS_PER_OCTAVE: Final = 16
_MAX_MASK_BYTES: Final = SPAN // 8
_MAX_MILLISECONDS: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one peer says in one record.

    Attributes:
        peer_id: the peer.
        served: a set of coordinates of the record's shard.
        withdrawn: those that it served once, and does not any more.
        issued: on the wall clock, in seconds.
        lifetime: in seconds from then.
        load: calls queued there.
        throughput: rows a second through each expert when all are in use, as `told` gives it.
        addresses: where it can be dialled.
        token: its proof of membership.
    """

    peer_id: PeerId
    served: int
    withdrawn: int = 0
    issued: float
    lifetime: float
    load: int = 0
    throughput: float = 0.0
    addresses: tuple[Multiaddr, ...] = ()
    token: bytes = b""

    @property
    def expiry(self) -> float:
        """When the entry ends, on the wall clock."""
        return self.issued + self.lifetime


def max_entry_bytes(place: Place) -> int:
    """Return the most bytes that an entry may have there."""
    return MAX_OPEN_BYTES if place.is_open else MAX_CLOSED_BYTES


def seal_entry(key: PrivateKey, place: Place, entry: Entry) -> bytes:
    """Sign an entry; addresses that do not fit any more are left out, the last ones first.

    Raises:
        InvalidUidError: it is too large even so, by its token.
    """
    for count in range(min(len(entry.addresses), MAX_ADDRESSES), -1, -1):
        sealed = _seal(key, place, entry, entry.addresses[:count])
        if len(sealed) <= max_entry_bytes(place):
            return sealed
    raise InvalidUidError(
        f"the proof of membership in {place.run_id} has {len(entry.token)} bytes, too many to be"
        " announced; ask the run's owner for an invite of your own"
    )


def open_entry(place: Place, sealed: bytes) -> Entry:
    """Read an entry and verify its signature, but not its membership.

    Raises:
        ProtocolError: it is malformed or too large, does not belong into such a record, or its
            signature does not hold there.
    """
    if len(sealed) > max_entry_bytes(place):
        raise ProtocolError(f"an index entry of {len(sealed)} bytes is too large")
    parts = unpack(sealed, "an index entry")
    if not isinstance(parts, list) or [type(each) for each in parts] != [bytes] * 3:
        raise ProtocolError("an index entry is not a key, a body and a signature")
    key_bytes, body, signature = parts
    try:
        public_key = PublicKey.from_bytes(key_bytes)
    except InvalidKeyError as error:
        raise ProtocolError("an index entry names no peer") from error
    if public_key.protobuf != key_bytes or msgpack.packb(parts) != sealed:
        raise ProtocolError("an index entry is not in its shortest form")  # one form, one entry
    if not public_key.verify(signed_bytes(NAMESPACE, place.key, body), signature):
        raise ProtocolError("the signature of an index entry does not hold")
    return _read_body(place, public_key.peer_id, unpack(body, "an index entry"))


def told(throughput: float) -> float:
    """Return what others read where an entry says `throughput`."""
    return _from_step(_step(throughput))


def _seal(key: PrivateKey, place: Place, entry: Entry, addresses: Sequence[Multiaddr]) -> bytes:
    body = msgpack.packb(
        [
            _mask_bytes(entry.served),
            _mask_bytes(entry.withdrawn),
            round(entry.issued * 1000),
            round(entry.lifetime * 1000),
            min(entry.load, MAX_LOAD),
            _step(entry.throughput),
            [address.to_bytes() for address in addresses],
            entry.token,
        ]
    )
    signature = key.sign(signed_bytes(NAMESPACE, place.key, body))
    sealed: bytes = msgpack.packb([key.public_key.protobuf, body, signature])
    return sealed


def _read_body(place: Place, peer_id: PeerId, fields: Any) -> Entry:
    kinds = [bytes, bytes, int, int, int, int, list, bytes]
    if not isinstance(fields, list) or [type(each) for each in fields] != kinds:
        raise ProtocolError("an index entry does not have the fields it should")
    served, withdrawn, issued, lifetime, load, throughput, addresses, token = fields
    if not (
        0 <= issued < _MAX_MILLISECONDS
        and 0 < lifetime <= MAX_LIFETIME * 1000
        and 0 <= load <= MAX_LOAD
        and 0 <= throughput <= MAX_THROUGHPUT_STEP
    ):
        raise ProtocolError("a field of an index entry is out of range")
    if len(addresses) > MAX_ADDRESSES or not all(isinstance(each, bytes) for each in addresses):
        raise ProtocolError("an index entry's addresses are malformed")
    readable = (read_peer_address(each, peer_id) for each in addresses)
    entry = Entry(
        peer_id=peer_id,
        served=_read_mask(served),
        withdrawn=_read_mask(withdrawn),
        issued=issued / 1000,
        lifetime=lifetime / 1000,
        load=load,
        throughput=_from_step(throughput),
        addresses=tuple(address for address in readable if address is not None),
        token=token,
    )
    if entry.served & entry.withdrawn or not entry.served | entry.withdrawn:
        raise ProtocolError("an index entry contradicts itself, or says nothing")
    if place.kind is Kind.BRANCHES and (withdrawn or addresses or load or throughput):
        raise ProtocolError("an index entry of a branch says more than that it is alive")
    return entry


def _step(throughput: float) -> int:
    return min(round(_STEPS_PER_OCTAVE * math.log2(1 + 1000 * throughput)), MAX_THROUGHPUT_STEP)


def _from_step(step: int) -> float:
    return (math.exp2(step / _STEPS_PER_OCTAVE) - 1) / 1000


def _mask_bytes(coordinates: int) -> bytes:
    return coordinates.to_bytes((coordinates.bit_length() + 7) // 8, "little")


def _read_mask(data: bytes) -> int:
    if len(data) > _MAX_MASK_BYTES or data[-1:] == b"\0":
        raise ProtocolError("an index entry's coordinates are malformed")
    return int.from_bytes(data, "little")
