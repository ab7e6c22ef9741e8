"""The rounds of one participant, without network, clock or weights."""

import math

import pytest

from p2pnode.config import RoundsSettings
from p2pnode.swarm.gossip.announcement import Announcement, Claim
from p2pnode.swarm.rounds.core import Average, Check, Finish, RoundsCore, Train, Wait
from p2pnode.swarm.rounds.events import End, Verdict
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

UID = Uid("open:test", "ffn.0")
PEERS = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(6)]
PATIENCE = 10.0


def said(
    peer, number, score, *, weights=None, scored_on=300, mode="best", version=1, is_final=False
):
    name = bytes([peer + 1]) * 32 if weights is None else weights
    return Announcement(
        uid=UID,
        peer_id=PEERS[peer],
        claim=Claim(
            round=number,
            score=score,
            scored_on=scored_on,
            weights=name,
            mode=mode,
            is_final=is_final,
        ),
        version=version,
        issued=0.0,
        lifetime=90.0,
    )


def core_of(*, score=0.1, held_out=300, now=0.0, lasting=True, **settings):
    chosen = RoundsSettings(**{"patience": PATIENCE, "rounds": 20, **settings})
    return RoundsCore(
        chosen,
        held_out=held_out,
        score=score,
        weights=b"\x00" * 32,
        now=now,
        lasting=lasting,
    )


def trained(core, score, now=0.0, others=(), silent=()):
    """Take a participant through its training, to where it collects."""
    core.receive_announcements(others, silent)
    assert isinstance(core.next_action(math.inf), Train)
    core.receive_trained(score, b"\xf0" * 32, now)


def in_round(number, score, others, **settings):
    """Return a core that has trained in a round, in which others say something."""
    core = core_of(**settings)
    core.receive_announcements((), ())
    assert isinstance(core.next_action(PATIENCE), Train)
    core.round = number
    core.receive_trained(score, b"\xf0" * 32, 0.0)
    core.receive_announcements(others, ())
    return core


# --- joining ------------------------------------------------------------------------------------


def test_who_is_alone_waits_for_others_and_begins_then():
    core = core_of()
    core.receive_announcements([], [])
    assert core.next_action(0.0) == Wait(until=PATIENCE)
    assert core.next_action(PATIENCE) == Train(round=1)


def test_who_needs_nobody_begins_at_once():
    core = core_of(start_peers=0)
    core.receive_announcements([], [])
    assert core.next_action(0.0) == Train(round=1)


def test_who_joins_waits_for_the_silent_but_not_beyond_its_patience():
    core = core_of()
    core.receive_announcements([], PEERS[:1])
    assert core.next_action(0.0) == Wait(until=PATIENCE)
    assert core.next_action(PATIENCE) == Train(round=1)


def test_those_who_start_together_begin_when_as_many_as_wanted_are_there():
    core = core_of(start_peers=2)
    core.receive_announcements([said(0, 0, 0.9)], [])
    assert core.next_action(0.0) == Wait(until=PATIENCE)
    core.receive_announcements([said(0, 0, 0.9), said(1, 0, 0.9)], [])
    assert core.next_action(0.0) == Train(round=1)


def test_who_finds_others_in_the_midst_of_rounds_waits_for_no_more_of_them():
    core = core_of(start_peers=5)
    core.receive_announcements([said(0, 4, 0.0)], [])
    assert core.next_action(0.0) == Train(round=4)


def test_a_late_joiner_adopts_the_best_weights_before_it_trains_and_goes_on_in_their_round():
    core = core_of()
    others = [said(0, 7, 0.8), said(1, 7, 0.9), said(2, 8, 0.7)]
    core.receive_announcements(others, [])
    check = core.next_action(0.0)
    assert (check.announcement, check.known) == (others[1], None)
    assert core.receive_checked(check.announcement, 0.89) is Verdict.ADOPTED
    core.receive_adopted(check.announcement)
    assert core.next_action(0.0) == Train(round=7)
    assert core.score == 0.89


def test_a_minority_cannot_send_a_joiner_to_the_end_of_the_run():
    core = core_of()
    liars = [said(3, 2**50, 0.0), said(4, 2**50, 0.0)]
    core.receive_announcements([said(0, 3, 0.0), said(1, 4, 0.0), said(2, 4, 0.0), *liars], [])
    assert core.next_action(0.0) == Train(round=4)


def test_who_joins_a_swarm_that_has_reached_the_threshold_ends_when_it_has_seen_so():
    core = core_of(threshold=0.9)
    core.receive_announcements([said(0, 7, 0.95)], [])
    check = core.next_action(0.0)
    core.receive_checked(check.announcement, 0.94)
    core.receive_adopted(check.announcement)
    assert core.next_action(0.0) == Finish(reason=End.THRESHOLD)


# --- training and collecting --------------------------------------------------------------------


def test_those_who_start_together_wait_for_each_other_in_the_first_round():
    core = core_of(start_peers=2)
    there = [said(0, 0, 0.1), said(1, 0, 0.1)]
    core.receive_announcements(there, [])
    assert core.next_action(0.0) == Train(round=1)
    core.receive_announcements(there, [])
    core.receive_trained(0.5, b"", 1.0)
    assert core.next_action(1.0) == Wait(until=1.0 + PATIENCE)
    core.receive_announcements([said(0, 1, 0.1), there[1]], [])
    assert core.next_action(2.0) == Wait(until=1.0 + PATIENCE)
    core.receive_announcements([said(0, 1, 0.1), said(1, 1, 0.1)], [])
    assert core.next_action(3.0) == Train(round=2)


def test_who_has_fallen_behind_announces_the_swarms_round():
    core = core_of(start_peers=0)
    core.receive_announcements([], [])
    assert core.next_action(0.0) == Train(round=1)
    core.receive_announcements([said(0, 5, 0.5), said(1, 6, 0.5), said(2, 6, 0.5)], [])
    core.receive_trained(0.6, b"", 0.0)
    assert core.round == 6


def test_a_round_goes_on_as_soon_as_all_who_took_part_in_the_last_one_have_announced():
    core = in_round(3, 0.9, [said(0, 2, 0.5), said(1, 3, 0.5)])
    assert core.next_action(1.0) == Wait(until=PATIENCE)
    core.receive_announcements([said(0, 3, 0.6), said(1, 3, 0.5)], [])
    assert core.next_action(1.0) == Train(round=4)
    assert core.ended.heard == 2


def test_who_never_spoke_is_waited_for_in_the_first_round_only():
    core = core_of()
    core.receive_announcements([], PEERS[:1])
    core.next_action(PATIENCE)
    core.receive_trained(0.9, b"", 20.0)
    assert core.next_action(20.0) == Wait(until=20.0 + PATIENCE)
    assert core.next_action(30.0) == Train(round=2)
    core.receive_trained(0.9, b"", 40.0)
    assert core.next_action(40.0) == Train(round=3)


def test_who_missed_the_last_round_is_not_waited_for():
    core = in_round(3, 0.9, [said(0, 1, 0.5)])
    assert core.next_action(0.0) == Train(round=4)


def test_a_slow_peer_costs_one_patience_until_it_has_been_in_time_again():
    core = in_round(1, 0.9, [said(0, 1, 0.1)])
    assert core.next_action(0.0) == Train(round=2)
    core.receive_trained(0.9, b"", 0.0)
    assert isinstance(core.next_action(0.0), Wait)
    assert core.next_action(PATIENCE) == Train(round=3)
    core.receive_announcements([said(0, 2, 0.1)], [])  # it has come, too late
    core.receive_trained(0.9, b"", 20.0)
    assert core.next_action(20.0) == Train(round=4)  # not waited for
    core.receive_announcements([said(0, 4, 0.1)], [])
    core.receive_trained(0.9, b"", 30.0)
    core.next_action(30.0)
    core.receive_trained(0.9, b"", 30.0)
    assert isinstance(core.next_action(30.0), Wait)  # it was in time, and is waited for again


def test_who_has_ended_is_not_waited_for_and_its_weights_are_still_worth_a_look():
    ended = said(0, 3, 0.9, is_final=True)
    core = in_round(4, 0.5, [ended, said(1, 4, 0.4)])
    assert core.next_action(0.0).announcement == ended
    core = in_round(9, 0.5, [ended])
    assert core.next_action(0.0).announcement == ended


def test_who_cannot_be_reached_is_not_waited_for_until_it_is_back():
    core = in_round(4, 0.5, [])
    others = [said(0, 3, 0.1), said(1, 4, 0.4)]
    core.receive_announcements(others, [PEERS[2]], gone=[PEERS[0], PEERS[2]])
    assert core.next_action(0.0) == Train(round=5)
    core = in_round(4, 0.5, [])
    core.receive_announcements(others, [], gone=[])
    assert core.next_action(0.0) == Wait(until=PATIENCE)


def test_a_joiner_goes_on_in_the_round_of_those_who_go_on():
    ended = [said(n, 3, 0.0, is_final=True) for n in range(3)]
    core = core_of()
    core.receive_announcements([*ended, said(4, 8, 0.0)], [])
    assert core.next_action(0.0) == Train(round=8)
    core = core_of()
    core.receive_announcements(ended, [])
    assert core.next_action(0.0) == Train(round=3)


def test_announcements_of_another_mode_do_not_count():
    core = in_round(3, 0.1, [said(0, 3, 0.9, mode="average")])
    assert core.next_action(0.0) == Train(round=4)


# --- checking -----------------------------------------------------------------------------------


def checks_of(core, found_of):
    """Let a core check all that it wants; returns whose claims, in order, and the verdicts."""
    seen = []
    while isinstance(action := core.next_action(math.inf), Check):
        peer = PEERS.index(action.announcement.peer_id)
        known = action.known
        found = found_of[peer] if known is None else known
        verdict = core.receive_checked(action.announcement, found)
        seen.append((peer, verdict, known is not None))
        if verdict is Verdict.ADOPTED:
            core.receive_adopted(action.announcement)
    return seen


def test_claims_are_checked_from_the_best_on_until_one_is_better_here():
    others = [said(0, 3, 0.7), said(1, 3, 0.9), said(2, 3, 0.8), said(3, 3, 0.4)]
    core = in_round(3, 0.6, others)
    found = {1: 0.55, 2: 0.78, 0: 0.99}
    assert checks_of(core, found) == [
        (1, Verdict.FALSE, False),
        (2, Verdict.ADOPTED, False),
    ]
    assert (core.ended.source, core.ended.score, core.ended.lies) == (PEERS[2], 0.78, 1)
    assert core.next_action(0.0) == Train(round=4)


def test_what_others_adopt_meanwhile_does_not_change_what_is_checked():
    others = [said(0, 4, 0.8), said(1, 4, 0.7)]
    core = in_round(4, 0.5, others)
    assert core.next_action(0.0).announcement == others[0]
    assert core.receive_checked(others[0], 0.49) is Verdict.FALSE
    adopted = said(1, 4, 0.78, weights=others[0].claim.weights, version=2)
    core.receive_announcements([others[0], adopted], ())
    assert core.next_action(0.0).announcement == others[1]
    core.receive_announcements([others[0]], ())  # it is not believed any more
    assert core.next_action(0.0) == Train(round=5)


def test_what_may_be_true_but_is_not_better_here_is_no_lie_and_is_not_adopted():
    core = in_round(3, 0.80, [said(0, 3, 0.82)])
    assert checks_of(core, {0: 0.79}) == [(0, Verdict.NOT_BETTER, False)]
    assert (core.score, core.ended.source, core.ended.lies) == (0.80, None, 0)


@pytest.mark.parametrize("found", [math.nan, math.inf, -0.1, 1.1, None])
def test_weights_whose_score_is_no_number_are_unfit_and_never_adopted(found):
    core = in_round(3, 0.0, [said(0, 3, 1.0)])
    assert checks_of(core, {0: found}) == [(0, Verdict.UNFIT, False)]
    assert core.weights == b"\xf0" * 32


def test_a_claim_above_one_is_false_whatever_its_weights_score():
    core = in_round(3, 0.1, [said(0, 3, 1.5)])
    assert checks_of(core, {0: 1.0}) == [(0, Verdict.FALSE, False)]


def test_overstated_weights_are_not_adopted_even_where_they_are_better():
    core = in_round(3, 0.1, [said(0, 3, 1.0)])
    assert checks_of(core, {0: 0.6}) == [(0, Verdict.FALSE, False)]
    assert core.score == 0.1


def test_a_lie_about_somebodys_weights_does_not_keep_the_others_from_taking_them():
    same = b"\x07" * 32
    core = in_round(3, 0.2, [said(0, 3, 1.0, weights=same), said(1, 3, 0.6, weights=same)])
    assert checks_of(core, {0: 0.6}) == [
        (0, Verdict.FALSE, False),
        (1, Verdict.ADOPTED, True),
    ]
    assert core.ended.fetched == 1


def test_all_who_have_the_same_weights_are_named_as_holders_the_claimant_first():
    same = b"\x07" * 32
    others = [said(peer, 3, 0.5 + peer / 10, weights=same) for peer in range(3)]
    check = in_round(3, 0.2, [*others, said(3, 3, 0.4)]).next_action(0.0)
    assert check.holders == (PEERS[2], *sorted(PEERS[:2]))


def test_equal_scores_come_to_the_lower_digest_at_every_peer():
    low, high = b"\x01" * 32, b"\xff" * 32
    core = in_round(3, 0.5, [said(0, 3, 0.5, weights=high), said(1, 3, 0.5, weights=low)])
    assert checks_of(core, {1: 0.5}) == [(1, Verdict.ADOPTED, False)]
    assert core.weights == low


def test_of_equal_claims_the_lower_digest_is_checked_first():
    others = [said(0, 3, 0.9, weights=b"\x02" * 32), said(1, 3, 0.9, weights=b"\x01" * 32)]
    assert in_round(3, 0.5, others).next_action(0.0).announcement is others[1]


@pytest.mark.parametrize(
    "claim",
    [
        said(0, 1, 0.9),  # of the round before the last
        said(0, 3, 0.9, scored_on=99),
        said(0, 3, 0.9, weights=b""),
        said(0, 3, None),
        said(0, 3, 0.2),
    ],
    ids=["old", "scored on too little", "without weights", "without a score", "not better"],
)
def test_a_claim_that_is_not_worth_a_look_costs_nothing(claim):
    core = in_round(3, 0.3, [claim])
    assert core.next_action(math.inf) == Train(round=4)
    assert core.ended.fetched == 0


def test_no_more_claims_are_fetched_in_a_round_than_allowed():
    core = in_round(3, 0.1, [said(peer, 3, 1.0) for peer in range(5)], max_checked=3)
    assert len(checks_of(core, dict.fromkeys(range(5), 0.1))) == 3
    assert core.next_action(0.0) == Train(round=4)


def test_a_refused_claim_is_not_checked_again_but_a_new_one_is():
    core = in_round(3, 0.1, [said(0, 3, 1.0)])
    checks_of(core, {0: 0.1})
    trained(core, 0.1, others=[said(0, 3, 1.0)])
    core.receive_announcements([said(0, 3, 1.0)], [])
    assert checks_of(core, {}) == []
    trained(core, 0.1)
    core.receive_announcements([said(0, 5, 1.0, weights=b"\x55" * 32, version=2)], [])
    assert checks_of(core, {0: 0.2}) == [(0, Verdict.FALSE, False)]


def test_weights_that_were_not_better_are_taken_later_without_scoring_them_again():
    core = in_round(3, 0.80, [said(0, 3, 0.82)])
    assert checks_of(core, {0: 0.79}) == [(0, Verdict.NOT_BETTER, False)]
    trained(core, 0.70, others=[said(0, 3, 0.82)])  # training has made ours worse
    core.receive_announcements([said(0, 3, 0.82)], [])
    assert checks_of(core, {}) == [(0, Verdict.ADOPTED, True)]


def test_scores_that_do_not_last_are_found_anew_in_the_next_round():
    other = said(0, 4, 0.56)
    core = in_round(4, 0.5, [other], lasting=False)
    assert core.receive_checked(core.next_action(0.0).announcement, 0.45) is Verdict.NOT_BETTER
    assert core.next_action(0.0) == Train(round=5)
    core.receive_trained(0.5, b"\xf1" * 32, 0.0)
    check = core.next_action(PATIENCE)
    assert (check.announcement, check.known) == (other, None)
    assert core.receive_checked(other, 0.55) is Verdict.ADOPTED


def test_weights_that_cannot_be_had_are_no_lie_and_not_asked_for_again():
    core = in_round(3, 0.1, [said(0, 3, 0.9)])
    check = core.next_action(math.inf)
    verdict = core.receive_checked(check.announcement, None, Verdict.UNAVAILABLE)
    assert verdict is Verdict.UNAVAILABLE
    assert core.next_action(0.0) == Train(round=4)
    assert core.ended.lies == 0


# --- averaging ----------------------------------------------------------------------------------


def averaging(score, others, **settings):
    return in_round(3, score, others, mode="average", **settings)


def test_those_who_have_announced_the_round_average():
    others = [said(peer, number, 0.5, mode="average") for peer, number in ((0, 3), (1, 3), (2, 1))]
    core = averaging(0.5, others)
    assert core.next_action(0.0) == Average(round=3, members=tuple(sorted(PEERS[:2])))
    assert core.would_take(0.6)
    core.receive_averaged(0.6)
    assert core.next_action(0.0) == Train(round=4)
    assert core.ended.score == 0.6


@pytest.mark.parametrize("found", [0.47, math.nan, 1.5])
def test_averaged_weights_that_are_worse_or_no_number_are_not_taken(found):
    assert not averaging(0.5, []).would_take(found)
    assert averaging(0.5, []).would_take(0.481)


def test_who_has_no_average_takes_the_best_weights_instead():
    core = averaging(0.5, [said(0, 3, 0.7, mode="average")])
    assert isinstance(core.next_action(0.0), Average)
    core.receive_averaged(None)
    assert checks_of(core, {0: 0.7}) == [(0, Verdict.ADOPTED, False)]


def test_who_has_ended_or_cannot_be_reached_does_not_average():
    core = in_round(2, 0.5, [], mode="average")
    others = [said(n, 2, 0.4, mode="average", is_final=n == 1) for n in range(3)]
    core.receive_announcements(others, [], gone=[PEERS[2]])
    assert core.next_action(PATIENCE) == Average(round=2, members=(PEERS[0],))


def test_who_is_alone_in_a_round_does_not_average():
    assert averaging(0.5, []).next_action(math.inf) == Train(round=4)


# --- the end ------------------------------------------------------------------------------------


def test_the_training_ends_at_the_threshold_that_ones_own_hold_out_says_is_reached():
    core = in_round(3, 0.5, [said(0, 3, 0.95)], threshold=0.9)
    checks_of(core, {0: 0.91})
    assert core.next_action(0.0) == Finish(reason=End.THRESHOLD)


def test_a_threshold_that_only_others_claim_to_reach_does_not_end_it():
    core = in_round(3, 0.5, [said(0, 3, 0.91)], threshold=0.9)
    checks_of(core, {0: 0.89})
    assert core.next_action(0.0) == Train(round=4)


def test_the_training_ends_after_the_last_round():
    assert in_round(20, 0.5, []).next_action(math.inf) == Finish(reason=End.ROUNDS)


def test_who_is_sent_beyond_the_last_round_still_takes_part_in_it():
    core = core_of()
    core.receive_announcements([said(0, 99, 0.0)], [])
    assert core.next_action(0.0) == Train(round=20)
    core.receive_trained(0.5, b"", 0.0)
    assert core.next_action(math.inf) == Finish(reason=End.ROUNDS)


def rounds_until_the_end(core, others_in):
    """Train, in rounds in which others say what `others_in` gives for each; tell how it ends."""
    while True:
        number = core.round
        core.receive_announcements(*others_in(number))
        core.receive_trained(0.5, b"\xf0" * 32, 0.0)
        core.receive_announcements(*others_in(number))
        match core.next_action(math.inf):
            case Finish(reason=reason):
                return number, reason
            case Train():
                pass


def test_who_is_left_when_all_others_have_ended_trains_a_few_rounds_more_at_most():
    core = core_of(last_rounds=3)
    core.receive_announcements([said(0, 1, 0.1)], [])
    assert core.next_action(math.inf) == Train(round=1)

    def others_in(number):
        return [said(n, min(number, 4), 0.4, is_final=number >= 4) for n in range(2)], []

    assert rounds_until_the_end(core, others_in) == (6, End.LEFT)


@pytest.mark.parametrize(
    "others_in",
    [
        pytest.param(lambda _number: ([], []), id="nobody has ever been there"),
        pytest.param(
            lambda number: ([said(0, 1, 0.4, is_final=True), said(1, number, 0.4)], []),
            id="one goes on",
        ),
        pytest.param(
            lambda _number: ([said(0, 1, 0.4, is_final=True), said(1, 0, 0.4)], []),
            id="one is about to begin",
        ),
        pytest.param(
            lambda number: (
                [said(0, 1, 0.4, is_final=True), said(1, number, 0.4, is_final=number % 3 > 0)],
                [],
            ),
            id="one comes back in time",
        ),
    ],
)
def test_who_is_not_left_by_half_of_the_others_trains_to_the_last_round(others_in):
    core = core_of(last_rounds=3)
    core.receive_announcements([], [])
    assert core.next_action(math.inf) == Train(round=1)
    assert rounds_until_the_end(core, others_in) == (20, End.ROUNDS)


def test_two_of_four_that_are_left_train_a_few_rounds_more_at_most():
    core = core_of(rounds=20, last_rounds=3)
    core.receive_announcements([], [])
    assert core.next_action(math.inf) == Train(round=1)

    def others_in(number):
        return [said(n, number, 0.4, is_final=n > 0 and number >= 5) for n in range(3)], []

    assert rounds_until_the_end(core, others_in) == (7, End.LEFT)


def test_those_that_cannot_be_reached_when_others_have_ended_are_no_company():
    core = core_of(last_rounds=3)
    core.receive_announcements([], [])
    assert core.next_action(math.inf) == Train(round=1)
    others = [said(0, 1, 0.4, is_final=True), said(1, 1, 0.4)]
    assert rounds_until_the_end(core, lambda _number: (others, [], [PEERS[1]])) == (3, End.LEFT)


def test_ends_are_remembered_when_those_that_ended_have_left():
    core = core_of(last_rounds=3)
    core.receive_announcements([], [])
    assert core.next_action(math.inf) == Train(round=1)

    def others_in(number):
        return ([said(0, 1, 0.4, is_final=True)], []) if number == 1 else ([], [])

    assert rounds_until_the_end(core, others_in) == (3, End.LEFT)


def after_averages(core, scores, others_in):
    """Average in rounds, to these scores; tell how each one ends."""
    ends = []
    for number, score in enumerate(scores, core.round):
        core.receive_announcements(others_in(number), [])
        assert core.next_action(math.inf) == Train(round=number)
        core.receive_trained(score, b"\xf0" * 32, 0.0)
        assert isinstance(core.next_action(math.inf), Average)
        core.receive_averaged(score, b"\xf1" * 32)
        ends.append(core.next_action(math.inf))
        if isinstance(ends[-1], Finish):
            break
    return ends


def company(**scores_from):
    """Return what two others say in a round: `one` and `other` give what they score from when."""

    def said_in(number):
        return [
            said(n, number, max([score for at, score in says if at <= number]), mode="average")
            for n, says in enumerate(scores_from.values())
        ]

    return said_in


def averaging_core(**settings):
    core = core_of(mode="average", threshold=0.9, **settings)
    core.receive_announcements([], [])
    assert core.next_action(math.inf) == Train(round=1)
    return core


def test_who_averages_stays_at_the_threshold_for_those_who_have_not_been_there():
    others = company(one=[(1, 0.4), (2, 0.95)], other=[(1, 0.4), (4, 0.9)])
    ends = after_averages(averaging_core(), [0.8, 0.92, 0.93, 0.94], others)
    assert ends == [Train(round=2), Train(round=3), Train(round=4), Finish(reason=End.THRESHOLD)]


def test_who_has_stayed_ends_when_the_threshold_is_reached_again():
    others = company(one=[(1, 0.4), (3, 0.95)])
    ends = after_averages(averaging_core(), [0.8, 0.92, 0.88, 0.89, 0.91], others)
    assert ends[2:] == [Train(round=4), Train(round=5), Finish(reason=End.THRESHOLD)]


def test_who_has_been_at_the_threshold_is_not_stayed_for_when_it_is_below_again():
    others = company(one=[(1, 0.95)])
    core = averaging_core()
    core.receive_announcements(others(1), [])
    below = company(one=[(1, 0.4)])
    assert after_averages(core, [0.92], below) == [Finish(reason=End.THRESHOLD)]


def test_nobody_stays_for_ever():
    ends = after_averages(averaging_core(last_rounds=3), [0.92] * 9, company(one=[(1, 0.4)]))
    assert ends[-1] == Finish(reason=End.THRESHOLD)
    assert len(ends) == 4


@pytest.mark.parametrize("left", ["ended", "gone", "behind"])
def test_nobody_stays_for_those_who_have_left(left):
    core, others = averaging_core(), company(one=[(1, 0.4)])
    core.receive_announcements(others(1), [])
    core.receive_trained(0.92, b"\xf0" * 32, 0.0)
    assert isinstance(core.next_action(math.inf), Average)
    core.receive_announcements(
        [said(0, int(left != "behind"), 0.4, mode="average", is_final=left == "ended")],
        [],
        [PEERS[0]] if left == "gone" else [],
    )
    core.receive_averaged(0.92, b"\xf1" * 32)
    assert core.next_action(math.inf) == Finish(reason=End.THRESHOLD)


@pytest.mark.parametrize(("lasting", "end"), [(True, Finish(reason=End.THRESHOLD)), (False, None)])
def test_the_best_stay_for_others_only_where_their_weights_need_not_be_as_good_there(lasting, end):
    core = in_round(3, 0.92, [said(0, 3, 0.4)], threshold=0.9, lasting=lasting)
    assert core.next_action(math.inf) == (end or Train(round=4))
