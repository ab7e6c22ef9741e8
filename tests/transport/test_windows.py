"""How receive windows grow: by their use, within a stream's limit, a session's and an account's."""

import pytest

from p2pnode.config import KIB
from p2pnode.transport.session import Unmetered
from p2pnode.transport.windows import GROWTH_ROUND_TRIPS, WindowGrowth

FIRST = 256 * KIB
RTT = 0.1
QUICK = GROWTH_ROUND_TRIPS * RTT * 0.99


def windows(*, most=4 * FIRST, most_growth=100 * FIRST):
    return WindowGrowth(initial=FIRST, most=most, most_growth=most_growth)


class Full(Unmetered):
    def grow(self, _):
        return False


def test_a_window_used_up_quickly_doubles_up_to_what_one_may_have():
    growth = windows(most=3 * FIRST)
    assert growth.grow(FIRST, Unmetered(), QUICK, RTT) == FIRST
    assert growth.grow(2 * FIRST, Unmetered(), QUICK, RTT) == FIRST
    assert growth.grow(3 * FIRST, Unmetered(), QUICK, RTT) == 0
    assert growth.grown == 2 * FIRST


@pytest.mark.parametrize(("took", "round_trip"), [(QUICK, None), (GROWTH_ROUND_TRIPS * RTT, RTT)])
def test_it_stays_if_its_use_took_long_or_the_delay_is_unknown(took, round_trip):
    growth = windows()
    assert growth.grow(FIRST, Unmetered(), took, round_trip) == 0
    assert growth.grown == 0


def test_an_account_without_room_keeps_it_as_it_is():
    growth = windows()
    assert growth.grow(FIRST, Full(), QUICK, RTT) == 0
    assert growth.grown == 0


def test_all_windows_grow_within_one_budget_to_which_an_ended_stream_gives_back():
    growth = windows(most_growth=FIRST)
    assert growth.grow(FIRST, Unmetered(), QUICK, RTT) == FIRST
    assert growth.grow(FIRST, Unmetered(), QUICK, RTT) == 0
    growth.give_back(2 * FIRST)
    assert growth.grown == 0
    assert growth.grow(FIRST, Unmetered(), QUICK, RTT) == FIRST


def test_a_limit_below_the_first_window_takes_nothing_away():
    assert windows(most=FIRST // 2).grow(FIRST, Unmetered(), QUICK, RTT) == 0
