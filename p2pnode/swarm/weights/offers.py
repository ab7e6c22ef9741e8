"""The messages of `/p2pnode/handover/1.0.0`: bytes to values and back, pure.

One host gives an expert to another one, on a stream of its own. Each message is a msgpack map
behind its uvarint length; the first one is the greeting of `/p2pnode/weights/1.0.0`.

A host that leaves offers an expert; one that comes back claims it from the replica that stands in:

    giver                                   taker
    {op: "offer", name, steps}         ->
                                       <-   {op: "take"}
    {op: "final", state, steps}        ->
                                            fetches it, goes on from it, serves it, announces it
                                       <-   {op: "taken", steps}

    taker                                   giver
    {op: "claim", name, steps}         ->
                                       <-   {op: "final", state, steps}, or {op: "keep", steps}
    {op: "taken", steps}               ->

`state` names the expert's last version, made when no call of it was under way any more; the giver
lets calls wait from then until it hears `taken`. Who does not want to answers
`{error: [code, sentence]}`, and the other one goes on as before.
"""

from dataclasses import dataclass
from typing import Any
from typing import Final as Constant

from p2pnode.errors import InvalidUidError, P2PNodeError, ProtocolError
from p2pnode.swarm.weights.manifest import HASH_BYTES
from p2pnode.swarm.weights.messages import read_call_error
from p2pnode.wire.packing import framed, pack_error, unpack_map
from p2pnode.wire.uids import MAX_UID_CHARS, Uid

PROTOCOL: Constant = "/p2pnode/handover/1.0.0"
MAX_OFFER_BYTES: Constant = 4 * 1024
_MAX_STEPS: Constant = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Will you take this expert? I leave."""

    uid: Uid
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Do you stand in for this expert? I am back."""

    uid: Uid
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """I take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """I serve it in my own right, and go on."""

    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """Its last version; I take no calls any more."""

    state: bytes
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """I serve it now, and it has so many steps."""

    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """No, and why."""

    error: P2PNodeError


Handover = Offer | Claim | Take | Keep | Final | Taken | Declined


def encode_handover(message: Handover) -> bytes:
    """Return a message behind its length."""
    match message:
        case Offer() | Claim():
            op = "offer" if isinstance(message, Offer) else "claim"
            fields: dict[str, Any] = {"op": op, "name": message.uid.name, "steps": message.steps}
        case Take():
            fields = {"op": "take"}
        case Keep():
            fields = {"op": "keep", "steps": message.steps}
        case Final():
            fields = {"op": "final", "state": message.state, "steps": message.steps}
        case Taken():
            fields = {"op": "taken", "steps": message.steps}
        case Declined():
            fields = {"error": pack_error(message.error)}
    return framed(fields)


def decode_handover(data: bytes, run_id: str) -> Handover:
    """Read a message, without its length.

    Args:
        data: the message.
        run_id: of the stream, as its greeting said.

    Raises:
        ProtocolError: it is malformed.
    """
    fields = unpack_map(data, "a message about a hand-over")
    if "error" in fields:
        return Declined(error=read_call_error(fields["error"]))
    match fields.get("op"):
        case "take":
            return Take()
        case "offer" | "claim" as operation:
            kind = Offer if operation == "offer" else Claim
            return kind(uid=_uid(run_id, fields.get("name")), steps=_steps(fields))
        case "final":
            return Final(state=_state(fields.get("state")), steps=_steps(fields))
        case "keep" | "taken" as operation:
            return (Keep if operation == "keep" else Taken)(steps=_steps(fields))
    raise ProtocolError("a message says nothing known here")


def _state(name: Any) -> bytes:
    if not isinstance(name, bytes) or len(name) != HASH_BYTES:
        raise ProtocolError(f"a state's name has {HASH_BYTES} bytes")
    return name


def _uid(run_id: str, name: Any) -> Uid:
    if not isinstance(name, str) or len(name) > MAX_UID_CHARS:
        raise ProtocolError("an expert's name must be a text")
    try:
        return Uid(run_id, name)
    except InvalidUidError as error:
        raise ProtocolError(str(error)) from error


def _steps(fields: dict[Any, Any]) -> int:
    steps = fields.get("steps")
    if type(steps) is not int or not 0 <= steps <= _MAX_STEPS:
        raise ProtocolError("the number of steps is out of range")
    return steps
