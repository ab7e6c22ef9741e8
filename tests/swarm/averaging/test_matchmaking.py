import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.swarm.averaging.group import Mean
from p2pnode.swarm.averaging.matchmaking import MOST, Candidate, find_group
from p2pnode.wire.keys import PrivateKey

PEERS = [PrivateKey.from_seed(each.to_bytes(32, "big")).peer_id for each in range(60)]


def group_of(own, peers, *, number=0, size=8, unreachable=()):
    candidates = [Candidate(peer_id=each, is_reachable=each not in unreachable) for each in peers]
    return find_group(
        candidates,
        own,
        run_id="run",
        name="ffn.0",
        number=number,
        size=size,
        codec="none",
        aggregator=Mean(),
    )


def ids(group):
    return frozenset(member.peer_id for member in group.members)


@given(st.integers(2, 60), st.integers(3, 16), st.integers(0, 1000))
def test_all_members_find_themselves_in_one_group_of_the_right_size(count, size, number):
    peers = PEERS[:count]
    groups = {each: group_of(each, peers, number=number, size=size) for each in peers}
    for each, group in groups.items():
        assert each in ids(group)
        assert 2 <= len(ids(group)) <= size
        assert all(groups[other] == group for other in ids(group))


def test_each_round_mixes_the_members_anew():
    rounds = [ids(group_of(PEERS[0], PEERS, number=number)) for number in range(20)]
    assert len(set(rounds)) == 20
    assert len(frozenset().union(*rounds)) > 40
    named = [group_of(PEERS[0], PEERS, number=number).round_id for number in range(20)]
    assert len(set(named)) == 20


def test_the_order_in_which_members_are_known_does_not_matter():
    assert group_of(PEERS[0], PEERS) == group_of(PEERS[0], PEERS[::-1])


def test_one_member_more_changes_few_groups():
    changed = 0
    for number in range(20):
        newcomer, others = PEERS[0], PEERS[1:]
        before = {ids(group_of(each, others, number=number)) for each in others}
        after = {ids(group_of(each, PEERS, number=number)) for each in others}
        of_newcomer = ids(group_of(newcomer, PEERS, number=number))
        changed += sum(len(group) for group in before - after)
        assert of_newcomer in after
    assert changed / 20 < 16  # of 59: it is about the newcomer's own group


def test_who_cannot_be_dialled_reduces_nothing():
    group = group_of(PEERS[0], PEERS[:4], unreachable=PEERS[1:3])
    parts = {member.peer_id: member.bandwidth for member in group.members}
    assert parts == {PEERS[0]: 1, PEERS[1]: 0, PEERS[2]: 0, PEERS[3]: 1}


def test_there_is_no_group_of_one_nor_one_in_which_nobody_can_be_dialled():
    assert group_of(PEERS[0], PEERS[:1]) is None
    assert group_of(PEERS[0], PEERS[:3], unreachable=PEERS) is None


@pytest.mark.parametrize("size", [2, 65])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ConfigError):
        group_of(PEERS[0], PEERS, size=size)


def test_who_is_no_candidate_has_no_group():
    with pytest.raises(ConfigError):
        group_of(PEERS[0], PEERS[1:])


def bandwidths(said, unreachable=()):
    """What counts of what members say that they send."""
    candidates = [
        Candidate(peer_id=each, bandwidth=float(bandwidth), is_reachable=each not in unreachable)
        for each, bandwidth in zip(PEERS, said, strict=False)
    ]
    group = find_group(
        candidates,
        PEERS[0],
        run_id="run",
        name="ffn.0",
        number=0,
        size=16,
        codec="none",
        aggregator=Mean(),
    )
    found = {member.peer_id: member.bandwidth for member in group.members}
    return [found[each] for each in PEERS[: len(said)]]


def test_who_says_that_it_sends_more_than_the_others_counts_a_few_times_as_much():
    assert bandwidths([10, 20, 30, 1e15]) == [10, 20, 30, MOST * 20]
    assert bandwidths([10, 1e15, 1e15, 20, 30]) == [10, MOST * 30, MOST * 30, 20, 30]


def test_who_has_not_measured_counts_like_the_median():
    assert bandwidths([0, 0, 0]) == [1, 1, 1]
    assert bandwidths([0, 10, 20, 40]) == [20, 10, 20, 40]


def test_who_cannot_be_dialled_reduces_nothing_whatever_it_says():
    assert bandwidths([10, 20, 1e6], unreachable=[PEERS[2]]) == [10, 20, 0]
