import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.config import RelaySettings
from p2pnode.errors import ProtocolError
from p2pnode.protocols.relay.client_core import Reservations, check_reservation
from p2pnode.protocols.relay.messages import HopMessage, HopType, Reservation
from p2pnode.protocols.relay.vouchers import Voucher
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

KEYS = [PrivateKey.from_seed(bytes([number]) * 32) for number in range(10)]
RELAYS = [key.peer_id for key in KEYS]
A, B, C, D = RELAYS[:4]
ADDRESS = parse_address("/ip4/52.0.0.1/tcp/1")


def reservations(wanted=2, seed=0, **settings):
    found = Reservations(
        RelaySettings(**({"retry_pause": 2.0, "retry_pause_max": 60.0} | settings)),
        random.Random(seed),
    )
    found.want(wanted)
    return found


def begun(core, now=0.0):
    return [each.peer_id for each in core.begin(now)]


def test_configured_relays_are_asked_first_and_in_their_order():
    core = reservations(wanted=3)
    for peer in (C, D):
        core.receive_candidate(peer)
    core.receive_configured(B, [ADDRESS])
    core.receive_configured(A, [ADDRESS])
    assert begun(core)[:2] == [B, A]
    assert core.get(B).addresses == (ADDRESS,)


def test_others_are_chosen_by_chance():
    firsts = set()
    for seed in range(40):
        core = reservations(wanted=1, seed=seed)
        for peer in RELAYS[:4]:
            core.receive_candidate(peer)
        (first,) = begun(core)
        firsts.add(first)
    assert firsts == set(RELAYS[:4])


def test_only_as_many_are_asked_as_are_wanted():
    core = reservations(wanted=2)
    for peer in (A, B, C):
        core.receive_candidate(peer)
    first = begun(core)
    assert len(first) == 2
    assert begun(core) == []
    assert core.next_due() == math.inf
    core.receive_granted(first[0], 3600.0, [ADDRESS], 0.0)
    assert begun(core) == []
    core.receive_failure(first[1], 1.0)
    (third,) = {A, B, C} - set(first)
    assert begun(core, 1.0) == [third]


def test_a_reservation_is_renewed_well_before_it_ends():
    times = []
    for seed in range(50):
        core = reservations(wanted=1, seed=seed)
        core.receive_candidate(A)
        assert begun(core) == [A]
        core.receive_granted(A, 1000.0, [ADDRESS], 0.0)
        at = core.next_due()
        assert begun(core, at - 0.1) == []
        assert begun(core, at) == [A]
        times.append(at)
    assert 500.0 <= min(times) < 550.0
    assert 700.0 < max(times) <= 750.0


def test_a_renewal_that_fails_is_tried_again_while_the_old_one_holds():
    core = reservations(wanted=1)
    core.receive_candidate(A)
    begun(core)
    core.receive_granted(A, 1000.0, [ADDRESS], 0.0)
    now = core.next_due()
    tries = 0
    while now < 1000.0:
        assert begun(core, now) == [A]
        core.receive_failure(A, now)
        assert [each.peer_id for each in core.held()] == [A]
        now = core.next_due()
        tries += 1
    assert tries >= 5
    assert core.expire(now) == [A]
    assert core.held() == []


def test_the_pause_after_a_failure_doubles_up_to_its_limit():
    core = reservations(wanted=1, retry_pause=2.0, retry_pause_max=60.0)
    core.receive_candidate(A)
    now, pauses = 0.0, []
    for _ in range(8):
        assert begun(core, now) == [A]
        core.receive_failure(A, now)
        pauses.append(core.next_due() - now)
        now = core.next_due()
    for pause, middle in zip(pauses, (2, 4, 8, 16, 32, 60, 60, 60), strict=True):
        assert 0.75 * middle <= pause <= 1.25 * middle
    begun(core, now)
    core.receive_granted(A, 10.0, [], now)
    core.receive_lost(A, now + 1)
    assert core.next_due() - now <= 3.5  # success has been remembered as such


def test_a_lost_relay_is_replaced_at_once():
    core = reservations(wanted=1)
    core.receive_candidate(A)
    begun(core)
    core.receive_granted(A, 1000.0, [ADDRESS], 0.0)
    core.receive_candidate(B)
    assert begun(core, 1.0) == []
    assert core.receive_lost(A, 2.0)
    assert begun(core, 2.0) == [B]
    assert not core.receive_lost(A, 2.0)
    assert core.get(A).reached_at == ()


def test_what_is_no_longer_wanted_is_given_up():
    core = reservations(wanted=2)
    for peer in (A, B):
        core.receive_candidate(peer)
    asked = begun(core)
    core.receive_granted(asked[0], 1000.0, [ADDRESS], 0.0)
    assert core.want(0) == [asked[0]]
    assert not core.receive_granted(asked[1], 1000.0, [ADDRESS], 0.0)
    assert core.held() == []
    assert begun(core) == []
    assert core.next_due() == math.inf


def test_a_peer_that_relays_no_longer_is_forgotten_unless_it_is_in_use_or_named():
    core = reservations(wanted=1)
    for peer in (A, B):
        core.receive_candidate(peer)
    (asked,) = begun(core)
    core.receive_configured(C, [ADDRESS])
    for peer in (A, B, C):
        core.receive_no_candidate(peer)
    assert core.known == 2
    assert core.get(asked) is not None
    assert core.get(C) is not None


def test_so_many_candidates_are_remembered_and_those_in_use_always():
    core = reservations(wanted=1, max_candidates=3)
    core.receive_candidate(A)
    begun(core)
    core.receive_granted(A, 1000.0, [], 0.0)
    for peer in RELAYS[1:]:
        core.receive_candidate(peer)
    assert core.known == 3
    assert core.get(A) is not None
    assert core.get(RELAYS[-1]) is not None


@settings(deadline=None)
@given(data=st.data())
def test_whatever_relays_do_as_many_are_asked_as_are_missing(data):
    wanted = data.draw(st.integers(1, 4))
    core = reservations(wanted, seed=data.draw(st.integers(0, 99)))
    for peer in RELAYS:
        core.receive_candidate(peer)
    now, asked = 0.0, []
    for _ in range(data.draw(st.integers(1, 30))):
        now += data.draw(st.floats(0, 100))
        core.expire(now)
        asked += begun(core, now)
        assert len(set(asked)) == len(asked)
        busy = {each.peer_id for each in core.held()} | set(asked)
        free = [each for each in RELAYS if each not in busy and core.get(each).retry_at <= now]
        assert len(busy) >= wanted or not free
        assert core.next_due() > now  # all that was due has been done
        if asked:
            peer = asked.pop(0)
            if data.draw(st.booleans()):
                core.receive_granted(peer, data.draw(st.floats(60, 1000)), [], now)
            else:
                core.receive_failure(peer, now)
        elif core.held() and data.draw(st.booleans()):
            core.receive_lost(core.held()[0].peer_id, now)


# --- what relays promise ------------------------------------------------------------------------

OWN = RELAYS[9]
NOW = 1_700_000_000.0


def answer(key=KEYS[0], relay=A, peer=OWN, lifetime=3600, *, voucher=True):
    sealed = Voucher(relay=relay, peer=peer, expiration=int(NOW) + lifetime).seal(key)
    return HopMessage(
        type=HopType.STATUS,
        status=100,
        reservation=Reservation(expire=int(NOW) + lifetime, voucher=sealed if voucher else None),
    )


def check(message, **settings):
    return check_reservation(
        message, relay=A, own_id=OWN, now=NOW, settings=RelaySettings(**settings)
    )


def test_a_promise_holds_for_as_long_as_it_says():
    assert check(answer()) == 3600.0
    assert check(answer(voucher=False)) == 3600.0
    assert check(answer(lifetime=10**9), max_lifetime=7200.0) == 7200.0


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (HopMessage(type=HopType.STATUS, status=100), "does not say to what"),
        (answer(lifetime=5), "one of the two clocks is wrong"),
        (answer(lifetime=-5), "would end in"),
        (answer(KEYS[1], relay=B), "a voucher of"),
        (answer(peer=C), "a voucher of"),
        (
            HopMessage(
                type=HopType.STATUS,
                status=100,
                reservation=Reservation(expire=int(NOW) + 3600, voucher=b"x"),
            ),
            "envelope",
        ),
    ],
    ids=["nothing", "for a moment", "expired", "another relay", "another peer", "garbage"],
)
def test_a_promise_that_is_none_is_a_protocol_error(message, why):
    with pytest.raises(ProtocolError, match=why):
        check(message)
