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
    hop_start: int  # where the hop that the last block belongs to begins
    before: "_State | None"  # the state that the hop begins from
    peer_id: PeerId


def cheapest_route(
    hosted: Sequence[Sequence[PeerId]], offers: Mapping[PeerId, Offer], start: int = 0
) -> Route:
    """Find the cheapest route through all blocks.

    Args:
        hosted: for each block the peers that host it. Of routes that cost the same, the one with
            the peers in front is taken.
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
            entered = _State(
                (best.cost if best else 0.0) + offer.entry + offer.block, block, best, peer_id
            )
            stayed = states.get(peer_id)
            if stayed is not None and offer.joins:
                cost = stayed.cost + offer.block
                if cost <= entered.cost:
                    entered = _State(cost, stayed.hop_start, stayed.before, peer_id)
            reached[peer_id] = entered
        states = reached
        best = min(states.values(), key=_cost)
    assert best is not None
    return _unwind(best, start + len(hosted))


def cost_of(route: Route, offers: Mapping[PeerId, Offer]) -> float:
    """Return what a route is expected to cost, in seconds.

    A hop that runs several blocks on a peer that takes them one by one costs as many entries.
    """
    return sum(
        offers[hop.peer_id].entry * (1 if offers[hop.peer_id].joins else hop.span)
        + offers[hop.peer_id].block * hop.span
        for hop in route
    )


def settle(
    found: Route,
    current: Route,
    hosted: Sequence[Sequence[PeerId]],
    offers: Mapping[PeerId, Offer],
    gain: float,
) -> Route:
    """Keep to the current route as long as the one found is not worth the change.

    A block's hosts may differ a little in their weights, so that going to and fro between them
    because of noise in what was measured would cost more than it gains.

    Args:
        found: the cheapest route.
        current: the one in use, through the same blocks; empty when there is none.
        hosted: for each block of `found` the peers that host it.
        offers: what each of those peers costs.
        gain: the part of the current route's cost that a change must save.
    """
    if not current:
        return found
    start = found[0].start
    for hop in current:
        if any(hop.peer_id not in hosted[block - start] for block in range(hop.start, hop.stop)):
            return found
        if hop.span > 1 and not offers[hop.peer_id].joins:
            return found
    worth = cost_of(found, offers) < (1 - gain) * cost_of(current, offers)
    return found if worth else current


def part_of(route: Route, start: int, stop: int) -> Route:
    """Return the part of a route between two blocks; a hop across the edge is cut there."""
    return tuple(
        Hop(start=max(hop.start, start), stop=min(hop.stop, stop), peer_id=hop.peer_id)
        for hop in route
        if hop.start < stop and hop.stop > start
    )


def _cost(state: _State) -> float:
    return state.cost


def _unwind(last: _State, stop: int) -> Route:
    hops: list[Hop] = []
    state: _State | None = last
    while state is not None:
        hops.append(Hop(start=state.hop_start, stop=stop, peer_id=state.peer_id))
        stop = state.hop_start
        state = state.before
    return tuple(reversed(hops))
