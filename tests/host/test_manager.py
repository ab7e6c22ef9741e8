import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import LimitSettings
from p2pnode.host.manager import CROWD, Candidate, ConnectionManager, ProtectedPeers
from p2pnode.wire.keys import PrivateKey

PEERS = [PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in range(8)]
LIMITS = LimitSettings(high_water=4, low_water=2, trim_grace=10.0, trim_silence=30.0)
NOW = 100.0


def candidate(name, **facts):
    """Return an idle inbound connection, used long ago, from a subnet of its own."""
    return Candidate(
        **{
            "connection": name,
            "peer_id": PEERS[0],
            "direction": "inbound",
            "crowd": name,
            "last_used": 50.0,
            "opened_at": 0.0,
            "streams": 0,
            "calls": 0,
            **facts,
        }
    )


def manager(protected=()):
    return ConnectionManager(LIMITS, protected)


def test_nothing_is_trimmed_at_the_high_mark_and_down_to_the_low_one_above_it():
    ours = manager()
    assert not ours.is_trim_due(4, NOW)
    assert ours.is_trim_due(5, NOW)
    assert len(ours.trim([candidate(number) for number in range(5)], NOW)) == 3


def test_a_trim_is_followed_by_silence():
    ours = manager()
    ours.trim([candidate(number) for number in range(5)], NOW)
    assert not ours.is_trim_due(100, NOW + 29.9)
    assert ours.is_trim_due(100, NOW + 30.0)


@pytest.mark.parametrize(
    ("goes", "stays"),
    [
        ({}, {"streams": 1}),
        ({"streams": 1}, {"streams": 1, "calls": 1}),
        ({"direction": "inbound"}, {"direction": "outbound"}),
        ({"last_used": 50.0}, {"last_used": 51.0}),
        ({"streams": 1, "opened_at": 2.0}, {"streams": 1, "opened_at": 1.0}),
        ({"direction": "outbound"}, {"streams": 1}),
        ({"last_used": 89.0}, {"streams": 1, "last_used": 0.0}),
        ({"streams": 9}, {"streams": 1, "calls": 1}),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_less_valuable_of_two_goes_first(goes, stays, first):
    pair = [candidate("goes", **goes), candidate("stays", **stays)]
    others = [candidate(number, last_used=89.9, streams=1, calls=1) for number in range(1)]
    order = pair if first else pair[::-1]
    assert manager().trim([*order, *others], NOW) == ["goes"]


def test_a_new_connection_has_its_grace_with_streams_or_without():
    fresh = [
        candidate("idle", last_used=90.1),
        candidate("busy", opened_at=90.1, streams=1),
    ]
    old = [candidate(number) for number in range(2)]
    assert manager().trim([*fresh, *old], NOW) == [0, 1]
    assert manager().trim(fresh, NOW + 10) == []
    assert manager().trim([*fresh, candidate("x")], NOW + 10) == ["x"]


def test_protected_peers_are_never_trimmed_and_make_no_room():
    protected = ProtectedPeers()
    protected.protect(PEERS[1], "mesh")
    ours = manager(protected)
    candidates = [candidate(number, peer_id=PEERS[1]) for number in range(10)]
    assert ours.trim(candidates, NOW) == []
    assert ours.spare(candidates, NOW) is None
    protected.unprotect(PEERS[1], "mesh")
    assert len(ours.trim(candidates, NOW)) == 8
    assert ours.spare(candidates, NOW) is not None


def test_calls_are_broken_off_only_when_nothing_else_is_left():
    calls = [candidate(f"call {number}", streams=2, calls=1) for number in range(3)]
    idle = [candidate("idle"), candidate("standing", streams=1)]
    assert set(manager().trim([*calls, *idle], NOW)) >= {"idle", "standing"}
    assert len(manager().trim([*calls, *idle], NOW)) == 3


def test_the_surplus_of_a_crowd_goes_before_single_peers():
    crowd = [
        candidate(f"crowd {number}", crowd="1.2.3.4/32", last_used=80.0 + number / 10)
        for number in range(CROWD + 2)
    ]
    single = [candidate(f"single {number}") for number in range(2)]
    gone = ConnectionManager(LimitSettings(high_water=CROWD + 2, low_water=CROWD + 2), ()).trim(
        [*crowd, *single], NOW
    )
    assert gone == ["crowd 0", "crowd 1"]


def test_room_for_a_newcomer_is_made_by_what_is_unused_for_longest_and_by_nothing_in_use():
    ours = manager()
    candidates = [
        candidate("used", streams=1),
        candidate("newer", last_used=60.0),
        candidate("older", last_used=50.0),
        candidate("fresh", last_used=95.0),
    ]
    assert ours.spare(candidates, NOW) == "older"
    assert ours.spare([candidates[0], candidates[3]], NOW) is None
    assert ours.spare([], NOW) is None


FACTS = st.builds(
    lambda peer, direction, crowd, last_used, age, streams, calls: {
        "peer_id": PEERS[peer],
        "direction": direction,
        "crowd": crowd,
        "last_used": last_used,
        "opened_at": last_used - age,
        "streams": streams + calls,
        "calls": calls,
    },
    st.integers(0, 7),
    st.sampled_from(["inbound", "outbound"]),
    st.integers(0, 3),
    st.floats(50, 100),
    st.floats(0, 50),
    st.integers(0, 2),
    st.integers(0, 2),
)


@given(st.lists(FACTS, max_size=40), st.sets(st.integers(0, 7)))
def test_a_trim_takes_no_more_than_the_excess_and_nobody_it_must_not(facts, protected):
    candidates = [candidate(number, **each) for number, each in enumerate(facts)]
    shielded = {PEERS[number] for number in protected}
    gone = manager(shielded).trim(candidates, NOW)
    by_name = {each.connection: each for each in candidates}
    assert len(gone) == len(set(gone)) <= max(0, len(candidates) - LIMITS.low_water)
    assert not shielded & {by_name[name].peer_id for name in gone}
    kept = [each for each in candidates if each.connection not in gone]
    if any(by_name[name].calls for name in gone):
        for each in kept:  # whoever stays without a call was not to be had
            fresh = NOW - (each.opened_at if each.streams else each.last_used) < LIMITS.trim_grace
            assert each.calls or fresh or each.peer_id in shielded


@pytest.mark.parametrize("order", [("mesh", "relay"), ("relay", "mesh")])
def test_a_peer_stays_protected_until_all_tags_are_taken_back(order):
    protected = ProtectedPeers()
    for tag in ("mesh", "relay", "mesh"):
        protected.protect(PEERS[0], tag)
    assert protected.unprotect(PEERS[0], order[0])
    assert PEERS[0] in protected
    assert not protected.unprotect(PEERS[0], order[1])
    assert PEERS[0] not in protected
    assert not protected.unprotect(PEERS[0], "never given")
