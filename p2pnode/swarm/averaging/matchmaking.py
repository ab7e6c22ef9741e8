"""Who averages with whom in a round: groups that each member works out for itself; pure.

All members of a swarm are cut in groups of a bounded size, by a hash of the round and the peer, so
that nobody asks anybody, and each round mixes them anew. The bits of a hash are a path in a binary
tree. From the first bit on, as long as more members are together than a group may have, those with
a 0 and those with a 1 part, unless one side had a single member: so nobody is left alone.

Members do not all know the same swarm. One member more or less changes the group that it is in, and
rarely others: where it makes one group two, or lets a side have more than one. In each group,
members whose views differ reduce with those that all of them know (`core`): who is known to some
only has no result in this round, and is known to all in a later one.

Members reduce parts in proportion to what they say they send. Nobody checks that, so it may not
matter much: it counts as no more than `MOST` times the lower median of the group, which less than
half of its members cannot raise above what one of the others says. Who claims more than he can do
is given more work, and holds the others up until he is done or lost; who claims less is spared some
of it, like one who cannot be dialled. Who has not measured himself counts like the median.

The same in hivemind (Ryabinin et al. 2021, Moshpit SGD) takes look-ups in the DHT and a leader.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.config.experts import Codec
from p2pnode.errors import ConfigError
from p2pnode.swarm.averaging.group import MAX_MEMBERS, Aggregator, Group, Member
from p2pnode.wire.peer_id import PeerId

MOST: Final = 4.0  # times the median, that a bandwidth counts at most
MIN_SIZE: Final = 3  # of three members, none can part from the others without being left alone
_HASH_BITS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A member of a swarm, as it is known.

    Attributes:
        peer_id: who it is.
        bandwidth: bytes a second that it says it sends; 0 if that is not known.
        training: which of its trainings it is in, as it says; see `Group.id_at`.
        is_reachable: whether others can dial it directly. Who is behind a relay, or only a client,
            reduces nothing: what it contributes and gets goes over connections of its own.
    """

    peer_id: PeerId
    bandwidth: float = 0.0
    training: int = 0
    is_reachable: bool = True


def find_group(
    candidates: Iterable[Candidate],
    own: PeerId,
    *,
    run_id: str,
    name: str,
    number: int,
    size: int,
    codec: Codec,
    aggregator: Aggregator,
) -> Group | None:
    """Return the group in which a member of a swarm averages; None if it would be alone.

    Args:
        candidates: the members, this one among them; who comes twice counts as he comes first.
        own: this member.
        run_id: the swarm's run.
        name: of what is averaged in the run, such as an expert's name.
        number: of the round.
        size: members a group may have, 3 to 64.
        codec: how contributions travel.
        aggregator: what becomes of them.

    Raises:
        ConfigError: groups cannot have this size, or this member is not among the candidates.
    """
    if not MIN_SIZE <= size <= MAX_MEMBERS:
        raise ConfigError(f"groups have up to {MIN_SIZE} to {MAX_MEMBERS} members, not {size}")
    known: dict[PeerId, Candidate] = {}
    for candidate in candidates:
        known.setdefault(candidate.peer_id, candidate)
    if own not in known:
        raise ConfigError("who looks for its group must be among the candidates")
    seed = hashlib.sha256(f"{run_id}/{name}/{number}".encode()).digest()
    paths = {
        peer_id: int.from_bytes(hashlib.sha256(seed + peer_id).digest(), "big")
        for peer_id in sorted(known)
    }
    members = [known[peer_id] for peer_id in _neighbours(paths, own, size)]
    if len(members) < 2 or not any(each.is_reachable for each in members):
        return None
    bandwidths = _believed(members)
    return Group(
        run_id=run_id,
        round_id=seed,
        members=tuple(
            Member(
                peer_id=each.peer_id,
                bandwidth=bandwidth,
                training=each.training,
            )
            for each, bandwidth in zip(members, bandwidths, strict=True)
        ),
        codec=codec,
        aggregator=aggregator,
    )


def _believed(members: Sequence[Candidate]) -> list[float]:
    """Return the bandwidths by which parts are shared out; 0 for who reduces nothing."""
    said = sorted(each.bandwidth for each in members if each.is_reachable and each.bandwidth)
    middle = said[(len(said) - 1) // 2] if said else 1.0
    return [
        min(each.bandwidth or middle, MOST * middle) if each.is_reachable else 0.0
        for each in members
    ]


def _neighbours(paths: dict[PeerId, int], own: PeerId, size: int) -> list[PeerId]:
    """Descend from the root to the group of `own`."""
    here = list(paths)
    for bit in reversed(range(_HASH_BITS)):
        if len(here) <= size:
            break
        ours = [each for each in here if not (paths[each] ^ paths[own]) >> bit & 1]
        if 1 < len(ours) < len(here) - 1:
            here = ours
    return here
