"""What a run consists of, and how it is trained: one record in the DHT, signed by its owner.

A node that wants to help needs to know what there is to host. The run's owner says it once, and
may say it anew; the record with the highest sequence number counts. It stands under
`/p2pnode-run/<run id>` and is the msgpack list `[body, signature]`, whose body is the msgpack list

    [sequence, kind, patterns, options]

with the kind `layers` (of a pipeline, in the order in which it passes through them) or `experts`,
the uids' patterns without the run (none where the owner does not say), and the settings that all
members are to use: those of the section `hosting` by their names, such as `learning_rate`, those of
the rounds in which swarms train with their section's, such as `rounds.mode`. Units need not be
alike: `wide:hidden_dim` counts for those of the block `wide` alone, and more than `hidden_dim`. The
signature is that of a libp2p envelope (RFC 2) whose payload is the body and whose payload type is
the DHT key. The run's id is the key that made it, so any node can check the record, and any node
may store it again. An open run has no owner, and no description.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import msgpack

from p2pnode.config import HostingSettings, RoundsSettings
from p2pnode.config.checks import check_section
from p2pnode.config.experts import ALL_BLOCKS, layers_by_block
from p2pnode.errors import ConfigError, InvalidUidError, NotAMemberError, ProtocolError
from p2pnode.protocols.kad.validators import Validator
from p2pnode.security.tokens import RunKey, owner_key
from p2pnode.wire.envelope import signed_bytes
from p2pnode.wire.packing import unpack
from p2pnode.wire.uids import Uid, check_run, expand_all

NAMESPACE: Final = "p2pnode-run"
MAX_BYTES: Final = 8192
MAX_PATTERNS: Final = 64
MAX_OPTIONS: Final = 64
MAX_TEXT: Final = 256  # characters of a pattern, and of a text among the options
# What all hosts of a run must agree on. The others are each host's own affair.
SHARED: Final = (
    "layer",
    "hidden_dim",
    "model",
    "dtype",
    "optimizer",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "total_steps",
    "weight_decay",
    "beta1",
    "beta2",
    "momentum",
    "clip_grad_norm",
    "seed",
    "optimizer_policy",
    "weights_codec",
)
# What all participants of a swarm's rounds must agree on.
_ROUNDS: Final = "rounds."
SHARED_ROUNDS: Final = tuple(
    _ROUNDS + name
    for name in (
        "mode",
        "samples",
        "rounds",
        "threshold",
        "patience",
        "min_hold_out",
        "false_alarm",
        "slack",
        "aggregator",
        "group_size",
        "codec",
        "max_loss",
        "outer_rate",
        "outer_momentum",
    )
)
_MAX_NUMBER: Final = 2**53
OF_BLOCK: Final = ":"  # between a block's name, and a setting of its units alone
_OPTION: Final = re.compile(
    r"(?:rounds\.|[A-Za-z_][A-Za-z0-9_-]{0,63}:)?[a-z][a-z0-9_]{0,63}", re.ASCII
)
_OUR_OWN: Final = re.compile(
    r"[A-Za-z0-9_-]*", re.ASCII
)  # names of layers and models, not of files

Option = bool | int | float | str


class Kind(StrEnum):
    """What a run's units are."""

    LAYERS = "layers"
    EXPERTS = "experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDescription:
    """What a run consists of.

    Attributes:
        run_id: which run.
        sequence: rises with every description; the owner's wall clock in ms is a good one.
        kind: what the patterns stand for.
        patterns: of uids without the run, such as `blocks.[0:12]`.
        options: by name, values for the section `hosting` of every host's settings, and with
            their section's name for `rounds`; behind `BLOCK:`, for the units of one block.
    """

    run_id: str
    sequence: int
    kind: Kind
    patterns: tuple[str, ...]
    options: Mapping[str, Option] = field(default_factory=dict)

    def units(self) -> list[Uid]:
        """List the layers, in order, or the experts.

        Raises:
            InvalidUidError: a pattern is none, or they stand for too many.
        """
        units = expand_all(self.patterns, self.run_id)
        if any(uid.run != self.run_id for uid in units):
            raise InvalidUidError("the patterns of a run's description do not name a run")
        if self.kind is Kind.LAYERS and any(len(uid.coordinates) != 1 for uid in units):
            raise InvalidUidError("layers are numbered by one coordinate, as in blocks.[0:12]")
        return units


def agreed(
    settings: HostingSettings, description: RunDescription | None, block: str = ""
) -> HostingSettings:
    """Return a host's settings with those that the run's owner has chosen for all.

    What the owner does not choose, or chooses no more, is the host's own. No name of a module, file
    or directory is taken from the owner: code and weights are chosen by who runs them. A host that
    names such a one itself keeps its own, except where the owner names another one for this block,
    and the host its own one for all.

    Args:
        settings: the host's own.
        description: what the owner says, if anything.
        block: of the units that are to be hosted.

    Raises:
        ConfigError: an option is unknown here, does not fit, or has to be chosen by the host.
    """
    own_layers = layers_by_block(settings.layer)
    settings = replace(settings, layer=own_layers.get(block, own_layers[ALL_BLOCKS]))
    for_all, for_block = _options_for(description, block)
    own_names = {"layer": block in own_layers, "model": False}  # whether for this block alone
    for name, is_of_block in own_names.items():
        own, theirs = getattr(settings, name), for_block.get(name)
        if _OUR_OWN.fullmatch(own):
            continue
        if theirs is None or is_of_block or _last_name(own) == _last_name(str(theirs)):
            for_all.pop(name, None)
            for_block.pop(name, None)
    chosen = for_all | for_block
    for name in own_names:
        value = chosen.get(name, "")
        if not isinstance(value, str) or not _OUR_OWN.fullmatch(value):
            for_it = f"{block}=" if name == "layer" and name in for_block else ""
            raise ConfigError(
                f"the run uses the {name} {value!r}, which is not taken from others; get it,"
                f" and name your own copy with --{name} {for_it}…"
            )
    return replace(settings, **check_section(HostingSettings, "hosting", chosen))


def agreed_rounds(settings: RoundsSettings, description: RunDescription) -> RoundsSettings:
    """Return a participant's settings with those that the run's owner has chosen for all.

    Raises:
        ConfigError: an option is unknown here, or does not fit.
    """
    chosen = {}
    for name, value in description.options.items():
        if name.startswith(_ROUNDS):
            if name not in SHARED_ROUNDS:
                raise _not_taken(name)
            chosen[name.removeprefix(_ROUNDS)] = value
    return replace(settings, **check_section(RoundsSettings, "rounds", chosen))


def _options_for(
    description: RunDescription | None, block: str
) -> tuple[dict[str, Option], dict[str, Option]]:
    """Return what the owner chooses for all units, and for those of one block alone.

    Raises:
        ConfigError: an option is none that hosts take from owners.
    """
    for_all, for_block = dict[str, Option](), dict[str, Option]()
    for option, value in (description.options if description else {}).items():
        if option.startswith(_ROUNDS):
            continue
        of_block, _, name = option.rpartition(OF_BLOCK)
        if name not in SHARED:
            raise _not_taken(f"hosting.{name}")
        if not of_block:
            for_all[name] = value
        elif of_block == block:
            for_block[name] = value
    if "layer" in for_block and "model" not in for_block:
        for_block["model"] = ""  # its units are no blocks of the model that the others are of
    return for_all, for_block


def _last_name(text: str) -> str:
    """Return what module:Class, path/to/file.py:Class and path/to/directory end with."""
    return re.split(r"[:/\\\\]", text)[-1]


def _not_taken(setting: str) -> ConfigError:
    return ConfigError(
        f"the run's owner sets {setting}, which this version of p2pnode does not take from owners;"
        " update p2pnode"
    )


def key_of(run_id: str) -> bytes:
    """Return the DHT key of a run's description."""
    return f"/{NAMESPACE}/{run_id}".encode()


def seal_description(key: RunKey, description: RunDescription) -> bytes:
    """Sign a description.

    Raises:
        ValueError: the key is of another run.
        InvalidUidError: a pattern does not fit.
        ProtocolError: it is too large, or an option is none that can be sent.
    """
    if key.run_id != description.run_id:
        raise ValueError("a run is described by its owner")
    description.units()
    body = msgpack.packb(
        [
            description.sequence,
            str(description.kind),
            list(description.patterns),
            dict(sorted(description.options.items())),
        ]
    )
    signature = key.signer.sign(signed_bytes(NAMESPACE, key_of(key.run_id), body))
    sealed: bytes = msgpack.packb([body, signature])
    open_description(key.run_id, sealed)
    return sealed


def open_description(run_id: str, sealed: bytes) -> RunDescription:
    """Read a description, and verify that the run's owner signed it.

    Raises:
        ProtocolError: it is malformed, or was not.
    """
    if len(sealed) > MAX_BYTES:
        raise ProtocolError(f"a run's description of {len(sealed)} bytes is too large")
    parts = unpack(sealed, "a run's description")
    if not isinstance(parts, list) or [type(each) for each in parts] != [bytes] * 2:
        raise ProtocolError("a run's description is not a body and a signature")
    body, signature = parts
    if msgpack.packb(parts) != sealed:
        raise ProtocolError("a run's description is not in its shortest form")
    try:
        owner = owner_key(run_id)
    except NotAMemberError as error:
        raise ProtocolError("an open run has no owner who could describe it") from error
    if not owner.verify(signed_bytes(NAMESPACE, key_of(run_id), body), signature):
        raise ProtocolError("a run's description was not signed by its owner")
    fields = unpack(body, "a run's description")
    if not isinstance(fields, list) or [type(each) for each in fields] != [int, str, list, dict]:
        raise ProtocolError("a run's description does not have the fields it should")
    sequence, kind, patterns, options = fields
    if not 0 <= sequence < _MAX_NUMBER or kind not in set(Kind):
        raise ProtocolError("a field of a run's description is out of range")
    description = RunDescription(
        run_id=run_id,
        sequence=sequence,
        kind=Kind(kind),
        patterns=_read_patterns(patterns),
        options=_read_options(options),
    )
    try:
        description.units()
    except InvalidUidError as error:
        raise ProtocolError(f"a run's description has units that are none: {error}") from error
    return description


class DescriptionValidator(Validator):
    """The rules of runs' descriptions: the owner's newest one counts."""

    share = 0.1  # anybody can make keys of runs by the million

    def validate(self, key: bytes, value: bytes, now: float) -> None:  # noqa: ARG002  # it lasts
        """See `Validator`."""
        open_description(_run_of(key), value)

    def merge(self, key: bytes, values: Sequence[bytes], now: float) -> bytes:  # noqa: ARG002
        """See `Validator`."""
        run_id = _run_of(key)
        return max(values, key=lambda each: (open_description(run_id, each).sequence, each))

    def expires(self, key: bytes, value: bytes) -> float | None:  # noqa: ARG002  # the DHT decides
        """See `Validator`."""
        return None


def _run_of(key: bytes) -> str:
    try:
        _, _, run_id = key.decode("ascii").split("/")
        return check_run(run_id)
    except (ValueError, InvalidUidError) as error:
        raise ProtocolError(f"a key of a run's description is not /{NAMESPACE}/<run id>") from error


def _read_patterns(patterns: list[Any]) -> tuple[str, ...]:
    if len(patterns) > MAX_PATTERNS or not all(
        isinstance(each, str) and len(each) <= MAX_TEXT for each in patterns
    ):
        raise ProtocolError("the patterns of a run's description are malformed")
    return tuple(patterns)


def _read_options(options: dict[Any, Any]) -> dict[str, Option]:
    if len(options) > MAX_OPTIONS:
        raise ProtocolError(f"a run's description has {len(options)} options, which are too many")
    for name, value in options.items():
        if not isinstance(name, str) or not _OPTION.fullmatch(name):
            raise ProtocolError("an option of a run's description has no name")
        is_text = isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()
        is_number = isinstance(value, int | float) and abs(value) < _MAX_NUMBER
        if not is_text and not is_number:  # NaN is not below anything
            raise ProtocolError(f"the option {name} of a run's description has no plain value")
    return options
