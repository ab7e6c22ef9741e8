import contextlib
import functools

import pytest

from p2pnode.config import LimitSettings
from p2pnode.errors import Limit, ResourceLimitError
from p2pnode.host.budgets import Budgets
from p2pnode.host.budgets.scopes import Kind, Resource
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

A, B, C = (PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in (1, 2, 3))
NOW = 0.0


def at(text="/ip4/1.2.3.4/tcp/1"):
    return parse_address(text)


def make(**limits):
    return Budgets(LimitSettings(**limits))


def connect(budgets, peer_id=A, address="/ip4/1.2.3.4/tcp/1", direction="inbound", now=NOW):
    """Open an account as a host does, up to the moment streams may be opened."""
    if direction == "inbound":
        account = budgets.accept(at(address), now)
    else:
        account = budgets.dial(peer_id)
        account.locate(at(address), now)
    try:
        account.identify(peer_id, now)
    except ResourceLimitError:
        account.close()
        raise
    return account


def refused(budgets, attempt):
    """Return which limit refuses `attempt`, having seen that nothing was charged for it."""
    before = used(budgets)
    with pytest.raises(ResourceLimitError) as error:
        attempt()
    assert used(budgets) == before
    return error.value.limit


def used(budgets):
    scopes = [each for kind in Kind for each in budgets.scopes.of(kind)]
    return {(each.kind, each.key): tuple(each.used) for each in scopes if any(each.used)}


def stream(account, *, inbound=True, window=100, protocol=None, now=NOW):
    charged = account.open_stream(inbound=inbound, window=window, now=now)
    if protocol is not None:
        charged.speak(protocol, now)
    return charged


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "direction", "limit"),
    [
        ({"max_connections": 2}, "inbound", Limit.NODE_CONNECTIONS),
        ({"max_connections": 2}, "outbound", Limit.NODE_CONNECTIONS),
        ({"max_inbound_connections": 2}, "inbound", Limit.NODE_INBOUND_CONNECTIONS),
        ({"max_outbound_connections": 2}, "outbound", Limit.NODE_OUTBOUND_CONNECTIONS),
        ({"max_connections_per_peer": 2}, "inbound", Limit.PEER_CONNECTIONS),
        ({"max_connections_per_peer": 2}, "outbound", Limit.PEER_CONNECTIONS),
        (
            {"max_inbound_connections_per_address": 2},
            "inbound",
            Limit.ADDRESS_INBOUND_CONNECTIONS,
        ),
        (
            {"max_inbound_connections_per_network": 2},
            "inbound",
            Limit.NETWORK_INBOUND_CONNECTIONS,
        ),
        ({"connection_burst_per_address": 2}, "inbound", Limit.ADDRESS_CONNECTION_RATE),
        ({"connection_burst_per_network": 2}, "inbound", Limit.NETWORK_CONNECTION_RATE),
    ],
)
def test_each_limit_of_connections_refuses_the_third_of_two(limits, direction, limit):
    budgets = make(**limits)
    held = [connect(budgets, direction=direction) for _ in range(2)]
    assert refused(budgets, lambda: connect(budgets, direction=direction)) is limit
    if not limit.is_rate:
        held[0].close()
        connect(budgets, direction=direction)


def test_our_own_dials_do_not_use_up_what_others_may_make_from_a_subnet():
    budgets = make(max_inbound_connections_per_address=1)
    for peer_id in (A, B, C):
        connect(budgets, peer_id, direction="outbound")
    connect(budgets, A)


def test_one_direction_cannot_shut_the_other_one_out():
    budgets = make(max_connections=3, max_inbound_connections=2)
    for peer_id in (A, B):
        connect(budgets, peer_id)
    assert budgets.lack_of_room("inbound") is not None
    assert budgets.lack_of_room("outbound") is None
    connect(budgets, C, direction="outbound")
    assert budgets.lack_of_room("outbound") is not None


@pytest.mark.parametrize(
    ("one", "other", "limit"),
    [
        ("/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/tcp/2", Limit.ADDRESS_INBOUND_CONNECTIONS),
        ("/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.5/tcp/1", Limit.NETWORK_INBOUND_CONNECTIONS),
        ("/ip4/1.2.3.4/tcp/1", "/ip6/::ffff:1.2.3.4/tcp/1", Limit.ADDRESS_INBOUND_CONNECTIONS),
        ("/ip4/1.2.3.4/tcp/1", "/ip4/1.2.4.4/tcp/1", None),
        ("/ip6/2001:db8::1/tcp/1", "/ip6/2001:db8::2/tcp/1", Limit.ADDRESS_INBOUND_CONNECTIONS),
        ("/ip6/2001:db8::1/tcp/1", "/ip6/2001:db8:0:1::/tcp/1", Limit.NETWORK_INBOUND_CONNECTIONS),
        ("/ip6/2001:db8::1/tcp/1", "/ip6/2001:db8:1::1/tcp/1", None),
        ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2", None),
        ("/ip6/::1/tcp/1", "/ip6/::1/tcp/2", None),
        ("/dns4/example.com/tcp/1", "/dns4/example.com/tcp/1", None),
    ],
)
def test_connections_share_a_budget_with_those_of_their_subnets(one, other, limit):
    budgets = make(max_inbound_connections_per_address=1, max_inbound_connections_per_network=1)
    connect(budgets, A, one)
    if limit is None:
        connect(budgets, B, other)
    else:
        assert refused(budgets, lambda: connect(budgets, B, other)) is limit


def test_prefix_lengths_and_exemptions_are_settings():
    budgets = make(
        ip4_address_prefix=16,
        ip4_network_prefix=8,
        exempt_subnets=("1.0.0.0/8",),
        max_inbound_connections_per_address=1,
    )
    for _ in range(2):
        connect(budgets, A, "/ip4/1.2.3.4/tcp/1")
    connect(budgets, A, "/ip4/127.0.3.4/tcp/1")
    attempt = functools.partial(connect, budgets, A, "/ip4/127.0.9.9/tcp/1")
    assert refused(budgets, attempt) is Limit.ADDRESS_INBOUND_CONNECTIONS


def test_a_subnet_in_haste_is_served_again_after_a_while():
    budgets = make(connections_per_second_per_address=2.0, connection_burst_per_address=1)
    budgets.accept(at(), 0.0)
    with pytest.raises(ResourceLimitError, match=r"more than 2 connections a second .*1\.2\.3\.4"):
        budgets.accept(at(), 0.4)
    budgets.accept(at(), 0.5)
    budgets.accept(at("/ip4/1.2.3.5/tcp/1"), 0.5)


def test_a_connection_refused_for_its_address_takes_no_token_of_its_network():
    budgets = make(
        connection_burst_per_address=1,
        connection_burst_per_network=2,
        connections_per_second_per_address=0.001,
        connections_per_second_per_network=0.001,
    )
    budgets.accept(at(), NOW)
    for _ in range(5):
        with pytest.raises(ResourceLimitError):
            budgets.accept(at(), NOW)
    budgets.accept(at("/ip4/1.2.3.5/tcp/1"), NOW)


def test_what_is_remembered_of_haste_is_bounded():
    budgets = make(max_rates_kept=10)
    for number in range(100):
        budgets.accept(at(f"/ip4/1.{number}.3.4/tcp/1"), NOW)
    assert len(budgets._address_rates) == len(budgets._network_rates) == 10


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "inbound", "limit"),
    [
        ({"max_inbound_streams": 2}, True, Limit.NODE_INBOUND_STREAMS),
        ({"max_outbound_streams": 2}, False, Limit.NODE_OUTBOUND_STREAMS),
        ({"max_inbound_streams_per_peer": 2}, True, Limit.PEER_INBOUND_STREAMS),
        ({"max_outbound_streams_per_peer": 2}, False, Limit.PEER_OUTBOUND_STREAMS),
        ({"max_streams_per_connection": 2}, True, Limit.CONNECTION_STREAMS),
        ({"max_streams_per_connection": 2}, False, Limit.CONNECTION_STREAMS),
        ({"max_bytes": 200}, True, Limit.NODE_BYTES),
        ({"max_bytes_per_network": 200}, True, Limit.NETWORK_BYTES),
        ({"max_bytes_per_address": 200}, False, Limit.ADDRESS_BYTES),
        ({"max_bytes_per_peer": 200}, True, Limit.PEER_BYTES),
        ({"max_bytes_per_connection": 200}, False, Limit.CONNECTION_BYTES),
        ({"max_inbound_streams_per_protocol": 2}, True, Limit.PROTOCOL_INBOUND_STREAMS),
        ({"max_outbound_streams_per_protocol": 2}, False, Limit.PROTOCOL_OUTBOUND_STREAMS),
        ({"max_inbound_streams_per_protocol_per_peer": 2}, True, Limit.PAIR_INBOUND_STREAMS),
        ({"max_outbound_streams_per_protocol_per_peer": 2}, False, Limit.PAIR_OUTBOUND_STREAMS),
        ({"stream_burst_per_peer": 2}, True, Limit.PEER_STREAM_RATE),
    ],
)
def test_each_limit_of_streams_refuses_the_third_of_two(limits, inbound, limit):
    budgets = make(**limits)
    account = connect(budgets)
    held = [stream(account, inbound=inbound, protocol="/x") for _ in range(2)]

    def attempt():
        third = stream(account, inbound=inbound)
        try:
            third.speak("/x", NOW)
        finally:
            third.end(0)

    assert refused(budgets, attempt) is limit
    if not limit.is_rate:
        held[0].end(0)
        stream(account, inbound=inbound, protocol="/x")


def test_a_peer_cannot_take_more_by_more_connections():
    budgets = make(max_bytes_per_peer=300)
    one, other = connect(budgets), connect(budgets)
    stream(one)
    stream(other, window=200)
    assert refused(budgets, lambda: stream(one, window=1)) is Limit.PEER_BYTES
    stream(connect(budgets, B))


def test_protocols_do_not_use_up_each_others_streams():
    budgets = make(max_inbound_streams_per_protocol_per_peer=1)
    account, other = connect(budgets, A), connect(budgets, B)
    stream(account, protocol="/x")
    stream(account, protocol="/y")
    stream(other, protocol="/x")
    assert refused_by_protocol(account) is Limit.PAIR_INBOUND_STREAMS


def refused_by_protocol(account):
    charged = stream(account)
    with pytest.raises(ResourceLimitError) as error:
        charged.speak("/x", NOW)
    charged.end(0)
    return error.value.limit


def test_windows_grow_into_half_of_every_limit_and_new_streams_into_all_of_it():
    budgets = make(max_bytes_per_peer=1000)
    account = connect(budgets)
    first = stream(account, window=100)
    assert first.grow(400)
    before = used(budgets)
    assert not first.grow(1)
    assert used(budgets) == before
    for _ in range(5):
        stream(account, window=100)
    assert refused(budgets, lambda: stream(account, window=1)) is Limit.PEER_BYTES


def test_a_handler_that_works_on_keeps_its_stream_charged_whatever_the_peer_does():
    budgets = make(max_inbound_streams_per_peer=1)
    account = connect(budgets)
    charged = stream(account)
    with charged.serving():
        charged.speak("/x", NOW)
        charged.end(0)  # the peer has reset it
        assert refused(budgets, lambda: stream(account)) is Limit.PEER_INBOUND_STREAMS
    stream(account)


def test_a_stream_that_was_over_before_its_handler_began_is_not_charged_again():
    budgets = make()
    account = connect(budgets)
    before = used(budgets)
    charged = stream(account)
    charged.end(0)
    with charged.serving():
        charged.speak("/x", NOW)
        assert not charged.grow(1)
        assert used(budgets) == before
    assert used(budgets) == before


def test_bytes_nobody_has_read_stay_charged_until_they_are():
    budgets = make(max_bytes_per_peer=100)
    account = connect(budgets)
    charged = stream(account, window=100)
    charged.end(60)
    assert refused(budgets, lambda: stream(account, window=41)) is Limit.PEER_BYTES
    stream(account, window=40)
    charged.end(0)
    stream(account, window=60)


def test_a_connection_that_ends_gives_back_what_its_streams_have():
    budgets = make()
    empty = used(budgets)
    account = connect(budgets)
    streams = [stream(account, protocol="/x"), stream(account, inbound=False), stream(account)]
    streams[0].grow(50)
    streams[2].end(10)
    with streams[1].serving():
        account.close()
        assert used(budgets) == empty
    for each in streams:
        each.end(0)
        each.close()
    account.close()
    assert used(budgets) == empty
    assert len(budgets.scopes) == 1  # the node's


def test_streams_of_standing_protocols_are_no_calls():
    account = connect(make(background_protocols=("/meshsub/",)))
    stream(account, protocol="/meshsub/1.1.0")
    stream(account)
    assert account.calls == 0
    call = stream(account, inbound=False, protocol="/p2pnode/tensor/1.0.0")
    assert account.calls == 1
    call.end(0)
    assert account.calls == 0


# --- handshakes -----------------------------------------------------------------------------------


def test_the_oldest_handshake_of_the_largest_crowd_gives_way_to_a_new_one():
    budgets = make(max_handshakes=4, ip4_address_prefix=24)
    gone = []
    with contextlib.ExitStack() as held:
        for address in ("2.0.0.1", "1.0.0.1", "1.0.0.2", "3.0.0.1", "1.0.0.3", "1.0.0.4"):
            give_way = functools.partial(gone.append, address)
            held.enter_context(budgets.handshake(at(f"/ip4/{address}/tcp/1"), give_way))
        assert gone == ["1.0.0.1", "1.0.0.2"]
        assert budgets.handshakes == 4
    assert budgets.handshakes == 0


def test_machines_that_no_limit_of_a_subnet_holds_for_are_no_crowd():
    budgets = make(max_handshakes=3)
    gone = []
    with contextlib.ExitStack() as held:
        for address in ("127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.3"):
            give_way = functools.partial(gone.append, address)
            held.enter_context(budgets.handshake(at(f"/ip4/{address}/tcp/1"), give_way))
    assert gone == ["127.0.0.2"]


# --- what is told ---------------------------------------------------------------------------------


def test_the_first_refusal_is_told_at_once_and_the_others_are_added_up():
    told = []
    budgets = Budgets(LimitSettings(max_connections_per_peer=1, refusal_interval=10.0), told.append)
    connect(budgets)
    for number in range(1, 1001):
        account = budgets.dial(A)
        with pytest.raises(ResourceLimitError):
            account.identify(A, number * 0.001)
    assert [each.count for each in told] == [1]
    budgets.refusals.tell(9.0)
    assert len(told) == 1
    budgets.refusals.tell(10.001)
    assert [each.count for each in told] == [1, 999]
    assert told[1].limit is Limit.PEER_CONNECTIONS
    assert (told[1].peer_id, "with one peer" in told[1].reason) == (A, True)
    budgets.refusals.tell(1000.0)
    assert len(told) == 2
    assert budgets.report().refusals == {Limit.PEER_CONNECTIONS: 1000}


def test_refusals_of_different_limits_are_told_apart():
    told = []
    budgets = Budgets(LimitSettings(max_connections_per_peer=1, max_bytes=10), told.append)
    account = connect(budgets)
    for _ in range(2):
        with pytest.raises(ResourceLimitError):
            connect(budgets)
        with pytest.raises(ResourceLimitError):
            stream(account)
    assert {each.limit for each in told} == {Limit.PEER_CONNECTIONS, Limit.NODE_BYTES}


def test_the_report_tells_of_the_node_and_of_those_who_use_most():
    budgets = make(max_bytes_per_peer=1000, max_connections=10)
    peers = [PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in range(1, 9)]
    for number, peer_id in enumerate(peers):
        account = connect(budgets, peer_id, f"/ip4/1.{number}.3.4/tcp/1")
        stream(account, window=100 * number)
    report = budgets.report()
    node = {each.resource: (each.used, each.limit) for each in report.node.uses}
    assert node["connections"] == (8, 10)
    assert node["inbound_streams"][0] == 8
    assert node["bytes"][0] == 2800
    assert "handshakes" in node
    assert "streams" not in node  # they have no limit there
    top = [each.name for each in report.top if each.kind == "peer"]
    assert top == [str(each) for each in reversed(peers[3:])]
    assert sum(each.kind == "address" for each in report.top) == 5


def test_room_is_lacking_first_in_the_direction_itself():
    budgets = make(max_connections=1, max_inbound_connections=1)
    connect(budgets)
    assert budgets.lack_of_room("inbound")[1] is Resource.INBOUND_CONNECTIONS
    assert budgets.lack_of_room("outbound")[1] is Resource.CONNECTIONS


def test_a_computer_room_behind_one_address_is_let_in_again_after_a_power_cut():
    """Its lost connections are not noticed at once, and count until then."""
    budgets = Budgets(LimitSettings())
    room = [PrivateKey.from_seed(bytes([n] * 32)).peer_id for n in range(60)]
    for began in (NOW, NOW + 60.0):
        now, waiting = began, list(room)
        while waiting:
            try:
                connect(budgets, waiting[0], now=now)
                waiting.pop(0)
            except ResourceLimitError:
                now += 1.0  # as long as a dial is backed off at least
        assert now - began <= 5.0
    assert budgets.report().node.uses[0].used == 120
