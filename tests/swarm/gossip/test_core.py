"""Rosters: who is in a swarm, by what the index lists and what members announce."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import GossipSettings
from p2pnode.swarm.gossip.announcement import Announcement, Claim
from p2pnode.swarm.gossip.core import (
    Fate,
    MemberAnnounced,
    MemberJoined,
    MemberLeft,
    Roster,
)
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

UID = Uid("open:digits", "blocks.0")
PEERS = [PrivateKey.from_seed(bytes([each]) * 32).peer_id for each in range(8)]
OWN = PEERS[0]
NOW = 1000.0


@dataclass(frozen=True)
class Host:
    peer_id: object
    load: int = 0
    throughput: float = 0.0


def roster(**settings):
    return Roster(UID, OWN, GossipSettings(**settings))


def said(number, issued=NOW, *, version=1, lifetime=90.0, claim=None, **fields):
    return Announcement(
        uid=UID,
        peer_id=PEERS[number],
        claim=claim or Claim(round=version),
        version=version,
        issued=issued,
        lifetime=lifetime,
        **fields,
    )


def fate(roster, announcement, wall=None):
    return roster.receive_announcement(announcement, wall or announcement.issued)[0]


def test_who_announces_joins_and_leaves_when_it_is_silent():
    known = roster()
    announcement = said(1)
    assert known.receive_announcement(announcement, NOW) == (
        Fate.NEW,
        [
            MemberJoined(uid=UID, peer_id=PEERS[1]),
            MemberAnnounced(announcement=announcement),
        ],
    )
    assert known.expire(NOW + 89) == []
    assert known.expire(NOW + 90) == [MemberLeft(uid=UID, peer_id=PEERS[1])]
    assert not known.members


def test_who_is_listed_joins_and_leaves_with_its_entry():
    known = roster()
    (joined,) = known.receive_listing([Host(PEERS[1], load=3), Host(OWN)], NOW)
    assert joined == MemberJoined(uid=UID, peer_id=PEERS[1])
    assert known.members[PEERS[1]].load == 3
    assert known.receive_listing([Host(PEERS[1], load=4)], NOW) == []
    assert known.members[PEERS[1]].load == 4
    assert known.receive_listing([], NOW) == [MemberLeft(uid=UID, peer_id=PEERS[1])]


def test_who_announces_stays_when_the_index_forgets_it_and_the_other_way_round():
    known = roster()
    known.receive_listing([Host(PEERS[1])], NOW)
    known.receive_announcement(said(1), NOW)
    assert known.receive_listing([], NOW) == []
    known.receive_listing([Host(PEERS[1])], NOW)
    assert known.expire(NOW + 91) == []
    assert known.members[PEERS[1]].announcement is None


def test_a_copy_renews_without_being_news():
    known = roster()
    known.receive_announcement(said(1), NOW)
    assert known.receive_announcement(said(1, NOW + 30), NOW + 30) == (Fate.NEW, [])
    assert known.expire(NOW + 100) == []


def test_what_is_replayed_changes_nothing():
    known = roster()
    old, new = said(1, NOW, version=1), said(1, NOW + 5, version=2)
    known.receive_announcement(old, NOW)
    known.receive_announcement(new, NOW + 5)
    for replayed in (old, new):
        assert known.receive_announcement(replayed, NOW + 6) == (Fate.OLD, ())
    assert known.members[PEERS[1]].announcement == new


def test_what_has_expired_or_is_dated_ahead_is_not_taken():
    known = roster()
    assert fate(known, said(1, lifetime=10), NOW + 10) is Fate.OLD
    assert fate(known, said(1, NOW + 3.5), NOW) is Fate.EARLY
    assert fate(known, said(1, NOW + 2.5), NOW) is Fate.NEW


def test_a_version_neither_falls_nor_means_two_things():
    known = roster()
    known.receive_announcement(said(1, version=5), NOW)
    assert fate(known, said(1, NOW + 1, version=4)) is Fate.OLD
    assert fate(known, said(1, NOW + 1, version=5, claim=Claim(round=9))) is Fate.OLD
    assert fate(known, said(1, NOW + 1, version=6, claim=Claim(round=9))) is Fate.NEW


def test_our_own_words_coming_back_do_not_make_us_a_member():
    known = roster()
    assert fate(known, said(0)) is Fate.OLD
    assert not known.members


def test_the_last_word_ends_a_membership_and_no_replay_brings_it_back():
    known = roster()
    before = said(1, NOW, version=1)
    known.receive_announcement(before, NOW)
    later = said(1, NOW + 1, version=1)  # a copy that somebody has kept back
    last = said(1, NOW + 2, version=2, lifetime=1.0, is_leaving=True)
    assert known.receive_announcement(last, NOW + 2) == (
        Fate.NEW,
        [MemberLeft(uid=UID, peer_id=PEERS[1])],
    )
    known.expire(NOW + 4)
    for replayed in (before, later, last):
        assert known.receive_announcement(replayed, NOW + 4) == (Fate.OLD, ())
    assert not known.members
    assert fate(known, said(1, NOW + 10, version=11)) is Fate.NEW  # but it may come back itself
    assert set(known.members) == {PEERS[1]}


def test_a_last_word_that_overtakes_what_was_said_before_it_counts():
    known = roster(max_members=2)
    assert known.receive_announcement(said(1, version=2, is_leaving=True), NOW) == (Fate.NEW, ())
    assert fate(known, said(1, NOW - 1, version=1), NOW) is Fate.OLD
    assert fate(known, said(2, is_leaving=True)) is Fate.NEW
    assert fate(known, said(3, is_leaving=True)) is Fate.CROWDED  # there is an end to it
    assert not known.members
    assert known.expire(NOW + 90) == []
    assert fate(known, said(3, NOW + 90)) is Fate.NEW


def test_who_is_listed_stays_a_member_after_its_last_word():
    known = roster()
    known.receive_listing([Host(PEERS[1])], NOW)
    known.receive_announcement(said(1), NOW)
    fate(known, said(1, NOW + 1, version=2, is_leaving=True))
    assert known.members[PEERS[1]].announcement is None


def test_who_announces_more_than_its_share_is_not_heard_by_what_it_has_dated_itself():
    known = roster(announcement_rate=1.0, announcement_burst=4)
    fates = [fate(known, said(1, NOW + each / 100, version=each)) for each in range(12)]
    assert fates == [Fate.NEW] * 8 + [Fate.HASTY] * 4
    assert fate(known, said(2)) is Fate.NEW  # others have their own share
    # What comes bunched, as the network or a bad peer may bring it, but was said in time, is fine.
    fates = [
        known.receive_announcement(said(3, NOW + each, version=each), NOW + 60)[0]
        for each in range(60)
    ]
    assert set(fates) == {Fate.NEW}


def test_members_are_bounded_and_those_in_the_index_go_before_those_who_only_announce():
    known = roster(max_members=3)
    for number in (1, 2, 3):
        assert fate(known, said(number)) is Fate.NEW
    assert fate(known, said(4)) is Fate.CROWDED
    changes = known.receive_listing([Host(PEERS[5]), Host(PEERS[3])], NOW)
    assert changes == [
        MemberLeft(uid=UID, peer_id=PEERS[1]),
        MemberJoined(uid=UID, peer_id=PEERS[5]),
    ]
    assert set(known.members) == {PEERS[2], PEERS[3], PEERS[5]}
    known.receive_listing([Host(PEERS[each]) for each in range(1, 7)], NOW)
    assert len(known.members) == 3


def test_those_who_come_and_go_cannot_shut_out_who_is_listed():
    known = roster(max_members=3)
    for number in (1, 2, 3):
        fate(known, said(number))
        fate(known, said(number, NOW + 1, version=2, is_leaving=True))
    assert not known.members
    assert fate(known, said(4, NOW + 1)) is Fate.CROWDED
    (joined,) = known.receive_listing([Host(PEERS[4])], NOW)
    assert joined == MemberJoined(uid=UID, peer_id=PEERS[4])


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("say"),
            st.integers(0, 7),
            st.integers(0, 40),
            st.integers(0, 5),
            st.booleans(),
        ),
        st.tuples(st.just("list"), st.sets(st.integers(0, 7))),
        st.tuples(st.just("wait"), st.integers(1, 60)),
    ),
    max_size=60,
)


@given(steps, st.sampled_from([4, 16]))  # which crowds some out, or nobody
def test_changes_tell_who_is_there_whatever_happens(story, limit):
    known, wall, told = roster(max_members=limit), NOW, set()
    issued = {}
    for step in story:
        match step:
            case "say", number, delay, version, is_leaving:
                one = said(
                    number, wall - delay, version=version, lifetime=30.0, is_leaving=is_leaving
                )
                found, changes = known.receive_announcement(one, wall)
                if found is Fate.NEW:  # only what is newer than all that was taken before
                    assert limit == 4 or one.issued > issued.get(number, 0)
                    assert one.expiry > wall
                    issued[number] = one.issued
            case "list", numbers:
                changes = known.receive_listing([Host(PEERS[each]) for each in numbers], wall)
            case "wait", seconds:
                wall += seconds
                changes = known.expire(wall)
        for change in changes:
            match change:
                case MemberJoined():
                    assert change.peer_id not in told
                    told.add(change.peer_id)
                case MemberLeft():
                    told.remove(change.peer_id)
                case MemberAnnounced():
                    assert change.announcement.peer_id in told
        assert set(known.members) == told
        assert OWN not in told
        assert len(told) <= limit
