import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import RpcSettings
from p2pnode.errors import OverloadedError
from p2pnode.rpc.budget import Budget
from p2pnode.wire.keys import PrivateKey

ALICE, BOB, CAROL = (PrivateKey.from_seed(seed * 32).peer_id for seed in (b"a", b"b", b"c"))
SETTINGS = RpcSettings(
    max_bytes_in_flight=150, max_bytes_in_flight_per_peer=100, max_calls_per_peer=2
)


def test_a_peer_is_held_to_its_own_bytes():
    budget = Budget(SETTINGS)
    with budget.call(ALICE) as one, budget.call(ALICE) as two, budget.call(BOB) as other:
        one.add(60)
        with pytest.raises(OverloadedError, match="100 bytes"):
            two.add(41)
        two.add(40)
        other.add(50)
        assert budget.bytes_in_flight == 150


def test_all_peers_together_are_held_to_the_nodes_bytes():
    budget = Budget(SETTINGS)
    with budget.call(ALICE) as one, budget.call(BOB) as two:
        one.add(100)
        with pytest.raises(OverloadedError, match="memory"):
            two.add(51)
        two.add(50)


def test_a_peer_is_held_to_its_number_of_calls():
    budget = Budget(SETTINGS)
    with budget.call(ALICE), budget.call(ALICE), budget.call(BOB):
        with pytest.raises(OverloadedError, match="2 calls"):
            budget.call(ALICE)
        assert budget.calls_in_flight == 3
    with budget.call(ALICE):
        assert budget.calls_in_flight == 1


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB, CAROL]), st.integers(0, 80))))
def test_whatever_fails_nothing_stays_charged(calls):
    budget = Budget(SETTINGS)
    for peer_id, size in calls:
        with contextlib.suppress(OverloadedError), budget.call(peer_id) as charge:
            charge.add(size)
            charge.add(size)
    assert budget.bytes_in_flight == budget.calls_in_flight == 0
    with budget.call(ALICE) as charge:
        charge.add(100)
