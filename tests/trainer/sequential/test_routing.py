"""Routes through a stack of blocks are the cheapest ones."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.trainer.sequential.routing import Hop, Offer, cheapest_route, cost_of, joined, settle
from p2pnode.wire.keys import PrivateKey

PEERS = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(4)]
A, B, C, D = PEERS

seconds = st.integers(0, 40).map(lambda eighths: eighths / 8)  # sums of these are exact
offers = st.fixed_dictionaries(
    {peer: st.builds(Offer, entry=seconds, block=seconds, joins=st.booleans()) for peer in PEERS}
)
hosted = st.lists(
    st.lists(st.sampled_from(PEERS), min_size=1, max_size=4, unique=True), min_size=1, max_size=5
)


def hop(start, stop, peer_id):
    return Hop(start=start, stop=stop, peer_id=peer_id)


def every_route(hosted, offers, start):
    return [joined(choice, offers, start) for choice in itertools.product(*hosted)]


@given(hosted, offers, st.integers(0, 7))
def test_no_other_route_is_cheaper(hosted, offers, start):
    route = cheapest_route(hosted, offers, start)
    assert cost_of(route, offers) == min(
        cost_of(each, offers) for each in every_route(hosted, offers, start)
    )
    assert [block for each in route for block in range(each.start, each.stop)] == list(
        range(start, start + len(hosted))
    )
    for each in route:
        assert all(each.peer_id in hosted[b - start] for b in range(each.start, each.stop))
        assert offers[each.peer_id].joins or each.span == 1


def test_one_host_of_all_blocks_saves_round_trips():
    costs = {A: Offer(entry=1.0, block=0.2), B: Offer(entry=1.0, block=0.1)}
    hosted = [[A], [A, B], [A]]
    assert cheapest_route(hosted, costs) == (hop(0, 3, A),)


def test_a_peer_that_fails_on_spans_is_asked_block_by_block():
    costs = {A: Offer(entry=1.0, block=0.2, joins=False)}
    assert cheapest_route([[A], [A]], costs, 3) == (hop(3, 4, A), hop(4, 5, A))


def test_of_routes_that_cost_the_same_the_peers_in_front_are_taken():
    costs = dict.fromkeys(PEERS, Offer(entry=1.0, block=1.0))
    assert cheapest_route([[C, A, B]], costs) == (hop(0, 1, C),)


@pytest.mark.parametrize("hosted", [[], [[A], []]])
def test_a_block_that_nobody_hosts_has_no_route(hosted):
    with pytest.raises(ValueError, match="has a host"):
        cheapest_route(hosted, {A: Offer(entry=0.0, block=0.0)})


def test_the_hosts_in_use_stay_until_a_change_is_worth_it():
    hosted = [[A, B], [A, B]]
    found = (hop(3, 5, B),)

    def settled(block, current=(A, A), hosted=hosted, joins=True):
        offers = {
            A: Offer(entry=0.0, block=1.0, joins=joins),
            B: Offer(entry=0.0, block=block),
        }
        return settle(found, current, hosted, offers, 0.2)

    assert settled(0.9) == (hop(3, 5, A),)
    assert settled(0.9, joins=False) == (hop(3, 4, A), hop(4, 5, A))
    assert settled(0.5) == found
    assert settled(0.9, current=(None, A)) == found
    assert settled(0.9, hosted=[[A, B], [B]]) == found  # A has left block 4
    assert settled(0.9, current=(A, C)) == found
