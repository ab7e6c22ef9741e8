import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.experts.shares import Shares
from p2pnode.wire.keys import PrivateKey

ALICE, BOB, CAROL = (PrivateKey.from_seed(seed * 32).peer_id for seed in (b"a", b"b", b"c"))


def shares(budget=10.0, window=100.0):
    return Shares(budget=budget, window=window)


def test_callers_who_wait_from_the_beginning_start_level():
    it = shares()
    it.enter(ALICE)
    it.enter(BOB)
    assert it.time_of(ALICE) == it.time_of(BOB)


def test_a_batch_is_charged_by_what_each_had_of_it():
    it = shares()
    for caller in (ALICE, BOB, CAROL):
        it.enter(caller)
    it.charge({ALICE: 3, BOB: 1}, 4.0, now=0.0)
    assert [it.time_of(caller) for caller in (ALICE, BOB, CAROL)] == [3.0, 1.0, 0.0]


def test_a_newcomer_starts_in_the_middle_of_those_who_were_served_alike():
    it = shares()
    it.enter(ALICE)
    it.enter(BOB)
    for caller in (ALICE, BOB) * 3:
        it.charge({caller: 1}, 2.0, now=0.0)
    it.enter(CAROL)
    assert it.time_of(ALICE) == it.time_of(BOB) == it.time_of(CAROL) == 6.0


def test_who_comes_back_has_neither_saved_time_nor_got_rid_of_its_debt():
    it = shares()
    for caller in (ALICE, BOB, CAROL):
        it.enter(caller)
    it.charge({ALICE: 1}, 6.0, now=0.0)
    it.leave(ALICE)
    it.leave(BOB)
    it.enter(ALICE)
    it.enter(BOB)
    assert it.time_of(ALICE) == 6.0
    assert it.time_of(BOB) == 2.0


def test_an_idle_device_forgets_who_had_more():
    it = shares()
    it.enter(ALICE)
    it.enter(BOB)
    it.charge({ALICE: 1}, 6.0, now=0.0)
    it.leave(ALICE)
    it.leave(BOB)
    it.enter(BOB)
    it.enter(ALICE)
    assert it.time_of(ALICE) == it.time_of(BOB)


def test_work_done_while_nobody_waits_is_nobodys_debt():
    it = shares()
    it.charge({ALICE: 1}, 6.0, now=0.0)
    it.enter(ALICE)
    it.enter(BOB)
    assert it.time_of(ALICE) == it.time_of(BOB)


def test_a_budget_that_is_used_up_comes_back_over_the_window():
    it = shares(budget=10.0, window=100.0)
    it.charge({ALICE: 1}, 9.0, now=0.0)
    assert not it.is_spent(ALICE, 0.0)
    it.charge({ALICE: 1}, 3.0, now=0.0)
    assert it.is_spent(ALICE, 0.0)
    assert not it.is_spent(BOB, 0.0)
    assert it.is_spent(ALICE, 19.0)
    assert not it.is_spent(ALICE, 21.0)
    assert it.spent(ALICE, 60.0) == pytest.approx(6.0)
    assert it.spent(ALICE, 500.0) == 0.0


def test_an_endless_row_of_newcomers_does_not_hold_back_one_who_waits():
    it = shares()
    it.enter(ALICE)
    it.enter(BOB)
    it.charge({ALICE: 1}, 10.0, now=0.0)  # ahead by ten seconds
    it.leave(BOB)
    for number in range(25):
        newcomer = PrivateKey.from_seed(number.to_bytes(32, "big")).peer_id
        it.enter(newcomer)
        if it.time_of(ALICE) <= it.time_of(newcomer):
            break
        it.leave(newcomer)
        it.charge({newcomer: 1}, 1.0, now=0.0)
    # It wants half of the device, and the newcomers have had the ten seconds as well.
    assert 5 <= number <= 11


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(0, 3)), max_size=80))
def test_what_is_remembered_of_those_who_left_is_gone_when_nobody_waits(steps):
    callers = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(6)]
    it, waiting, now = shares(budget=1.0, window=2.0), set(), 0.0
    for who, seconds, pause in steps:
        caller = callers[who]
        if caller in waiting:
            it.leave(caller)
            waiting.discard(caller)
            it.charge({caller: 1}, seconds, now)
        else:
            it.enter(caller)
            waiting.add(caller)
        now += pause
        assert waiting <= set(it._times)
        assert all(it.time_of(each) >= 0 for each in waiting)
    for caller in sorted(waiting, key=callers.index):
        it.leave(caller)
    assert not it._times or not waiting
    it.charge({ALICE: 1}, 0.1, now + 1000.0)
    assert list(it._spent) == [ALICE]
