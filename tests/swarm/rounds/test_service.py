"""Rounds of several participants, who are told what they learn."""

import dataclasses
import math

import pytest
import trio

from p2pnode.errors import (
    CheckpointError,
    DialError,
    StorageError,
    TransferError,
    UnknownExpertError,
)
from p2pnode.swarm.gossip.reputation import Offence
from p2pnode.swarm.rounds.events import (
    Averaged,
    ClaimChecked,
    End,
    RoundBegan,
    RoundEnded,
    RoundsEnded,
    TrainingFailed,
    Verdict,
)
from p2pnode.swarm.rounds.service import Mixture


async def test_the_best_weights_are_everybodys_at_the_end_of_a_round(autojump_clock, add, run_all):
    participants = [add(0.5), add(0.8), add(0.6)]
    await run_all()
    assert [each.weights.value for each in participants] == [0.8, 0.8, 0.8]
    assert [each.ended.score for each in participants] == [0.8, 0.8, 0.8]
    assert [each.weights.adopted for each in participants] == [
        [(0.8, participants[1].peer_id)],
        [],
        [(0.8, participants[1].peer_id)],
    ]
    assert all(each.swarm.reports == [] for each in participants)


async def test_what_was_adopted_is_announced_with_ones_own_score(autojump_clock, add, run_all):
    one, other = add(0.5), add(0.8)
    one.learner.bias = -0.01
    await run_all()
    begin, trained, adopted, ended = one.swarm.claims
    assert (begin.round, begin.score) == (0, pytest.approx(0.09))
    assert (trained.round, trained.score) == (1, pytest.approx(0.49))
    assert (adopted.round, adopted.score) == (1, pytest.approx(0.79))
    assert adopted.weights == other.swarm.claims[-1].weights
    assert ended == dataclasses.replace(adopted, is_final=True)
    assert not adopted.is_final


async def test_a_round_takes_as_long_as_its_slowest_participant_and_is_told(
    autojump_clock, add, run_all
):
    fast, slow = add(0.5, 0.6, patience=60.0), add(0.4, 0.7, seconds=5.0, patience=60.0)
    await run_all()
    assert [each.round for each in fast.saw(RoundBegan)] == [1, 2]
    assert fast.saw(RoundEnded) == fast.rounds.history
    first, second = fast.rounds.history
    assert (first.trained, first.score, first.heard, first.source) == (0.5, 0.5, 1, None)
    assert (second.score, second.heard, second.source) == (0.7, 1, slow.peer_id)
    for each in (first, second):
        assert (each.seconds, each.waited) == (pytest.approx(5.0), pytest.approx(4.0))
    assert fast.saw(RoundsEnded) == [fast.ended]
    assert fast.ended.reason is End.ROUNDS


async def test_who_never_comes_holds_nobody_up_longer_than_one_patience(
    autojump_clock, add, run_all
):
    one, other = add(*[0.5] * 5), add(*[0.6] * 5)
    gone = add(0.9)
    gone.rounds.run = trio.lowlevel.checkpoint
    began = trio.current_time()
    await run_all()
    # One at the beginning, one in the first round; five rounds of training.
    assert trio.current_time() - began == pytest.approx(2 * 10.0 + 5.0)
    assert one.ended.round == other.ended.round == 5


async def test_who_has_ended_holds_nobody_up(autojump_clock, add, run_all):
    one, other = add(*[0.5] * 5), add(*[0.6] * 5)
    add(0.4, rounds=1)
    began = trio.current_time()
    await run_all()
    assert trio.current_time() - began == pytest.approx(5.0)
    assert one.ended.round == other.ended.round == 5


async def test_who_is_gone_holds_nobody_up(autojump_clock, add, run_all):
    one, other = add(*[0.5] * 5), add(*[0.6] * 5)
    gone = add(0.9)
    gone.rounds.run = trio.lowlevel.checkpoint
    for each in (one, other):
        each.swarm.gone = frozenset({gone.peer_id})
    began = trio.current_time()
    await run_all()
    assert trio.current_time() - began == pytest.approx(5.0)


async def test_it_ends_when_the_threshold_is_reached_on_ones_own_hold_out(
    autojump_clock, add, run_all
):
    one, other = add(0.5, 0.5, 0.5, threshold=0.8), add(0.6, 0.85, 0.5, threshold=0.8)
    await run_all()
    assert [(each.ended.reason, each.ended.round) for each in (one, other)] == [
        (End.THRESHOLD, 2),
        (End.THRESHOLD, 2),
    ]
    assert one.weights.value == other.weights.value == 0.85


async def test_a_late_joiner_has_the_swarms_weights_before_it_trains(
    autojump_clock, add, run_all, lie
):
    lie(0.8, 0.8, number=7)
    joiner = add(0.85, rounds=8)
    await run_all()
    assert joiner.weights.adopted[0][0] == 0.8
    assert [each.round for each in joiner.saw(RoundBegan)] == [7, 8]
    assert joiner.swarm.claims[1].round == 7  # what it has adopted


@pytest.mark.parametrize(
    "lied",
    [
        (0.05, Offence.FALSE_SCORE),
        (0.7, Offence.FALSE_SCORE),  # better than ours, but not what was claimed
        (math.nan, Offence.BAD_WEIGHTS),
        (math.inf, Offence.BAD_WEIGHTS),
        (-1.0, Offence.BAD_WEIGHTS),
    ],
)
async def test_lying_wins_nothing_and_is_reported(autojump_clock, add, run_all, lie, lied):
    value, offence = lied
    liar = lie(1.0, value)
    honest = add(0.5)
    await run_all()
    assert honest.weights.adopted == []
    assert honest.weights.value == 0.5
    assert [each[:2] for each in honest.swarm.reports] == [(liar, offence)]
    verdict = Verdict.FALSE if offence is Offence.FALSE_SCORE else Verdict.UNFIT
    checked = honest.saw(ClaimChecked)
    assert [(each.peer_id, each.claimed, each.verdict) for each in checked] == [
        (liar, 1.0, verdict)
    ]


async def test_weights_that_are_not_finite_never_reach_the_learner(
    autojump_clock, add, run_all, lie
):
    lie(1.0, math.nan)
    honest = add(0.5)
    await run_all()
    assert not any(map(math.isnan, honest.learner.scored))


async def test_the_next_best_is_adopted_when_the_best_has_lied(autojump_clock, add, run_all, lie):
    lie(1.0, 0.05)
    lie(0.7, 0.7, seed=98)
    honest = add(0.5)
    await run_all()
    assert honest.weights.value == 0.7
    assert honest.rounds.history[0].lies in {0, 1}  # it was found out when joining
    assert len(honest.swarm.reports) == 1


@pytest.mark.parametrize(
    "case",
    [
        (TransferError("they have it no more"), True),
        (3600.0, True),
        (StorageError("our disk is full"), False),
    ],
    ids=["gone", "slow", "our own disk"],
)
async def test_weights_that_cannot_be_had_cost_the_claimant_something_if_it_is_his_fault(
    autojump_clock, add, run_all, lie, case
):
    failure, is_theirs = case
    claimant = lie(0.9, 0.9)
    honest = add(0.5)
    honest.weights.failures["fetch"] = failure
    began = trio.current_time()
    await run_all()
    assert honest.weights.value == 0.5
    blamed = [each[:2] for each in honest.swarm.reports]
    assert blamed == ([(claimant, Offence.BROKEN_PROMISE)] if is_theirs else [])
    assert {each.verdict for each in honest.saw(ClaimChecked)} == {Verdict.UNAVAILABLE}
    assert trio.current_time() - began <= 1.0 + 60.0


async def test_weights_that_do_not_fit_are_not_adopted_and_what_one_has_stays(
    autojump_clock, add, run_all, lie
):
    claimant = lie(0.9, 0.9)
    honest = add(0.5)
    honest.weights.failures["adopt"] = CheckpointError("other shapes")
    await run_all()
    assert honest.weights.value == 0.5
    assert honest.ended.score == 0.5
    assert [each[:2] for each in honest.swarm.reports] == [(claimant, Offence.BAD_WEIGHTS)]


async def test_training_that_fails_is_told_and_tried_again(autojump_clock, add, run_all):
    one = add(0.5, start_peers=0)
    one.learner.failures = [DialError("layer 1 is gone"), DialError("layer 1 is gone")]
    began = trio.current_time()
    await run_all()
    assert [each.reason for each in one.saw(TrainingFailed)] == ["layer 1 is gone"] * 2
    assert one.ended.score == 0.5
    assert trio.current_time() - began == pytest.approx(3 * 1.0 + 2 * 1.0)


async def test_what_is_scored_is_what_others_get(autojump_clock, add, run_all):
    one = add(0.537, start_peers=0)
    one.weights.codec = "float16"  # the stand-in rounds to one digit
    await run_all()
    assert one.swarm.claims[-1].score == 0.5
    assert one.swarm.claims[-1].codec == "float16"


async def test_a_score_that_is_no_number_is_announced_as_none_at_all(autojump_clock, add, run_all):
    one = add(math.nan, start_peers=0)
    await run_all()
    assert one.swarm.claims[-1].score == 0.0


class Mean:
    """Stands for averaging: gives these values in turn, of these contributors, or fails."""

    def __init__(self, make_state, values, contributors=()):
        self.make_state = make_state
        self.values = values
        self.contributors = contributors
        self.begun = 0
        self.asked = []

    def extra(self):
        return b"terms"

    async def begin(self):
        await trio.lowlevel.checkpoint()
        self.begun += 1

    async def average(self, round_number, members):
        await trio.lowlevel.checkpoint()
        self.asked.append((round_number, tuple(members)))
        value = self.values.pop(0)
        if isinstance(value, Exception):
            raise value
        return Mixture(checkpoint=self.make_state(value), contributors=self.contributors or members)


async def test_averaged_weights_are_adopted_and_announced_for_those_who_come_late(
    autojump_clock, add, run_all, make_state
):
    averaging = [Mean(make_state, [0.55]), Mean(make_state, [0.55])]
    one, other = (
        add(value, averaging=each, mode="average")
        for value, each in zip((0.5, 0.6), averaging, strict=True)
    )
    await run_all()
    assert averaging[0].asked == [(1, (other.peer_id,))]
    assert averaging[0].begun == 1
    assert one.weights.value == 0.55
    assert one.swarm.claims[-1].score == 0.55
    (told,) = one.saw(Averaged)
    assert (told.members, told.contributors, told.score, told.adopted) == (2, 1, 0.55, True)
    assert one.learner.scored == [0.1, 0.5, 0.55]  # the average once, not again to announce it
    # The other one keeps more than an average that is worse by more than it tolerates.
    assert other.saw(Averaged)[0].adopted is False
    assert other.weights.value == 0.6


async def test_an_average_is_announced_with_the_score_of_what_others_get(
    autojump_clock, add, run_all, make_state
):
    one, _ = (add(0.5, averaging=Mean(make_state, [0.55]), mode="average") for _ in range(2))
    one.weights.codec = "float16"  # gives 0.6 for 0.55
    await run_all()
    assert (one.weights.value, one.swarm.claims[-1].score) == (0.55, 0.6)


@pytest.mark.parametrize("bad", [math.nan, 0.1, TransferError("too few took part")])
async def test_without_a_good_average_the_best_claim_is_taken(
    autojump_clock, add, run_all, make_state, bad
):
    one = add(0.5, averaging=Mean(make_state, [bad]), mode="average")
    other = add(0.7, averaging=Mean(make_state, [TransferError("no")]), mode="average")
    await run_all()
    assert one.weights.adopted == [(0.7, other.peer_id)]
    assert one.rounds.history[0].source == other.peer_id


def test_a_mode_that_averages_needs_something_that_does(add):
    with pytest.raises(ValueError, match="averages"):
        add(0.5, mode="average")


async def test_a_first_score_that_takes_others_is_tried_again_for_a_while(
    autojump_clock, add, run_all
):
    one = add(0.5)
    one.weights.failures["publish"] = TransferError("a host of another layer is gone")

    async def mend():
        await trio.sleep(3.5)
        one.weights.failures.clear()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        nursery.start_soon(run_all)
    assert one.ended.score == 0.5
    assert {each.round for each in one.saw(TrainingFailed)} == {0}
    assert 3 <= len(one.saw(TrainingFailed)) <= 4


@pytest.mark.parametrize(
    ("failure", "after"),
    [
        (DialError("nobody answers"), 10.0),
        (StorageError("the disk is full"), 0.0),
        (UnknownExpertError("not hosted"), 0.0),
    ],
)
async def test_training_does_not_begin_without_a_score(autojump_clock, add, failure, after):
    one = add(0.5)
    one.weights.failures["publish"] = failure
    began = trio.current_time()
    with pytest.raises(type(failure)):
        await one.run()
    assert trio.current_time() - began == pytest.approx(after, abs=0.1)
