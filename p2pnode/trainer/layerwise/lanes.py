"""Who of each swarm works together in a round: pure.

A participant could ask another host for every micro-batch. But hosts of one layer drift apart
until the round's end, and a network whose layers have learnt side by side scores better than one
that is put together from strangers. So each participant keeps to one host of each other layer, its
*lane*: both swarms are sorted by peer id, and the place in one's own leads to the same place in the
other. Everybody computes this alone, and the lanes share out all hosts evenly, whatever the sizes
of the swarms. A host that fails is replaced for the call by whichever is the fastest.
"""

from collections.abc import Collection

from p2pnode.wire.peer_id import PeerId


def partner(own: PeerId, swarm: Collection[PeerId], others: Collection[PeerId]) -> PeerId | None:
    """Return whom a participant works with in another layer's swarm.

    Args:
        own: the participant.
        swarm: the hosts of its own layer, with or without itself.
        others: the hosts of the other layer.

    Returns:
        One of `others`, or None when there are none.
    """
    if not others:
        return None
    mates, hosts = sorted({*swarm, own}), sorted(others)
    return hosts[mates.index(own) * len(hosts) // len(mates)]
