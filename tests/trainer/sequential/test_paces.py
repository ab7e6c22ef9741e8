"""What calls took becomes what a route is expected to cost."""

import pytest

from p2pnode.trainer.sequential.paces import Paces
from p2pnode.wire.keys import PrivateKey

A, B, C = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(3)]


def offer(paces, peer_id, load=0, surcharge=0.0):
    found = paces.offer(peer_id, load=load, surcharge=surcharge)
    return found.entry, found.block


def test_a_call_is_a_round_trip_and_its_blocks():
    paces = Paces(0.5)
    paces.receive_round_trip(A, 0.1)
    paces.receive_answer(A, 4, 0.5)
    assert offer(paces, A) == pytest.approx((0.1, 0.1))
    paces.receive_answer(A, 1, 0.4)
    assert offer(paces, A) == pytest.approx((0.1, 0.2))


def test_load_and_relays_make_a_peer_dearer():
    paces = Paces(0.5)
    paces.receive_round_trip(A, 0.1)
    paces.receive_answer(A, 1, 0.2)
    assert offer(paces, A, load=3, surcharge=1.0) == pytest.approx((1.1, 0.4))


def test_a_new_peer_is_taken_to_be_like_the_others():
    paces = Paces(0.5)
    for peer_id, trip, block in ((A, 0.1, 0.2), (B, 0.3, 0.4)):
        paces.receive_round_trip(peer_id, trip)
        paces.receive_answer(peer_id, 1, trip + block)
    assert offer(paces, C) == pytest.approx((0.2, 0.3))
    assert not paces.has_round_trip(C)
    paces.receive_round_trip(C, 0.05)
    assert paces.has_round_trip(C)
    assert offer(paces, C) == pytest.approx((0.05, 0.3))


def test_a_call_faster_than_the_round_trip_computes_in_no_time():
    paces = Paces(0.5)
    paces.receive_round_trip(A, 0.1)
    paces.receive_answer(A, 1, 0.05)
    assert offer(paces, A) == (0.1, 0.0)
