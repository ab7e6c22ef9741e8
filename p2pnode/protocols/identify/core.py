"""Identify, pure: what nodes tell each other about themselves, as messages and values.

Every field may be missing. What exceeds 2 KiB is split, the signed record behind the rest, as
go-libp2p does; a receiver merges the messages of a stream, later scalars over earlier ones and
lists appended, which is protobuf's own rule. (libp2p/specs, identify.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError
from multiaddr import Multiaddr

from p2pnode.errors import InvalidAddressError, ProtocolError
from p2pnode.wire import varint
from p2pnode.wire.addresses import (
    ip_of,
    is_loopback,
    read_address,
    read_addresses,
    split_p2p,
)
from p2pnode.wire.keys import PublicKey
from p2pnode.wire.pb import identify_pb2
from p2pnode.wire.records import PeerRecord

PROTOCOL: Final = "/ipfs/id/1.0.0"
PUSH_PROTOCOL: Final = "/ipfs/id/push/1.0.0"
PROTOCOL_VERSION: Final = "p2pnode/1.0.0"
SPLIT_ABOVE: Final = 2048
MAX_AGENT: Final = 256  # characters of a name kept for people to read
MAX_PROTOCOLS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """What one node says of itself to another.

    Attributes:
        public_key: its own, or None if it did not say.
        addresses: where it can be dialled, without their `/p2p` part; the signed ones if there
            are any.
        protocols: what it serves.
        observed_address: where it sees the one it talks to, without a `/p2p` part.
        protocol_version: the family of protocols it belongs to.
        agent: its software.
        record: the envelope of its signed peer record, or None.
        seq: the record's sequence number.
    """

    public_key: PublicKey | None = None
    addresses: tuple[Multiaddr, ...] = ()
    protocols: tuple[str, ...] = ()
    observed_address: Multiaddr | None = None
    protocol_version: str = ""
    agent: str = ""
    record: bytes | None = None
    seq: int = 0


def encode(introduction: Introduction) -> bytes:
    """Return the messages of one stream, each behind its length."""
    message = identify_pb2.Identify(
        listenAddrs=[address.to_bytes() for address in introduction.addresses],
        protocols=introduction.protocols,
        protocolVersion=introduction.protocol_version,
        agentVersion=introduction.agent,
    )
    if introduction.public_key is not None:
        message.publicKey = introduction.public_key.protobuf
    if introduction.observed_address is not None:
        message.observedAddr = introduction.observed_address.to_bytes()
    messages = [message]
    if introduction.record is not None:
        if message.ByteSize() + len(introduction.record) > SPLIT_ABOVE:
            messages.append(identify_pb2.Identify(signedPeerRecord=introduction.record))
        else:
            message.signedPeerRecord = introduction.record
    return b"".join(
        varint.prefixed(each.SerializeToString(deterministic=True)) for each in messages
    )


def decode(
    messages: Sequence[bytes], remote_key: PublicKey, remote_address: Multiaddr, *, limit: int
) -> Introduction:
    """Merge and check the messages of one stream.

    Args:
        messages: without their lengths.
        remote_key: what the secure handshake proved.
        remote_address: where the peer is; what only makes sense nearer to it is left out.
        limit: how many addresses are kept.

    Raises:
        ProtocolError: they are malformed, or speak of another peer than the handshake proved.
    """
    message = identify_pb2.Identify()
    try:
        for data in messages:
            message.MergeFromString(data)
    except DecodeError as error:
        raise ProtocolError("an identify message is malformed") from error
    if message.publicKey and message.publicKey != remote_key.protobuf:
        raise ProtocolError("the identify message holds another key than the handshake proved")
    record = PeerRecord.open(message.signedPeerRecord) if message.signedPeerRecord else None
    if record is not None and record.peer_id != remote_key.peer_id:
        raise ProtocolError("the identify message holds the record of another peer")
    listed = read_addresses(message.listenAddrs, limit=limit)
    addresses = list(record.addresses[:limit]) if record is not None else listed
    return Introduction(
        public_key=remote_key if message.publicKey else None,
        addresses=tuple(_useful(addresses, remote_key, remote_address)),
        protocols=tuple(dict.fromkeys(message.protocols))[:MAX_PROTOCOLS],
        observed_address=_observed(message.observedAddr),
        protocol_version=message.protocolVersion[:MAX_AGENT],
        agent=_printable(message.agentVersion),
        record=message.signedPeerRecord or None,
        seq=record.seq if record is not None else 0,
    )


def _useful(
    addresses: Sequence[Multiaddr], remote_key: PublicKey, remote_address: Multiaddr
) -> list[Multiaddr]:
    """Leave out what cannot be meant for us: of another peer, or nearer than we are.

    A peer that came over the internet can neither be dialled at our own loopback address nor in
    our own private network; trying would only knock at other people's doors.
    """
    ip = ip_of(remote_address)
    found: dict[Multiaddr, None] = {}
    for each in addresses:
        address, peer_id = split_p2p(each)
        if peer_id not in {None, remote_key.peer_id} or not address.to_bytes():
            continue
        if is_loopback(address) and not (ip is None or ip.is_loopback):
            continue
        told = ip_of(address)
        if ip is not None and ip.is_global and told is not None and told.is_private:
            continue
        found[address] = None
    return list(found)


def _observed(data: bytes) -> Multiaddr | None:
    """Read where the peer sees us; js-libp2p puts our id behind it, py-libp2p may send nothing."""
    try:
        return split_p2p(read_address(data))[0] if data else None
    except InvalidAddressError:
        return None


def _printable(text: str) -> str:
    return "".join(each for each in text[:MAX_AGENT] if each.isprintable())
