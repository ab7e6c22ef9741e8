"""Who reduces what together: pure.

What all members of a group must agree on has a `digest`, which goes with every message: so those
whose tensors or ways differ refuse each other before any memory is allocated. Who the members are
they need not know alike: see `core`.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgpack

from p2pnode.config.experts import Codec
from p2pnode.errors import ConfigError
from p2pnode.rpc.schema import TensorMeta
from p2pnode.wire.peer_id import PeerId

MAX_MEMBERS: Final = 64  # of a group: each of them has a stream to each that reduces
MAX_ROUND_ID_BYTES: Final = 64
_TRAINING_BYTES: Final = 8
MAX_ITERATIONS: Final = 100  # of centred clipping; it has settled long before


@dataclass(frozen=True, slots=True)
class Sum:
    """The contributions are multiplied by their weights and added up."""

    @property
    def name(self) -> str:
        """What stands for it, with its parameters, in a round's digest."""
        return "sum"


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of the contributions, by their weights."""

    @property
    def name(self) -> str:
        """What stands for it, with its parameters, in a round's digest."""
        return "mean"


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """Of each element, the mean of the contributions without the largest and smallest ones.

    Each result lies between contributions of honest members, as long as at each end more are left
    out than members lie. Weights do not count, for a liar would claim a large one. Source: Yin et
    al. 2018 (Byzantine-robust distributed learning), definition 2.

    Attributes:
        share: of the contributions that is left out at each end, rounded up to whole ones; below
            one half.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        """Raise `ConfigError` if nothing would be left."""
        if not 0 <= self.share < 0.5:
            raise ConfigError("a trimmed mean leaves out a share of 0 to less than 0.5 at each end")

    @property
    def name(self) -> str:
        """What stands for it, with its parameters, in a round's digest."""
        return f"trimmed-mean {self.share!r}"

    def left_out(self, count: int) -> int:
        """Return how many of `count` contributions are left out at each end: not all of them."""
        return min(math.ceil(self.share * count), (count - 1) // 2)


@dataclass(frozen=True, slots=True)
class CenteredClipping:
    """The mean of the contributions, each brought within a radius of an estimate of it.

    However far a liar goes, it moves the result by at most radius / members in each iteration.
    Weights do not count. Source: Karimireddy et al. 2021 (Learning from history for Byzantine
    robust optimization), algorithm 1. They begin at the last round's result; here it is the
    median of each element, which takes no memory between rounds. Each member clips the part that
    it reduces, within a radius in proportion to the square root of the part's share of all
    elements, as Gorbunov et al. 2021 (Secure distributed training at scale) do.

    Attributes:
        radius: of all elements together, as a Euclidean distance; 0 takes for each part and
            iteration the median of the contributions' distances from the estimate.
        iterations: how often the estimate is made better.
    """

    radius: float = 0.0
    iterations: int = 3

    def __post_init__(self) -> None:
        """Raise `ConfigError` if a parameter is none."""
        if not 0 <= self.radius < math.inf or not 1 <= self.iterations <= MAX_ITERATIONS:
            raise ConfigError(
                f"centred clipping needs a finite radius of at least 0, and 1 to {MAX_ITERATIONS}"
                " iterations"
            )

    @property
    def name(self) -> str:
        """What stands for it, with its parameters, in a round's digest."""
        return f"centered-clipping {self.radius!r} {self.iterations}"


Aggregator = Sum | Mean | TrimmedMean | CenteredClipping


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One peer of a group.

    Attributes:
        peer_id: who it is.
        bandwidth: how fast it sends and receives, in any unit that the group shares. Parts are
            shared out by it. Who has 0 reduces nothing, and nobody dials it: so for members behind
            relays or in client mode.
        training: which of its trainings the round is of, as it has said itself; see
            `Group.id_at`.
    """

    peer_id: PeerId
    bandwidth: float = 1.0
    training: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A round of reducing.

    Attributes:
        run_id: the run whose members they are.
        round_id: names the round among all of the run; 1 to 64 bytes. No member uses it twice in
            one training.
        members: as far as this one knows; the round is of those that all of them know.
        codec: how contributions and results travel.
        aggregator: what becomes of the contributions.
    """

    run_id: str
    round_id: bytes
    members: tuple[Member, ...]
    codec: Codec = "none"
    aggregator: Aggregator = field(default_factory=Mean)

    def __post_init__(self) -> None:
        """Check what the members must have checked before they meet.

        Raises:
            ConfigError: there are too many members, one is there twice, or has no bandwidth that
                is a number; or nobody reduces; or the round's id is too long.
        """
        peer_ids = [member.peer_id for member in self.members]
        if not 1 <= len(peer_ids) <= MAX_MEMBERS or len(set(peer_ids)) != len(peer_ids):
            raise ConfigError(f"a group has 1 to {MAX_MEMBERS} members, each of them once")
        bandwidths = [member.bandwidth for member in self.members]
        if not all(0 <= each < math.inf for each in bandwidths) or not any(bandwidths):
            raise ConfigError(
                "bandwidths in a group are finite and at least 0, and one of them is more: else"
                " nobody could reduce anything"
            )
        if not 1 <= len(self.round_id) <= MAX_ROUND_ID_BYTES:
            raise ConfigError(f"a round's id has 1 to {MAX_ROUND_ID_BYTES} bytes")

    def id_at(self, peer_id: PeerId) -> bytes:
        """Return how a member names this round.

        Rounds are counted from 1 in each training. A member that trains again therefore names
        them anew, by a number that it has announced; so nothing of an earlier training is taken
        for a part of this one, and nobody has to agree with anybody on a number.
        """
        (training,) = (each.training for each in self.members if each.peer_id == peer_id)
        if not training:
            return self.round_id
        return hashlib.sha256(self.round_id + training.to_bytes(_TRAINING_BYTES, "big")).digest()

    def digest(self, tensors: Sequence[TensorMeta]) -> bytes:
        """Return 32 bytes that stand for the round and the tensors that it reduces."""
        packed: bytes = msgpack.packb(
            [
                self.run_id,
                self.round_id,
                self.codec,
                self.aggregator.name,
                [[each.dtype, each.shape] for each in tensors],
            ]
        )
        return hashlib.sha256(packed).digest()
