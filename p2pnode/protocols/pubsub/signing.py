"""Who wrote a message: signing our own, and checking those of others.

Source: libp2p/specs, pubsub, "Message Signing". Two policies are in use. Under *StrictSign* every
message names its author and is signed by it; under *StrictNoSign* no message names or signs
anything, and its id is made of its content. What belongs to the other policy is refused.
"""

import hashlib
from typing import Final

from p2pnode.errors import InvalidKeyError
from p2pnode.protocols.pubsub.messages import Message
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.peer_id import PeerId

PREFIX: Final = b"libp2p-pubsub:"
SEQNO_BYTES: Final = 8


def sign(key: PrivateKey, topic: str, data: bytes, seqno: int) -> Message:
    """Make a signed message; `seqno` must rise from one to the next."""
    author = key.peer_id
    numbered = Message(
        topic=topic, data=data, author=author, seqno=seqno.to_bytes(SEQNO_BYTES, "big")
    )
    return Message(
        topic=topic,
        data=data,
        author=author,
        seqno=numbered.seqno,
        signature=key.sign(PREFIX + numbered.signed_bytes()),
        key=b"" if author.inline_key_bytes is not None else key.public_key.protobuf,
    )


def find_fault(message: Message, *, strict_sign: bool) -> str | None:
    """Say what is wrong with a message's author and signature; None if nothing is."""
    if not strict_sign:
        named = message.author or message.seqno or message.signature or message.key
        return "it is signed, which StrictNoSign forbids" if named else None
    if message.author is None or not message.signature:
        return "it is not signed"
    if len(message.seqno) != SEQNO_BYTES:
        return "its sequence number has a wrong length"
    try:
        key = _key_of(message.author, message.key)
    except InvalidKeyError:
        return "its key is malformed"
    if key.peer_id != message.author:
        return "its key is not its author's"
    if not key.verify(PREFIX + message.signed_bytes(), message.signature):
        return "its signature does not hold"
    return None


def message_id(message: Message) -> bytes:
    """Return the id that everyone gives the message: author and sequence number, or a hash."""
    if message.author is None:
        return hashlib.sha256(message.data).digest()
    return bytes(message.author) + message.seqno


def _key_of(author: PeerId, attached: bytes) -> PublicKey:
    """Return the author's key: the one its id holds counts, as no other can fit."""
    return PublicKey.from_bytes(attached or author.inline_key_bytes or b"")
