"""One signed announcement: what a member of a swarm says of its weights; bytes to values and back.

It travels as a libp2p envelope (RFC 2) whose payload type is the swarm's topic, so it need not
repeat run and layer, and holds in no other swarm. The payload is the msgpack list

    [version, issued, lifetime, leaving, round, steps, score, scored on, data, weights, size,
     codec, mode, final, extra, token]

Times are in milliseconds, `issued` and `version` on the author's wall clock. `version` rises with
what is said; `issued` with each copy, also when nothing has changed. So who has heard of a newer
copy ignores the older one, and one that is kept back is of no use after its lifetime. In a closed
run the token proves that the author may host.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from p2pnode.config.experts import CODECS
from p2pnode.errors import MessageTooLargeError, ProtocolError
from p2pnode.wire.envelope import open_envelope, seal
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.packing import unpack
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

DOMAIN: Final = "p2pnode-swarm"
TOPIC_PREFIX: Final = "/p2pnode/swarm/1/"
DIGEST_BYTES: Final = 32
MAX_EXTRA_BYTES: Final = 256
MAX_MODE_CHARS: Final = 32
MAX_ANNOUNCEMENT_BYTES: Final = 3072  # of RSA keys and a token passed on twice; most have 400
MAX_LIFETIME: Final = 600.0  # seconds; a member that dies must not be listed for ever
_MAX_NUMBER: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a member says of its weights; nobody has checked it.

    Attributes:
        round: in which the weights were made; 0 before the first.
        steps: that the layer's optimiser has taken.
        score: on the member's own hold-out, or None if the mode has no scores.
        scored_on: how many examples that hold-out has.
        data: the SHA-256 of the hold-out; empty if there is none.
        weights: the name of the published state (`swarm/weights`); empty if there is none.
        size: of that state, in bytes.
        codec: in which it is published.
        mode: of the run: `best`, `average`, `diloco`, or empty.
        is_final: whether the member trains no more; it serves these weights on.
        extra: what else the mode has to say, at most `MAX_EXTRA_BYTES`.
    """

    round: int = 0
    steps: int = 0
    score: float | None = None
    scored_on: int = 0
    data: bytes = b""
    weights: bytes = b""
    size: int = 0
    codec: str = "none"
    mode: str = ""
    is_final: bool = False
    extra: bytes = b""


_SAID: Final = tuple(each.name for each in dataclasses.fields(Claim))
_SAID_KINDS: Final = (int, int, float, int, bytes, bytes, int, str, str, bool, bytes)
_KINDS: Final = (int, int, int, bool, *_SAID_KINDS, bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A claim, and who makes it where and when.

    Attributes:
        uid: the layer, its run named by id.
        peer_id: the author, who has signed it.
        claim: what is said.
        version: rises with each claim of the author, also over restarts.
        issued: when this copy was signed, on the author's wall clock, in seconds.
        lifetime: in seconds from then.
        is_leaving: whether this is the author's last word.
        token: the author's proof of membership; empty in an open run.
    """

    uid: Uid
    peer_id: PeerId
    claim: Claim
    version: int
    issued: float
    lifetime: float
    is_leaving: bool = False
    token: bytes = b""

    @property
    def expiry(self) -> float:
        """When it ends, on the wall clock."""
        return self.issued + self.lifetime


def topic_of(uid: Uid) -> str:
    """Return the topic of a layer's swarm; the uid names its run by id."""
    return f"{TOPIC_PREFIX}{uid}"


def seal_announcement(key: PrivateKey, announcement: Announcement) -> bytes:
    """Sign an announcement.

    Raises:
        MessageTooLargeError: its token or what the mode has to say is too large.
        ProtocolError: a value is none that others would take.
    """
    fields = [
        announcement.version,
        round(announcement.issued * 1000),
        round(announcement.lifetime * 1000),
        announcement.is_leaving,
        *(getattr(announcement.claim, name) for name in _SAID),
        announcement.token,
    ]
    _read(announcement.uid, announcement.peer_id, fields)
    payload_type = topic_of(announcement.uid).encode()
    sealed = seal(key, DOMAIN, payload_type, msgpack.packb(fields))
    if len(sealed) > MAX_ANNOUNCEMENT_BYTES:
        raise MessageTooLargeError(
            f"an announcement of {len(sealed)} bytes is too large; ask the run's owner for an"
            " invite of your own"
        )
    return sealed


def open_announcement(uid: Uid, data: bytes) -> Announcement:
    """Read an announcement in the swarm of `uid` and verify its signature, not its membership.

    Raises:
        ProtocolError: it is malformed or too large, of another swarm, or its signature does not
            hold.
    """
    if len(data) > MAX_ANNOUNCEMENT_BYTES:
        raise ProtocolError(f"an announcement of {len(data)} bytes is too large")
    opened = open_envelope(data, DOMAIN)
    if opened.payload_type != topic_of(uid).encode():
        raise ProtocolError("an announcement is of another swarm")
    return _read(uid, opened.public_key.peer_id, unpack(opened.payload, "an announcement"))


def _read(uid: Uid, peer_id: PeerId, fields: Any) -> Announcement:
    if not isinstance(fields, list) or len(fields) != len(_KINDS):
        raise ProtocolError("an announcement does not have the fields it should")
    for value, kind in zip(fields, _KINDS, strict=True):
        if type(value) is not kind and not (kind is float and value is None):
            raise ProtocolError("an announcement does not have the fields it should")
        if type(value) is int and not 0 <= value <= _MAX_NUMBER:
            raise ProtocolError("a number in an announcement is out of range")
    version, issued, lifetime, is_leaving, *said, token = fields
    if not 0 < lifetime <= MAX_LIFETIME * 1000:
        raise ProtocolError("the lifetime of an announcement is out of range")
    claim = Claim(**dict(zip(_SAID, said, strict=True)))
    _check(claim)
    return Announcement(
        uid=uid,
        peer_id=peer_id,
        claim=claim,
        version=version,
        issued=issued / 1000,
        lifetime=lifetime / 1000,
        is_leaving=is_leaving,
        token=token,
    )


def _check(claim: Claim) -> None:
    if claim.score is not None and not math.isfinite(claim.score):
        raise ProtocolError("a score in an announcement is no number")
    if not {len(claim.data), len(claim.weights)} <= {0, DIGEST_BYTES}:
        raise ProtocolError(f"a digest in an announcement must have {DIGEST_BYTES} bytes")
    if claim.codec not in CODECS:
        raise ProtocolError("an announcement names a codec that is none")
    if len(claim.mode) > MAX_MODE_CHARS or not (claim.mode.isascii() and claim.mode.isprintable()):
        raise ProtocolError("an announcement names a mode that is none")
    if len(claim.extra) > MAX_EXTRA_BYTES:
        raise ProtocolError(f"an announcement has more than {MAX_EXTRA_BYTES} bytes of its mode")
