import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import NetworkSettings
from p2pnode.host.backoff import DialBackoff
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

A, B = (PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in (1, 2))
ADDRESS = tcp_address("10.0.0.1", 1)
OTHER = tcp_address("10.0.0.1", 2)
SETTINGS = NetworkSettings(dial_backoff=1.0, dial_backoff_max=60.0, dial_backoff_addresses=3)


def table():
    return DialBackoff(SETTINGS, random.Random(0))


def test_pauses_double_up_to_the_longest_and_are_drawn_from_their_upper_half():
    backoff = table()
    now = 0.0
    for longest in [1, 2, 4, 8, 16, 32, 60, 60, 60]:
        backoff.fail(A, ADDRESS, now)
        pause = backoff.remaining(A, ADDRESS, now)
        assert longest / 2 <= pause <= longest
        now += pause
        assert backoff.remaining(A, ADDRESS, now) == 0


def test_a_failure_counts_for_one_peer_at_one_address():
    backoff = table()
    backoff.fail(A, ADDRESS, 0)
    assert backoff.remaining(A, ADDRESS, 0) > 0
    assert backoff.remaining(A, OTHER, 0) == 0
    assert backoff.remaining(B, ADDRESS, 0) == 0


def test_success_clears_it_and_the_next_failure_starts_anew():
    backoff = table()
    for now in range(10):
        backoff.fail(A, ADDRESS, now)
    backoff.succeed(A, ADDRESS)
    assert backoff.remaining(A, ADDRESS, 10) == 0
    backoff.fail(A, ADDRESS, 10)
    assert backoff.remaining(A, ADDRESS, 10) <= 1
    backoff.succeed(B, OTHER)  # of which nothing is known


def test_an_address_that_was_quiet_for_long_starts_anew():
    backoff = table()
    for now in range(10):
        backoff.fail(A, ADDRESS, now)
    backoff.fail(A, ADDRESS, 9 + 60 + 61)
    assert backoff.remaining(A, ADDRESS, 9 + 60 + 61) <= 1


def fail_often(backoff, *, times=10):
    for now in range(times):
        backoff.fail(A, ADDRESS, now)
        backoff.fail(B, OTHER, now)


def test_a_node_that_is_alone_waits_a_few_seconds_at_most():
    backoff = table()
    fail_often(backoff)
    assert backoff.remaining(A, ADDRESS, 9) >= 30
    backoff.be_alone()
    assert 2.5 <= backoff.remaining(A, ADDRESS, 9) <= 5


def test_who_meets_a_peer_after_it_was_alone_may_dial_all_others_again():
    backoff = table()
    backoff.be_alone()
    fail_often(backoff)
    backoff.meet(B)
    assert len(backoff) == 0
    fail_often(backoff)
    assert backoff.remaining(A, ADDRESS, 9) >= 30


def test_who_meets_another_peer_besides_leaves_the_others_alone():
    backoff = table()
    fail_often(backoff)
    backoff.meet(B)
    assert backoff.remaining(A, ADDRESS, 9) >= 30
    assert backoff.remaining(B, OTHER, 9) == 0


def test_in_another_place_all_may_be_dialled_again():
    backoff = table()
    fail_often(backoff)
    backoff.clear()
    backoff.succeed(A, ADDRESS)
    assert backoff.remaining(A, ADDRESS, 9) == backoff.remaining(B, OTHER, 9) == 0


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1e6)), max_size=30))
def test_the_table_is_bounded_and_no_pause_is_too_long(failures):
    backoff = table()
    now = 0.0
    for port, after in failures:
        now += after
        address = tcp_address("10.0.0.1", port)
        backoff.fail(A, address, now)
        assert len(backoff) == sum(map(len, backoff._addresses.values())) <= 3
        assert 0 < backoff.remaining(A, address, now) <= 60


def test_those_who_fail_together_come_back_apart():
    pauses = set()
    for seed in range(10):
        backoff = DialBackoff(SETTINGS, random.Random(seed))
        backoff.fail(A, ADDRESS, 0)
        pauses.add(backoff.remaining(A, ADDRESS, 0))
    assert len(pauses) == 10
    assert max(pauses) == pytest.approx(min(pauses), abs=0.5)
