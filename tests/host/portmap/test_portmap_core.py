import math
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import PortmapSettings
from p2pnode.host.portmap.core import Epoch, Leases
from p2pnode.host.portmap.interfaces import Mapping, Port

SETTINGS = PortmapSettings(retry_interval=60.0, max_retry_interval=600.0, max_ports=3)
TCP, UDP = Port("tcp", 4001), Port("udp", 4001)


def leases(settings=SETTINGS, draw=0.0):
    return Leases(settings, lambda: draw)


def mapping(port=TCP, lifetime=3600.0, external_port=4001):
    ip = IPv4Address("52.0.1.2")
    return Mapping(port=port, external_ip=ip, external_port=external_port, lifetime=lifetime)


def test_what_is_wanted_is_asked_for_at_once_and_one_after_the_other():
    wanted = leases()
    assert wanted.want([TCP, UDP, TCP], 0) == []
    assert wanted.next_due(0) == TCP
    wanted.receive_mapped(mapping(), 0)
    assert wanted.next_due(0) == UDP
    wanted.receive_mapped(mapping(UDP), 0)
    assert wanted.next_due(0) is None
    assert wanted.held(0) == [mapping(), mapping(UDP)]


@pytest.mark.parametrize(("draw", "share"), [(0.0, 0.5), (1.0, 0.625)])
def test_a_mapping_is_renewed_when_half_of_its_life_is_over_or_a_little_later(draw, share):
    wanted = leases(draw=draw)
    wanted.want([TCP], 0)
    wanted.receive_mapped(mapping(lifetime=3600.0), 100)
    assert wanted.next_deadline(100) == 100 + 3600 * share
    assert wanted.next_due(99 + 3600 * share) is None
    assert wanted.next_due(100 + 3600 * share) == TCP


def test_a_renewal_that_fails_is_tried_again_in_half_of_what_is_left():
    wanted = leases()
    wanted.want([TCP], 0)
    wanted.receive_mapped(mapping(lifetime=3600.0), 0)
    wanted.receive_refused(TCP, 1800)
    assert wanted.next_deadline(1800) == 2700
    wanted.receive_refused(TCP, 2700)
    assert wanted.next_deadline(2700) == 3150
    assert wanted.held(3599) == [mapping()]
    assert wanted.held(3600) == []
    wanted.receive_refused(TCP, 3600)
    assert wanted.next_deadline(3600) == 3840  # the third failure in a row


def test_a_refusal_is_followed_by_pauses_that_double_up_to_a_bound():
    wanted = leases()
    wanted.want([TCP], 0)
    pauses = []
    for _ in range(6):
        now = wanted.next_deadline(0)
        wanted.receive_refused(TCP, now)
        pauses.append(wanted.next_deadline(now) - now)
    assert pauses == [60, 120, 240, 480, 600, 600]
    wanted.receive_mapped(mapping(), 5000)
    wanted.lose_all(5001)
    wanted.receive_refused(TCP, 5001)
    assert wanted.next_deadline(5001) == 5061


def test_a_renewal_asks_for_the_external_port_had_before_even_when_it_was_lost():
    wanted = leases()
    wanted.want([TCP], 0)
    assert wanted.wish_for(TCP) == 4001
    wanted.receive_mapped(mapping(external_port=1234), 0)
    wanted.lose_all(10)
    assert wanted.held(10) == []
    assert wanted.next_due(10) == TCP
    assert wanted.wish_for(TCP) == 1234


def test_what_is_wanted_no_more_is_given_back_once():
    wanted = leases()
    wanted.want([TCP, UDP], 0)
    wanted.receive_mapped(mapping(), 0)
    assert wanted.want([UDP], 1) == [mapping()]
    assert wanted.want([UDP], 1) == []
    assert wanted.next_due(1) == UDP
    assert wanted.want([], 1) == []
    assert wanted.next_deadline(1) == math.inf


def test_only_so_many_ports_are_asked_for():
    wanted = leases()
    wanted.want([Port("tcp", each) for each in range(1, 10)], 0)
    asked = []
    while (port := wanted.next_due(0)) is not None:
        asked.append(port.number)
        wanted.receive_refused(port, 0)
    assert asked == [1, 2, 3]


@given(
    st.lists(
        st.tuples(st.floats(0, 500), st.sampled_from(["map", "refuse", "lose"]), st.floats(1, 900)),
        max_size=30,
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_a_mapping_is_held_only_while_it_lives_and_asked_for_before_it_ends(story, draw):
    wanted = leases(draw=draw)
    wanted.want([TCP], 0)
    now, ends = 0.0, -math.inf
    for passed, what, lifetime in story:
        now += passed
        assert bool(wanted.held(now)) == (ends > now)
        if what == "map":
            wanted.receive_mapped(mapping(lifetime=lifetime), now)
            ends = now + lifetime
            if lifetime > 8:
                assert now < wanted.next_deadline(now) < ends
        elif what == "refuse":
            wanted.receive_refused(TCP, now)
            assert wanted.next_due(now) is None  # never asked again at once
        else:
            wanted.lose_all(now)
            ends = now
            assert wanted.next_due(now) == TCP


# --- epochs -----------------------------------------------------------------------------------


def pcp_epoch():
    return Epoch(drift=1 / 16, may_run_ahead=False)


def nat_pmp_epoch():
    return Epoch(drift=1 / 8, may_run_ahead=True)


@pytest.mark.parametrize("make", [pcp_epoch, nat_pmp_epoch])
def test_a_count_that_begins_anew_tells_of_a_lost_memory_once(make):
    epoch = make()
    assert epoch.receive(1000, 0.0)
    assert epoch.receive(1060, 60.0)
    assert not epoch.receive(3, 120.0)
    assert epoch.receive(63, 180.0)


def test_a_count_that_runs_ahead_tells_of_a_lost_memory_in_pcp_alone():
    ahead, other = pcp_epoch(), nat_pmp_epoch()
    for each in (ahead, other):
        each.receive(0, 0.0)
    assert not ahead.receive(200, 100.0)
    assert other.receive(200, 100.0)


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.floats(0, 10**5), st.floats(-1 / 17, 1 / 17)), max_size=20),
)
def test_a_router_whose_clock_is_a_little_off_has_not_lost_its_memory(start, steps):
    for epoch in (pcp_epoch(), nat_pmp_epoch()):
        ours, theirs = 0.0, float(start)
        assert epoch.receive(int(theirs), ours)
        for passed, error in steps:
            ours += passed
            theirs += passed * (1 + error)
            assert epoch.receive(int(theirs), ours)


@given(st.integers(10, 10**6), st.floats(0, 10**4))
def test_a_reboot_is_noticed_however_soon_after(uptime, passed):
    for epoch in (pcp_epoch(), nat_pmp_epoch()):
        epoch.receive(uptime, 0.0)
        # It rebooted right after it told us, and took a moment to do so.
        if uptime > 5:
            assert not epoch.receive(0, passed)
