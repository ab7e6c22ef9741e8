"""The cheapest way through a stack of blocks: which peer computes which of them. Pure.

A *hop* is one call of one peer, which runs consecutive blocks that it hosts; a *route* is the hops
of a whole chain. A hop costs the way there and back once, and each block its computation:

    cost of a route = sum over its hops of ( entry of the peer + blocks of the hop · block of it )

This is the shortest path over the states (block, peer). From the state behind block b the next
block is computed by the same peer, without a new entry, or by any other one that hosts it. Costs
are never negative and every edge leads to the next block, so one sweep over the blocks settles
all states in the order in which Dijkstra's algorithm would; and since an entry costs the same
from wherever one comes, only the cheapest state of each block can be left for another peer. That
makes O(blocks · peers) in all. Source: Borzunov et al. 2023, "Distributed Inference and
Fine-tuning of Large Language Models Over The Internet" (Petals), section 3.2, which routes by
measured latency and announced throughput in the same graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a call of one peer is expected to cost, in seconds.

    Attributes:
        entry: for each hop: the round trip, and what stands for using a relay.
        block: for each block: its computation, with the wait that the peer's load lets expect.
        joins: whether one call may run several blocks; otherwise each block is a hop of its own.
    """

    entry: float
    block: float
    joins: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One call: the blocks from `start` up to, but not including, `stop`, on one peer."""

    start: int
    stop: int
    peer_id: PeerId

    @property
    def span(self) -> int:
        """How many blocks it runs."""
        return self.stop - self.start


Route = tuple[Hop, ...]


@dataclass(frozen=True, slots=True)
class _State:
    """The cheapest known way to have computed the blocks so far, the last of them on one peer."""

    cost: float
    hops: int
    hop_start: int  # where the hop that the last block belongs to begins
    before: "_State | None"  # the state that the hop begins from
    peer_id: PeerId


def cheapest_route(
    hosted: Sequence[Sequence[PeerId]], offers: Mapping[PeerId, Offer], start: int = 0
) -> Route:
    """Find the cheapest route through all blocks.

    Args:
        hosted: for each block the peers that host it. Of routes that cost the same, one with few
            hops is taken, and peers in front.
        offers: what each of those peers costs.
        start: the number of the first block.

    Raises:
        ValueError: there is no block, or a block that nobody hosts.
    """
    if not hosted or not all(hosted):
        raise ValueError("a route leads through one block or more, and each has a host")
    best: _State | None = None  # of the states behind the block before
    states: dict[PeerId, _State] = {}
    for block, peers in enumerate(hosted, start):
        reached: dict[PeerId, _State] = {}
        for peer_id in peers:
            offer = offers[peer_id]
            cost, hops = (best.cost, best.hops) if best else (0.0, 0)
            cost += offer.entry + offer.block
            reached[peer_id] = _State(cost, hops + 1, block, best, peer_id)
            stayed = states.get(peer_id)
            if stayed is not None and offer.joins:
                cost = stayed.cost + offer.block
                on = _State(cost, stayed.hops, stayed.hop_start, stayed.before, peer_id)
                reached[peer_id] = min(on, reached[peer_id], key=_rank)
        states = reached
        best = min(states.values(), key=_rank)
    assert best is not None
    return _unwind(best, start + len(hosted))


def cost_of(route: Route, offers: Mapping[PeerId, Offer]) -> float:
    """Return what a route is expected to cost, in seconds."""
    return sum(offers[hop.peer_id].entry + offers[hop.peer_id].block * hop.span for hop in route)


def joined(peers: Sequence[PeerId], offers: Mapping[PeerId, Offer], start: int = 0) -> Route:
    """Return the route of which block `start + i` is computed by `peers[i]`, in fewest hops."""
    hops: list[Hop] = []
    for number, peer_id in enumerate(peers, start):
        begin = number
        if hops and hops[-1].peer_id == peer_id and offers[peer_id].joins:
            begin = hops.pop().start
        hops.append(Hop(start=begin, stop=number + 1, peer_id=peer_id))
    return tuple(hops)


def settle(
    found: Route,
    current: Sequence[PeerId | None],
    hosted: Sequence[Sequence[PeerId]],
    offers: Mapping[PeerId, Offer],
    gain: float,
) -> Route:
    """Keep to the hosts in use as long as the route found is not worth the change.

    A block's hosts may differ a little in their weights, so that going to and fro between them
    because of noise in what was measured would cost more than it gains.

    Args:
        found: the cheapest route.
        current: for each of its blocks the peer in use, or None.
        hosted: for each of its blocks the peers that host it.
        offers: what each of those peers costs.
        gain: the part of the current hosts' cost that a change must save.
    """
    used = [
        peer_id
        for peer_id, peers in zip(current, hosted, strict=True)
        if peer_id is not None and peer_id in peers
    ]
    if len(used) < len(hosted):
        return found
    kept = joined(used, offers, found[0].start)
    worth = cost_of(found, offers) < (1 - gain) * cost_of(kept, offers)
    return found if worth else kept


def _rank(state: _State) -> tuple[float, int]:
    return state.cost, state.hops


def _unwind(last: _State, stop: int) -> Route:
    hops: list[Hop] = []
    state: _State | None = last
    while state is not None:
        hops.append(Hop(start=state.hop_start, stop=stop, peer_id=state.peer_id))
        stop = state.hop_start
        state = state.before
    return tuple(reversed(hops))
