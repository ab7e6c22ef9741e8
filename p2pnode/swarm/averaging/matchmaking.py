"""Who averages with whom in a round: groups that each member works out for itself; pure.

All members of a swarm are cut in groups of a bounded size, by a hash of the round and the peer, so
that nobody asks anybody, and each round mixes them anew. The bits of a hash are a path in a binary
tree. From the first bit on, as long as more members are together than a group may have, those with
a 0 and those with a 1 part, unless one side had a single member: so nobody is left alone.

Members do not all know the same swarm. One member more or less changes the group that it is in, and
rarely others: where it makes one group two, or lets a side have more than one. In each group,
members whose views differ reduce with those that all of them know (`core`): who is known to some
only has no result in this round, and is known to all in a later one.

The same in hivemind (Ryabinin et al. 2021, Moshpit SGD) takes look-ups in the DHT and a leader.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2pnode.config.experts import Codec
from p2pnode.errors import ConfigError
from p2pnode.swarm.averaging.group import MAX_MEMBERS, Aggregator, Group, Member
from p2pnode.wire.peer_id import PeerId

MIN_SIZE: Final = 3  # of three members, none can part from the others without being left alone
_HASH_BITS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A member of a swarm, as it is known.

    Attributes:
        peer_id: who it is.
        bandwidth: how fast it sends and receives, in a unit that all members share.
        is_reachable: whether others can dial it directly. Who is behind a relay, or only a client,
            reduces nothing: what it contributes and gets goes over connections of its own.
    """

    peer_id: PeerId
    bandwidth: float = 1.0
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
    if len(members) < 2 or not any(each.is_reachable and each.bandwidth for each in members):
        return None
    return Group(
        run_id=run_id,
        round_id=seed,
        members=tuple(
            Member(
                peer_id=each.peer_id,
                bandwidth=float(each.bandwidth) if each.is_reachable else 0.0,
            )
            for each in members
        ),
        codec=codec,
        aggregator=aggregator,
    )


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
