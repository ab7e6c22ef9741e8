"""Who reduces what together: pure.

A group says everything about a round that its members must agree on. Its `digest` goes with every
message, so that members whose groups or tensors differ refuse each other before any memory is
allocated.
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

MAX_MEMBERS: Final = 64  # of a group; a set of them is a number of as many bits
MAX_ROUND_ID_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Sum:
    """The contributions are multiplied by their weights and added up."""

    @property
    def name(self) -> str:
        """What stands for it, with its parameters, in a group's digest."""
        return "sum"


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of the contributions, by their weights."""

    @property
    def name(self) -> str:
        """What stands for it, with its parameters, in a group's digest."""
        return "mean"


Aggregator = Sum | Mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One peer of a group.

    Attributes:
        peer_id: who it is.
        bandwidth: how fast it sends and receives, in any unit that the group shares. Parts are
            shared out by it. Who has 0 reduces nothing, and nobody dials it: so for members behind
            relays or in client mode.
    """

    peer_id: PeerId
    bandwidth: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A round of reducing: the same value, to the last bit, at each of its members.

    Attributes:
        run_id: the run whose members they are.
        round_id: names the round among all of the run; 1 to 64 bytes, never used twice.
        members: in an order that all of them have.
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

    def rank(self, peer_id: PeerId) -> int | None:
        """Return a peer's place among the members, if it is one."""
        for rank, member in enumerate(self.members):
            if member.peer_id == peer_id:
                return rank
        return None

    def digest(self, tensors: Sequence[TensorMeta]) -> bytes:
        """Return 32 bytes that stand for the group and the tensors that it reduces."""
        packed: bytes = msgpack.packb(
            [
                self.run_id,
                self.round_id,
                [[bytes(each.peer_id), float(each.bandwidth)] for each in self.members],
                self.codec,
                self.aggregator.name,
                [[each.dtype, each.shape] for each in tensors],
            ]
        )
        return hashlib.sha256(packed).digest()
