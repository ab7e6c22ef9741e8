import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.config import DcutrSettings
from p2pnode.errors import ProtocolError
from p2pnode.protocols.dcutr.core import (
    MAX_ATTEMPTS,
    Answerer,
    Attempts,
    Opener,
    Plan,
    Retries,
    dial_patience,
    plays_client,
    worth_dialling,
)
from p2pnode.protocols.dcutr.messages import HolePunch, MessageType, decode, encode
from p2pnode.wire.keys import PrivateKey

SETTINGS = DcutrSettings()
OURS = Multiaddr("/ip4/8.0.0.1/tcp/4001")
THEIRS = Multiaddr("/ip4/9.0.0.1/tcp/4001")
PEER = PrivateKey.from_seed(bytes(32)).peer_id


def is_tcp(address):
    return [each.name for each in address.protocols()[1:]] == ["tcp"]


def pair(attempt=1):
    opener = Opener([OURS], is_tcp, SETTINGS)
    for _ in range(attempt - 1):
        opener.begin(0.0)
    return opener, Answerer(attempt, [THEIRS], is_tcp, SETTINGS)


@given(
    st.integers(1, MAX_ATTEMPTS),
    st.floats(0, 1e6),
    st.floats(0.001, 5.0),
    st.floats(0.001, 5.0),
)
def test_both_dial_each_other_at_the_same_moment_in_opposite_roles(attempt, now, there, back):
    opener, answerer = pair(attempt)
    connect = opener.begin(now)
    answer = answerer.receive_message(connect, now + there)
    sync, opener_plan = opener.receive_message(answer, now + there + back)
    plan = answerer.receive_message(sync, now + there + back + there)
    assert isinstance(plan, Plan)
    assert plan.addresses == (OURS,)
    assert opener_plan.addresses == (THEIRS,)
    assert plan.attempt == opener_plan.attempt == attempt
    assert plan.is_client is not opener_plan.is_client
    # As far apart as the two ways differ, halved: nobody can know which of them is the longer one.
    assert plan.dial_at - opener_plan.dial_at == pytest.approx((there - back) / 2, abs=1e-6)


@pytest.mark.parametrize(("attempt", "answerer_is_client"), [(1, True), (2, True), (3, False)])
def test_the_answerer_is_the_client_until_roles_are_swapped_for_older_peers(
    attempt, answerer_is_client
):
    assert plays_client(is_opener=False, attempt=attempt) is answerer_is_client
    assert plays_client(is_opener=True, attempt=attempt) is not answerer_is_client


@pytest.mark.parametrize(
    ("round_trip", "seconds"), [(None, 2.0), (0.0, 0.5), (0.1, 0.8), (0.2, 1.6), (3.0, 2.0)]
)
def test_a_peer_is_dialled_for_as_long_as_that_may_well_take(round_trip, seconds):
    assert dial_patience(round_trip, SETTINGS) == pytest.approx(seconds)


def test_there_are_three_attempts():
    opener, _ = pair()
    for number in range(1, 4):
        assert opener.may_go_on
        opener.begin(0.0)
        assert opener.attempt == number
    assert not opener.may_go_on


def test_messages_out_of_turn_are_refused():
    connect = encode(HolePunch(type=MessageType.CONNECT))
    sync = encode(HolePunch(type=MessageType.SYNC))
    opener, answerer = pair()
    with pytest.raises(ProtocolError, match="unasked"):
        opener.receive_message(connect, 0.0)
    opener.begin(0.0)
    with pytest.raises(ProtocolError, match="SYNC came where CONNECT is due"):
        opener.receive_message(sync, 0.0)
    with pytest.raises(ProtocolError, match="SYNC came where CONNECT is due"):
        answerer.receive_message(sync, 0.0)
    answerer.receive_message(connect, 0.0)
    with pytest.raises(ProtocolError, match="CONNECT came where SYNC is due"):
        answerer.receive_message(connect, 0.0)


def test_an_answer_counts_once():
    opener, answerer = pair()
    answer = answerer.receive_message(opener.begin(0.0), 0.1)
    opener.receive_message(answer, 0.2)
    with pytest.raises(ProtocolError, match="unasked"):
        opener.receive_message(answer, 0.3)


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_taken_or_refused(data, from_opener):
    opener, answerer = pair()
    opener.begin(0.0)
    try:
        (opener if from_opener else answerer).receive_message(data, 1.0)
    except ProtocolError:
        return
    assert decode(data).type is MessageType.CONNECT


@pytest.mark.parametrize(
    ("address", "is_worth_it"),
    [
        ("/ip4/8.8.8.8/tcp/4001", True),
        ("/ip6/2a00::1/tcp/4001", True),
        (f"/ip4/8.8.8.8/tcp/4001/p2p/{PEER}", True),
        ("/ip4/192.168.0.2/tcp/4001", False),
        ("/ip4/127.0.0.1/tcp/4001", False),
        ("/ip4/100.64.0.1/tcp/4001", False),
        ("/ip6/fe80::1/tcp/4001", False),
        ("/ip4/224.0.0.1/tcp/4001", False),
        ("/ip4/0.0.0.0/tcp/4001", False),
        ("/dns4/example.org/tcp/4001", False),
        ("/ip4/8.8.8.8/udp/4001/quic-v1", False),
        (f"/ip4/8.8.8.8/tcp/4001/p2p/{PEER}/p2p-circuit", False),
    ],
)
def test_only_addresses_of_the_open_internet_are_dialled(address, is_worth_it):
    found = worth_dialling([Multiaddr(address)], is_tcp, SETTINGS)
    assert bool(found) is is_worth_it


def test_private_addresses_are_dialled_where_the_settings_say_so():
    settings = DcutrSettings(private_addresses=True)
    address = Multiaddr("/ip4/192.168.0.2/tcp/4001")
    assert worth_dialling([address], is_tcp, settings) == (address,)
    assert worth_dialling([Multiaddr("/ip4/0.0.0.0/tcp/1")], is_tcp, settings) == ()


def test_each_address_is_dialled_once_and_not_too_many_are():
    many = [Multiaddr(f"/ip4/8.8.8.8/tcp/{port}") for port in range(1, 100)]
    found = worth_dialling([many[0], *many], is_tcp, SETTINGS)
    assert found == tuple(many[: SETTINGS.max_addresses])


def test_attempts_are_counted_while_they_follow_each_other():
    attempts = Attempts(SETTINGS)
    assert [attempts.count(PEER, now) for now in (0, 6, 12, 18, 24)] == [1, 2, 3, 1, 2]
    assert attempts.count(PEER, 24 + SETTINGS.attempt_memory + 1) == 1
    attempts.forget(PEER)
    assert attempts.count(PEER, 56) == 1


def peers(count):
    return [PrivateKey.from_seed(number.to_bytes(32, "big")).peer_id for number in range(count)]


def test_no_more_peers_are_remembered_than_the_settings_say():
    settings = DcutrSettings(max_peers=4)
    attempts, retries = Attempts(settings), Retries(settings, random.Random(0).random)
    for peer in peers(9):
        attempts.count(peer, 0.0)
        retries.fail(peer, 0.0)
    assert len(attempts) == len(retries) == 4
    assert retries.remaining(peers(9)[0], 0.0) == 0.0
    assert retries.remaining(peers(9)[8], 0.0) > 0.0


def test_pauses_double_and_have_an_end():
    retries = Retries(SETTINGS, random.Random(0).random)
    now, pauses = 0.0, []
    for _ in range(12):
        assert retries.remaining(PEER, now) == 0.0
        pause = retries.fail(PEER, now)
        assert retries.remaining(PEER, now) == pytest.approx(pause)
        pauses.append(pause)
        now += pause
    for number, pause in enumerate(pauses):
        longest = min(60.0 * 2**number, 3600.0)
        assert longest / 2 <= pause <= longest


def test_a_success_or_a_long_time_without_a_failure_forgets_the_pauses():
    retries = Retries(SETTINGS, random.Random(0).random)
    for _ in range(5):
        retries.fail(PEER, 0.0)
    retries.succeed(PEER)
    assert retries.remaining(PEER, 0.0) == 0.0
    for _ in range(5):
        retries.fail(PEER, 0.0)
    assert retries.fail(PEER, 2e4) <= SETTINGS.retry_pause
