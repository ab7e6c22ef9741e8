"""What a peer may do in a run: biscuit tokens, from the owner's invite to the host's check.

A run (one training effort) is owned by an Ed25519 key pair, and its id is the base58 text of the
public key, so anyone who knows the id can verify its tokens without asking anybody.

1. The owner signs an *invite*: name, scopes and expiry in the first block of a biscuit.
2. Whoever accepts it appends a second block, `check if peer("12D3…")`, before the token ever
   leaves the machine. Noise proves peer ids, so a token seen by others is of no use to them.
3. A host verifies signature, expiry, operation and peer against the run's id alone.

Of the biscuit language, tokens use a few plain facts and checks; one that holds anything else is
refused before it is evaluated. A single check that joins facts can keep the library, and with it
the whole node, busy for hours, since it looks at its clock only between two steps; and anyone can
sign such a token with a run of his own.

An *open* run has the id `open:<name>`, no key and no tokens: anyone may train and host in it.

Source: biscuit specification 3.3 (github.com/eclipse-biscuit/biscuit). This is the one module
that knows the library behind it.
"""

import base64
import binascii
import datetime as dt
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import base58
import biscuit_auth

from p2pnode.errors import (
    InvalidKeyError,
    InvalidTokenError,
    InvalidUidError,
    NotAMemberError,
    PermissionDeniedError,
    TokenExpiredError,
    WrongRunError,
)
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import check_run

Operation = Literal["host", "train"]
SCOPES: Final[tuple[Operation, ...]] = ("host", "train")
MAX_TOKEN_BYTES: Final = 4096  # an accepted invite has about 560; more is refused before parsing
MAX_TOKEN_BLOCKS: Final = 8  # the owner's, the holder's, and room to delegate further
INVITE_PREFIX: Final = "p2prun1."
OPEN_PREFIX: Final = "open:"

_KEY_BYTES: Final = 32
_MAX_INVITE_CHARS: Final = 8192
_TEXT: Final = r'"[^"\\\n]*"'
_DATE: Final = r"[0-9T:Z+.-]+"
_FACT: Final = rf"(?:run|name|scope|invited)\({_TEXT}\)|expires\({_DATE}\)"
# What a holder may narrow further: who, until when, and what for.
_CHECK: Final = (
    rf"check if (?:peer\({_TEXT}\)|operation\({_TEXT}\)|time\((\$\w+)\), \1 <=? {_DATE}"
    r"|operation\(\$o\), scope\(\$o\))"
)
_OWNERS_BLOCK: Final = re.compile(rf"(?:(?:{_FACT}|{_CHECK});\n)*", re.ASCII)
_HOLDERS_BLOCK: Final = re.compile(rf"(?:{_CHECK};\n)*", re.ASCII)
_MAX_LINES: Final = 16  # of one block; the owner's has up to nine
# The library's default of 1 ms for a whole evaluation is missed by an honest token whenever the
# machine is busy.
_MAX_EVALUATION: Final = dt.timedelta(milliseconds=200)
_FACTS: Final = "run({run}); name({name}); expires({expires});"
_CHECKS: Final = "check if time($t), $t < {expires}; check if operation($o), scope($o);"
_REQUEST: Final = "time({now}); operation({operation}); peer({peer}); allow if true;"
_untyped: Any = biscuit_auth  # its stubs know neither the key algorithms nor the limits
_BROKEN: Final = (
    biscuit_auth.BiscuitValidationError,
    biscuit_auth.BiscuitSerializationError,
    biscuit_auth.BiscuitBlockError,
    biscuit_auth.DataLogError,
)


class RunKey:
    """The key pair that owns a run; whoever has it can invite."""

    def __init__(self, pair: biscuit_auth.KeyPair) -> None:
        self._pair = pair
        self.run_id = base58.b58encode(bytes(pair.public_key.to_bytes())).decode("ascii")

    @classmethod
    def generate(cls) -> Self:
        """Make the key of a new run."""
        return cls(biscuit_auth.KeyPair())

    @classmethod
    def from_bytes(cls, seed: bytes) -> Self:
        """Read a key from its 32-byte Ed25519 seed.

        Raises:
            InvalidKeyError: it is no such seed.
        """
        if len(seed) != _KEY_BYTES:
            raise InvalidKeyError(f"a run's key has {_KEY_BYTES} bytes, not {len(seed)}")
        private = _untyped.PrivateKey.from_bytes(seed, _untyped.Algorithm.Ed25519)
        return cls(biscuit_auth.KeyPair.from_private_key(private))

    def to_bytes(self) -> bytes:
        """Return the 32-byte Ed25519 seed."""
        return bytes(self._pair.private_key.to_bytes())

    def sign(self, block: biscuit_auth.BiscuitBuilder) -> bytes:
        """Return the token whose first block is `block`."""
        return bytes(block.build(self._pair.private_key).to_bytes())

    @property
    def signer(self) -> PrivateKey:
        """The same key, for records; what it signs begins with a domain, as no token does."""
        return PrivateKey.from_seed(self.to_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """What an invite says, its signature verified."""

    name: str
    run_id: str
    biscuit: bytes
    scopes: frozenset[str]
    expires_at: float  # seconds since the epoch
    peer: PeerId | None  # the only node that can accept it, if it names one

    def summary(self) -> dict[str, Any]:
        """Return the fields a person wants to see, ready for JSON."""
        return {
            "run": self.name,
            "run_id": self.run_id,
            "scopes": sorted(self.scopes),
            "expires_at": self.expires_at,
            "peer": None if self.peer is None else str(self.peer),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """This node's place in a run: the run's id and the token bound to this node's peer id."""

    name: str
    run_id: str
    token: bytes | None  # None in an open run
    scopes: frozenset[str]
    expires_at: float  # seconds since the epoch; infinite in an open run

    @classmethod
    def accept(cls, invite: str, peer_id: PeerId) -> Self:
        """Bind an invite to `peer_id`; the invite itself must not be sent to anyone after this.

        Raises:
            InvalidTokenError: it is not an invite, or it was made for another node.
        """
        read = read_invite(invite)
        if read.peer is not None and read.peer != peer_id:
            raise InvalidTokenError(
                f"the invite is for the node {read.peer}; ask for one for {peer_id}"
            )
        return cls(
            name=read.name,
            run_id=read.run_id,
            token=attenuate(read.biscuit, read.run_id, peer_id),
            scopes=read.scopes,
            expires_at=read.expires_at,
        )

    @classmethod
    def open(cls, name: str) -> Self:
        """Return the membership that everybody has in the open run `name`."""
        return cls(
            name=name,
            run_id=open_run_id(name),
            token=None,
            scopes=frozenset(SCOPES),
            expires_at=math.inf,
        )

    @property
    def is_open(self) -> bool:
        """Whether the run takes everybody."""
        return is_open(self.run_id)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for JSON, from which `from_json` restores the membership."""
        return {
            "name": self.name,
            "run_id": self.run_id,
            "token": None if self.token is None else _to_text(self.token),
            "scopes": sorted(self.scopes),
            "expires_at": None if math.isinf(self.expires_at) else self.expires_at,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it was not made by `to_json`.
        """
        name, run_id, token = data["name"], check_run(data["run_id"]), data["token"]
        if not isinstance(name, str) or is_open(run_id) != (token is None):
            raise ValueError("a membership needs a name, and a token unless its run is open")
        expires_at = data["expires_at"]
        return cls(
            name=name,
            run_id=run_id,
            token=None if token is None else _from_text(token),
            scopes=frozenset(map(str, data["scopes"])),
            expires_at=math.inf if expires_at is None else float(expires_at),
        )

    def summary(self) -> dict[str, Any]:
        """Return the fields a person wants to see, ready for JSON; never the token."""
        shown = self.to_json()
        del shown["token"], shown["name"]
        return {"run": self.name, "open": self.is_open, **shown}


def owner_key(run_id: str) -> PublicKey:
    """Return the key that the id of a run with members stands for.

    Raises:
        NotAMemberError: the run is open, or this is no run's id.
    """
    try:
        raw = base58.b58decode(run_id)
        if base58.b58encode(raw).decode("ascii") == run_id:  # one key, one id
            return PublicKey.from_ed25519(raw)
    except (ValueError, InvalidKeyError):
        pass
    raise NotAMemberError(f"{run_id[:64]!r} is not the id of a run with members")


def is_open(run_id: str) -> bool:
    """Tell whether the id is of an open run."""
    return run_id.startswith(OPEN_PREFIX)


def open_run_id(name: str) -> str:
    """Return the id of the open run `name`.

    Raises:
        InvalidUidError: it cannot name a run.
    """
    return OPEN_PREFIX + check_run(name)


def issue_invite(
    run_key: RunKey,
    name: str,
    *,
    scopes: Collection[str],
    expires_at: float,
    peer: PeerId | None = None,
) -> str:
    """Sign an invite to the run.

    Args:
        run_key: the key that owns the run.
        name: what people call the run; part of what is signed.
        scopes: some of `host` (serve experts) and `train` (call them).
        expires_at: seconds since the epoch, of which the fraction is cut off.
        peer: the only node that may accept the invite, or None for whoever holds it first.

    Returns:
        A text without spaces to hand to the new member in private.

    Raises:
        InvalidTokenError: a scope or the expiry is not one.
        InvalidUidError: the name cannot name a run.
    """
    if not scopes or set(scopes) - set(SCOPES):
        raise InvalidTokenError(f"an invite's scopes are {' and '.join(SCOPES)}, or one of them")
    try:
        expires = dt.datetime.fromtimestamp(int(expires_at), tz=dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidTokenError(f"{expires_at} is not a time an invite can expire at") from error
    facts = {"run": run_key.run_id, "name": check_run(name), "expires": expires}
    block = biscuit_auth.BiscuitBuilder(_FACTS, facts)
    for scope in sorted(set(scopes)):
        block.add_code("scope({scope})", {"scope": scope})
    block.add_code(_CHECKS, {"expires": expires})
    if peer is not None:
        block.add_code("invited({peer}); check if peer({peer});", {"peer": str(peer)})
    return INVITE_PREFIX + _to_text(base58.b58decode(run_key.run_id) + run_key.sign(block))


def read_invite(text: str) -> Invite:
    """Read an invite and verify that its run signed it; expired ones are read too.

    Raises:
        InvalidTokenError: it is not an invite, or was changed on its way.
    """
    text = text.strip()
    if not text.startswith(INVITE_PREFIX) or len(text) > _MAX_INVITE_CHARS:
        raise InvalidTokenError(
            f"this is not an invite; copy the whole line that starts with {INVITE_PREFIX}"
        )
    try:
        data = _from_text(text.removeprefix(INVITE_PREFIX))
        run_id = base58.b58encode(data[:_KEY_BYTES]).decode("ascii")
        token = biscuit_auth.Biscuit.from_bytes(data[_KEY_BYTES:], _public_key(run_id))
        _blocks_of(token)
        authorizer = _authorizer("allow if true", {}).build(token)
        (name, expires) = _query(authorizer, "name($n), expires($e)", "$n, $e")[0]
        scopes = frozenset(scope for (scope,) in _query(authorizer, "scope($s)", "$s"))
        peers = _query(authorizer, "invited($p)", "$p")
        return Invite(
            name=check_run(name),
            run_id=run_id,
            biscuit=data[_KEY_BYTES:],
            scopes=scopes,
            expires_at=expires.timestamp(),
            peer=PeerId.from_text(peers[0][0]) if peers else None,
        )
    except (*_BROKEN, NotAMemberError, InvalidUidError, InvalidKeyError) as error:
        raise InvalidTokenError(
            "the invite is damaged or was not signed by its run; ask for it again"
        ) from error
    except (binascii.Error, ValueError, IndexError, AttributeError, TypeError) as error:
        raise InvalidTokenError("the invite is cut short or damaged; ask for it again") from error


def attenuate(token: bytes, run_id: str, peer_id: PeerId) -> bytes:
    """Return the token limited to the holder `peer_id`.

    Raises:
        InvalidTokenError: it is not a token of the run.
    """
    try:
        verified = biscuit_auth.Biscuit.from_bytes(token, _public_key(run_id))
        check = biscuit_auth.BlockBuilder("check if peer({peer})", {"peer": str(peer_id)})
        return bytes(verified.append(check).to_bytes())
    except (*_BROKEN, NotAMemberError) as error:
        raise InvalidTokenError("this is not a token of the run; ask for a new invite") from error


def verify_token(
    token: bytes, run_id: str, peer_id: PeerId, operation: Operation, now: float
) -> float:
    """Check that `token` lets `peer_id` do `operation` in the run.

    Further checks that a holder appended (an earlier expiry, one operation only) are honoured;
    they depend on the time too, so a verdict should be kept for a short while only.

    Args:
        token: the biscuit, as sent by the peer.
        run_id: the run in question, not what the token says.
        peer_id: the peer that sent it, as Noise proved.
        operation: what the peer wants to do.
        now: wall-clock seconds since the epoch.

    Returns:
        When the token expires by its first block, in seconds since the epoch.

    Raises:
        TokenExpiredError: it was valid, but is no longer.
        PermissionDeniedError: it is valid for other operations only.
        WrongRunError: it belongs to another run.
        NotAMemberError: it is not a token of this peer, or not a token at all.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise NotAMemberError(f"a token of {len(token)} bytes is not accepted")
    try:
        verified = biscuit_auth.Biscuit.from_bytes(token, _public_key(run_id))
        blocks = _blocks_of(verified)
        facts = {"now": _moment(now), "operation": operation, "peer": str(peer_id)}
        authorizer = _authorizer(_REQUEST, facts).build(verified)
        authorizer.authorize()
        # A token that fits every peer is an invite someone sent as it is: refuse it, so that
        # nobody gets used to sending tokens that a listener could take for himself.
        bound = f'check if peer("{peer_id}");'
        if not any(bound in block.splitlines() for block in blocks):
            raise NotAMemberError("the token is not bound to its holder; accept the invite first")
        (expires,) = _query(authorizer, "expires($e)", "$e")[0]
        return float(expires.timestamp())
    except biscuit_auth.AuthorizationError as error:
        raise _denied(str(error), operation) from error
    except (*_BROKEN, IndexError) as error:
        raise _unverified(token, run_id) from error


def _blocks_of(token: biscuit_auth.Biscuit) -> list[str]:
    """Return the source of each block, if all of them keep to the facts and checks in use.

    Raises:
        NotAMemberError: they do not; evaluating them could take any time.
    """
    count = token.block_count()
    if count > MAX_TOKEN_BLOCKS:
        raise NotAMemberError(f"a token of {count} blocks is not accepted")
    blocks = [token.block_source(number) for number in range(count)]
    for number, source in enumerate(blocks):
        allowed = _HOLDERS_BLOCK if number else _OWNERS_BLOCK
        if source.count("\n") > _MAX_LINES or not allowed.fullmatch(source):
            raise NotAMemberError("the token holds rules that tokens of runs do not have")
    return blocks


def _denied(reason: str, operation: Operation) -> NotAMemberError:
    """Say which of the checks, quoted by the library in `reason`, did not hold."""
    if "check if peer(" in reason:
        return NotAMemberError("the token belongs to another node; ask for your own invite")
    if "check if time(" in reason:
        return TokenExpiredError("the token has expired; ask the run's owner for a new invite")
    if "check if operation(" in reason:
        return PermissionDeniedError(
            f"the token does not allow its holder to {operation}; ask the run's owner for an"
            f" invite with the scope {operation}"
        )
    return NotAMemberError("the token forbids this call")


def _unverified(token: bytes, run_id: str) -> NotAMemberError:
    """Tell a token of another run, taken at its word, from one that is none."""
    try:
        claimed = biscuit_auth.UnverifiedBiscuit.from_base64(_to_text(token)).block_source(0)
    except _BROKEN:
        claimed = ""
    found = re.search(r'\brun\("([^"]+)"\);', claimed)
    if found and found[1] != run_id:
        return WrongRunError(
            f"the token is of the run {found[1][:64]}, but the expert is in {run_id};"
            " use an invite to that run"
        )
    return NotAMemberError("the token is damaged or was not signed by the run's owner")


def _public_key(run_id: str) -> biscuit_auth.PublicKey:
    try:
        raw = base58.b58decode(run_id)
        key: biscuit_auth.PublicKey = _untyped.PublicKey.from_bytes(raw, _untyped.Algorithm.Ed25519)
    except (*_BROKEN, ValueError) as error:
        raise NotAMemberError(f"{run_id[:64]!r} is not the id of a run with members") from error
    return key


def _authorizer(code: str, parameters: Mapping[str, Any]) -> biscuit_auth.AuthorizerBuilder:
    builder: biscuit_auth.AuthorizerBuilder = _untyped.AuthorizerBuilder(code, parameters)
    limits = _untyped.AuthorizerBuilder.limits(builder)
    limits.max_time = _MAX_EVALUATION
    _untyped.AuthorizerBuilder.set_limits(builder, limits)
    return builder


def _query(authorizer: biscuit_auth.Authorizer, body: str, terms: str) -> list[list[Any]]:
    """Return the terms of the owner's facts that match; blocks added later are not looked at."""
    rule = biscuit_auth.Rule(f"found({terms}) <- {body}")
    return [fact.terms for fact in authorizer.query(rule)]


def _moment(now: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(now), tz=dt.UTC)


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _from_text(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
