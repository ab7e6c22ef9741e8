"""The index of live experts: signed entries under each prefix, merged wherever they meet.

The DHT key `/p2pnode-index/<run id>/<prefix>` holds a msgpack list of entries. One entry is an
envelope signed by a hosting peer. Its payload is the msgpack list

    [1, run id, prefix, ranges, peer id, addresses, expiry, seq, load, token]

with the coordinates that follow the prefix as `[first, count, first, count, …]`, binary multiaddrs,
the wall-clock expiry in milliseconds, a sequence number that rises with each announcement, the
calls queued at the host, and its proof of membership (empty in an open run). An entry without
coordinates withdraws the peer.

Merging keeps, of each peer, the entry with the highest sequence number, drops what has expired,
and keeps at most `MAX_ENTRIES` peers: those whose hash with the key is smallest. Which peers these
are does not depend on the order or grouping of merges, and differs from prefix to prefix, so that
no host is left out everywhere.

In a closed run every entry must prove membership, and ends with it. The run's id is the owner's
public key, so any DHT server can check that without knowing the run.
"""

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from multiaddr import Multiaddr

from p2pnode.errors import InvalidKeyError, InvalidUidError, P2PNodeError, ProtocolError
from p2pnode.protocols.kad.messages import read_peer_address
from p2pnode.protocols.kad.validators import Validator
from p2pnode.wire.envelope import open_envelope, seal
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import MAX_COORDINATE, check_prefix, check_run

NAMESPACE: Final = "p2pnode-index"
OPEN_RUN: Final = "open:"  # how the id of a run without members starts
MAX_ENTRIES: Final = 128  # peers under one prefix; with the next bound, 384 KiB at the worst
MAX_ENTRY_BYTES: Final = 3072  # of an envelope; about 300 in an open run, 1200 in a closed one
MAX_RANGES: Final = 256
MAX_COORDINATES: Final = 4096  # of one peer under one prefix, as `hosting.max_experts`
MAX_ADDRESSES: Final = 8
MAX_LIFETIME: Final = 3600.0  # seconds; a host that dies must not be listed for ever
MAX_SKEW: Final = 3.0  # seconds by which another machine's clock may be ahead
MAX_LOAD: Final = 2**31 - 1
_VERSION: Final = 1
_PAYLOAD_TYPE: Final = b"/p2pnode/index/1"
_MAX_OPENED: Final = 8192  # verified entries remembered: an entry is met many times
_MAX_OPENED_COORDINATES: Final = 2**20  # of all these; 200 bytes of an entry may stand for 4096
_MAX_PROOFS: Final = 4096

VerifyMembership = Callable[[bytes, str, PeerId, float], float]
"""Takes (token, run id, peer, now); returns when the token expires, or raises P2PNodeError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """What one peer hosts under one prefix; `expiry` is on the wall clock, in seconds."""

    run_id: str
    prefix: str
    coordinates: tuple[int, ...]  # rising
    peer_id: PeerId
    addresses: tuple[Multiaddr, ...]
    expiry: float
    seq: int
    load: int = 0
    token: bytes = b""


def index_key(run_id: str, prefix: str) -> bytes:
    """Return the DHT key that lists who hosts experts under `prefix`."""
    return f"/{NAMESPACE}/{run_id}/{prefix}".encode()


def seal_entry(key: PrivateKey, entry: IndexEntry) -> bytes:
    """Sign an entry.

    Raises:
        InvalidUidError: its coordinates are too many, or too scattered, for one entry.
    """
    payload = [
        _VERSION,
        entry.run_id,
        entry.prefix,
        to_ranges(entry.coordinates),
        bytes(entry.peer_id),
        [address.to_bytes() for address in entry.addresses[:MAX_ADDRESSES]],
        int(entry.expiry * 1000),
        entry.seq,
        min(entry.load, MAX_LOAD),
        entry.token,
    ]
    return seal(key, NAMESPACE, _PAYLOAD_TYPE, msgpack.packb(payload))


def open_entry(envelope: bytes) -> IndexEntry:
    """Read an entry and verify its signature, but not its membership.

    Raises:
        ProtocolError: it is malformed or too large, or was not signed by the peer it speaks of.
    """
    if len(envelope) > MAX_ENTRY_BYTES:
        raise ProtocolError(f"an index entry of {len(envelope)} bytes is too large")
    opened = open_envelope(envelope, NAMESPACE)
    if opened.payload_type != _PAYLOAD_TYPE:
        raise ProtocolError("an index entry is of an unknown type")
    entry = _read_payload(_unpack(opened.payload))
    if opened.public_key.peer_id != entry.peer_id:
        raise ProtocolError("an index entry was not signed by the peer it speaks of")
    return entry


def encode_index(envelopes: Sequence[bytes]) -> bytes:
    """Return the DHT value that holds these entries."""
    packed: bytes = msgpack.packb(list(envelopes))
    return packed


def decode_index(value: bytes) -> list[bytes]:
    """Split a DHT value into its envelopes.

    Raises:
        ProtocolError: it is malformed, or holds more than `MAX_ENTRIES`.
    """
    envelopes = _unpack(value)
    if not isinstance(envelopes, list) or not all(isinstance(each, bytes) for each in envelopes):
        raise ProtocolError("an index value is not a list of entries")
    if len(envelopes) > MAX_ENTRIES:
        raise ProtocolError(f"an index value holds {len(envelopes)} entries, above {MAX_ENTRIES}")
    return envelopes


def to_ranges(coordinates: Iterable[int]) -> list[int]:
    """Write coordinates as `[first, count, first, count, …]`.

    Raises:
        InvalidUidError: they are too many, or too scattered, for one entry.
    """
    ranges: list[int] = []
    total = 0
    for coordinate in sorted(set(coordinates)):
        total += 1
        if ranges and coordinate == ranges[-2] + ranges[-1]:
            ranges[-1] += 1
        else:
            ranges += [coordinate, 1]
    if total > MAX_COORDINATES or len(ranges) > 2 * MAX_RANGES:
        raise InvalidUidError(
            f"a host announces at most {MAX_COORDINATES} coordinates in {MAX_RANGES} ranges under"
            " one prefix; host neighbouring experts"
        )
    return ranges


class IndexValidator(Validator):
    """The rules of the index: who may say what, and how entries merge."""

    def __init__(self, verify: VerifyMembership) -> None:
        self._verify = verify
        self._opened: OrderedDict[bytes, IndexEntry] = OrderedDict()
        self._opened_coordinates = 0
        self._proofs: OrderedDict[tuple[bytes, str, PeerId], float] = OrderedDict()

    def validate(self, key: bytes, value: bytes, now: float) -> None:
        """See `Validator`."""
        _check_key(key)
        for envelope in decode_index(value):
            entry = self._open(envelope)
            if index_key(entry.run_id, entry.prefix) != key:
                raise ProtocolError("an index entry stands under another key than its own")
            if entry.expiry > now + MAX_LIFETIME + MAX_SKEW:
                raise ProtocolError("an index entry expires too far in the future")
            if entry.expiry > now:
                self._check_membership(entry, now)

    def merge(self, key: bytes, values: Sequence[bytes], now: float) -> bytes:
        """See `Validator`."""
        best: dict[PeerId, tuple[int, bytes]] = {}
        for value in values:
            for envelope in decode_index(value):
                entry = self._open(envelope)
                if entry.expiry > now:
                    latest = best.get(entry.peer_id, (-1, b""))
                    best[entry.peer_id] = max(latest, (entry.seq, envelope))
        if not best:
            return b""
        kept = heapq.nsmallest(
            MAX_ENTRIES, best, key=lambda peer: hashlib.sha256(key + peer).digest()
        )
        return encode_index([best[peer][1] for peer in sorted(kept)])

    def expires(self, key: bytes, value: bytes) -> float | None:  # noqa: ARG002  # the value tells
        """See `Validator`: when its last entry does."""
        return max((self._open(each).expiry for each in decode_index(value)), default=0.0)

    def lacks(self, key: bytes, held: bytes | None, best: bytes, now: float) -> bool:  # noqa: ARG002
        """See `Validator`: a missing host or withdrawal counts, a missed refresh does not."""
        known = {entry.peer_id: entry for entry in self.entries(held or encode_index([]), now)}
        for entry in self.entries(best, now):
            ours = known.get(entry.peer_id)
            if (
                entry.coordinates
                if ours is None
                else bool(ours.coordinates) > bool(entry.coordinates)
            ):
                return True
        return False

    def entries(self, value: bytes, now: float) -> list[IndexEntry]:
        """List the entries of a valid value that have not expired, withdrawals included."""
        opened = (self._open(envelope) for envelope in decode_index(value))
        return [entry for entry in opened if entry.expiry > now]

    def _open(self, envelope: bytes) -> IndexEntry:
        entry = self._opened.get(envelope)
        if entry is None:
            entry = self._opened[envelope] = open_entry(envelope)
            self._opened_coordinates += len(entry.coordinates)
            while (
                len(self._opened) > _MAX_OPENED
                or self._opened_coordinates > _MAX_OPENED_COORDINATES
            ):
                _, forgotten = self._opened.popitem(last=False)
                self._opened_coordinates -= len(forgotten.coordinates)
        return entry

    def _check_membership(self, entry: IndexEntry, now: float) -> None:
        if entry.run_id.startswith(OPEN_RUN):
            if entry.token:
                raise ProtocolError("an index entry of an open run carries a token")
            return
        proof = (entry.token, entry.run_id, entry.peer_id)
        until = self._proofs.get(proof)
        if until is None or until <= now:
            try:
                until = self._verify(*proof, now)
            except P2PNodeError as error:
                raise ProtocolError(f"an index entry proves no membership: {error}") from error
            self._proofs[proof] = until
            if len(self._proofs) > _MAX_PROOFS:
                self._proofs.popitem(last=False)
        if entry.expiry > until:
            raise ProtocolError("an index entry outlives its membership")


def _check_key(key: bytes) -> None:
    try:
        _, _, run_id, prefix = key.decode("ascii").split("/")
        check_run(run_id)
        check_prefix(prefix)
    except (ValueError, InvalidUidError) as error:
        raise ProtocolError("an index key is not /p2pnode-index/<run id>/<prefix>") from error


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError("an index value is not msgpack") from error


def _read_payload(fields: Any) -> IndexEntry:
    kinds = (int, str, str, list, bytes, list, int, int, int, bytes)
    if not isinstance(fields, list) or [type(each) for each in fields] != list(kinds):
        raise ProtocolError("an index entry does not have the fields it should")
    version, run_id, prefix, ranges, peer, addresses, expiry, seq, load, token = fields
    if version != _VERSION or not (
        0 <= expiry < 2**53 and 0 <= seq < 2**63 and 0 <= load <= MAX_LOAD
    ):
        raise ProtocolError("a field of an index entry is out of range")
    if len(addresses) > MAX_ADDRESSES or not all(isinstance(each, bytes) for each in addresses):
        raise ProtocolError("an index entry's addresses are malformed")
    try:
        peer_id = PeerId(peer)
    except InvalidKeyError as error:
        raise ProtocolError("an index entry names no peer") from error
    readable = (read_peer_address(each, peer_id) for each in addresses)
    return IndexEntry(
        run_id=run_id,
        prefix=prefix,
        coordinates=_from_ranges(ranges),
        peer_id=peer_id,
        addresses=tuple(address for address in readable if address is not None),
        expiry=expiry / 1000,
        seq=seq,
        load=load,
        token=token,
    )


def _from_ranges(ranges: list[Any]) -> tuple[int, ...]:
    if len(ranges) % 2 or len(ranges) > 2 * MAX_RANGES or {type(each) for each in ranges} - {int}:
        raise ProtocolError("an index entry's ranges are malformed")
    coordinates: list[int] = []
    for first, count in zip(ranges[::2], ranges[1::2], strict=True):
        if not (coordinates or [-2])[-1] + 1 < first or first < 0 or count < 1:
            raise ProtocolError("an index entry's ranges are not in order")
        if first + count - 1 > MAX_COORDINATE or len(coordinates) + count > MAX_COORDINATES:
            raise ProtocolError("an index entry's ranges are too large")
        coordinates.extend(range(first, first + count))
    return tuple(coordinates)
