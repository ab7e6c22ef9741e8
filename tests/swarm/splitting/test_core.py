import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pnode.config.splitting import SplittingSettings
from p2pnode.errors import OverloadedError, StepLostError, StepUnderWayError
from p2pnode.swarm.splitting.core import Phase, Plan, Turn, Turns
from p2pnode.swarm.splitting.versions import Version
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

UID, OTHER = Uid("open:test", "layer.0"), Uid("open:test", "layer.1")
CALLER = PrivateKey.generate().peer_id
AT = Version(0, bytes(16))


def turn(uid=UID, key=b"a", until=5.0, size=10):
    return Turn(uid=uid, key=key, caller=CALLER, at=AT, until=until, size=size)


def begun(turns, **fields):
    made = turn(**fields)
    turns.wait(made.uid, made.key)
    turns.begin(made)
    turns.give_up(made.uid, made.key)
    return made


def plan(attempt=1, parts=1):
    return Plan(attempt=attempt, parts=parts, rows=3, group=(CALLER,))


def prepared(turns, **fields):
    made = begun(turns, **fields)
    made.receive_part(1, ["gradient"])
    made.receive_plan(plan())
    made.receive_total(made.begin_sum(), ["sum"], b"d")
    return made


@pytest.fixture
def turns():
    return Turns(SplittingSettings(max_kept_bytes=25, max_waiting=2))


def test_steps_of_one_expert_have_their_turns_in_the_order_in_which_they_came(turns):
    first = begun(turns)
    turns.wait(UID, b"b")
    turns.wait(UID, b"c")
    with pytest.raises(OverloadedError, match="2 steps"):
        turns.wait(UID, b"d")
    assert not turns.is_next(UID, b"b")
    turns.end(first)
    assert turns.is_next(UID, b"b")
    assert not turns.is_next(UID, b"c")
    with pytest.raises(StepUnderWayError):  # who would have the turn at once comes behind them
        turns.check_free(UID)
    turns.give_up(UID, b"b")  # its caller is gone
    assert turns.is_next(UID, b"c")
    turns.give_up(UID, b"c")
    turns.check_free(UID)
    begun(turns)
    with pytest.raises(StepUnderWayError):
        turns.check_free(UID)


def test_what_steps_may_keep_is_bounded_over_all_experts(turns):
    first, second = begun(turns), begun(turns, uid=OTHER)
    third = Uid("open:test", "layer.2")
    with pytest.raises(OverloadedError, match="max_kept_bytes"):
        begun(turns, uid=third)
    turns.end(first)
    turns.end(first)
    assert turns.kept_bytes == second.size


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from([UID, OTHER]), st.integers(0, 30)), max_size=20))
def test_whatever_begins_and_ends_the_bytes_kept_are_those_of_the_steps_under_way(story):
    turns = Turns(SplittingSettings(max_kept_bytes=40))
    under_way = {}
    for uid, size in story:
        if uid in under_way:
            turns.end(under_way.pop(uid))
            continue
        rest = sum(each.size for each in under_way.values())
        if rest + size > 40:
            with pytest.raises(OverloadedError):
                begun(turns, uid=uid, size=size)
        else:
            under_way[uid] = begun(turns, uid=uid, size=size)
        assert turns.kept_bytes == sum(each.size for each in under_way.values()) <= 40


def test_a_step_is_taken_only_with_the_sum(turns):
    made = begun(turns)
    with pytest.raises(StepLostError):
        made.commit()
    first = plan(1, parts=0)
    made.receive_plan(first)
    assert made.begin_sum() is first
    made.receive_total(first, ["sum"], b"d")
    assert made.group == (CALLER,)
    made.receive_part(2, ["more"])  # of a peer that was lost: the sum lacks it
    assert made.group == ()
    with pytest.raises(StepLostError):
        made.commit()
    with pytest.raises(StepLostError, match="another plan"):
        made.receive_plan(first)
    second = plan(2, parts=1)
    made.receive_plan(second)
    with pytest.raises(StepLostError, match="another plan"):
        made.receive_total(first, ["old"], b"d")
    made.receive_plan(plan(2, parts=1))  # once more, the same
    with pytest.raises(StepLostError, match="another plan"):
        made.receive_plan(plan(2, parts=2))
    made.receive_total(made.begin_sum(), ["sum"], b"d")
    made.commit()
    assert made.phase is Phase.TAKING
    with pytest.raises(StepLostError):
        made.receive_part(3, [])


def test_a_sum_begins_once_when_all_parts_of_its_plan_are_here(turns):
    made = begun(turns)
    assert made.begin_sum() is None
    wanted = plan(parts=2)
    for number in (1, 2):
        made.receive_plan(wanted)
        assert made.begin_sum() is None
        made.receive_part(number, ["gradient"])
    assert made.begin_sum() is wanted
    assert made.begin_sum() is None
    made.receive_part(3, ["more"])  # not planned: another plan has to come
    assert made.begin_sum() is None
    made.receive_plan(plan(2, parts=3))
    assert made.begin_sum() == plan(2, parts=3)


def test_a_lease_that_is_over_ends_what_is_open_and_puts_in_doubt_what_is_prepared(turns):
    first, second = begun(turns, until=3.0), prepared(turns, uid=OTHER, until=4.0)
    assert turns.next_time() == 3.0
    first.calls = 1  # a lease does not run while a call is at work
    assert turns.next_time() == 4.0
    first.calls = 0
    assert turns.take_late(4.0) == [first, second]
    assert (first.phase, second.phase) == (Phase.OPEN, Phase.DOUBTED)
    turns.end(first)
    assert turns.next_time() == float("inf")
    with pytest.raises(StepLostError):  # its caller's word counts no more
        second.commit()
    second.settle()
    assert second.phase is Phase.TAKING


def test_a_step_of_another_caller_is_not_found(turns):
    made = begun(turns)
    assert turns.find(UID, b"a") is made
    for uid, key in ((UID, b"b"), (OTHER, b"a")):
        with pytest.raises(StepLostError):
            turns.find(uid, key)


class TwoPeers(RuleBasedStateMachine):
    """Two prepared peers, a caller who may tell each of them once, and leases that end."""

    def __init__(self):
        super().__init__()
        self.turns = [Turns(SplittingSettings()) for _ in range(2)]
        self.made = [prepared(each) for each in self.turns]
        self.taken = [False, False]

    @rule(at=st.sampled_from([0, 1]))
    def commit(self, at):
        try:
            self.made[at].commit()
        except StepLostError:
            return
        self._take(at)

    @rule(at=st.sampled_from([0, 1]))
    def lease_ends(self, at):
        self.turns[at].take_late(10.0)

    @rule(at=st.sampled_from([0, 1]))
    def ask_the_other(self, at):
        if self.made[at].phase is not Phase.DOUBTED:
            return
        if self.taken[1 - at]:
            self.made[at].settle()
            self._take(at)
        else:
            self.made[1 - at].doubt()
            self.turns[at].end(self.made[at])

    def _take(self, at):
        self.taken[at] = True
        self.turns[at].end(self.made[at])

    @invariant()
    def never_does_one_take_what_the_other_has_dropped(self):
        ended = [each.phase is Phase.ENDED for each in self.made]
        assert not all(ended) or self.taken[0] == self.taken[1]


TestTwoPeers = TwoPeers.TestCase
TestTwoPeers.settings = settings(max_examples=40, stateful_step_count=12)
