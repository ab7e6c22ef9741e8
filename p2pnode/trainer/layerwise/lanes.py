"""Who of each swarm works together in a round: pure.

A participant could ask any host for every micro-batch. But hosts of one layer drift apart until the
round's end, and a network whose layers have learnt side by side scores better than one that is put
together from strangers. So each participant keeps to few hosts of each other layer, its *lane*:
both swarms are sorted by peer id, and the place in one's own leads to the same place in the other.
Where a swarm is larger than one's own, its hosts are shared out, and a participant takes its share
in turn. Everybody computes this alone, and the lanes load all hosts evenly, whatever the sizes of
the swarms. A host that fails is replaced for the call by whichever is the fastest.
"""

from collections.abc import Collection

from p2pnode.wire.peer_id import PeerId


def partners(
    own: PeerId, swarm: Collection[PeerId], others: Collection[PeerId]
) -> tuple[PeerId, ...]:
    """Return whom a participant works with in another layer's swarm, one after the other.

    Args:
        own: the participant.
        swarm: the hosts of its own layer, with or without itself.
        others: the hosts of the other layer.

    Returns:
        Some of `others`; none where there are none.
    """
    mates, hosts = sorted({*swarm, own}), sorted(others)
    place, count = mates.index(own), len(mates)
    if len(hosts) <= count:
        return tuple(hosts[place * len(hosts) // count :][:1])
    return tuple(hosts[place * len(hosts) // count : (place + 1) * len(hosts) // count])
