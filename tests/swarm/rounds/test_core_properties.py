"""Whatever others say, and whenever: rounds go on within their bounds, and lies are not adopted."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.config import RoundsSettings
from p2pnode.swarm.gossip.announcement import Announcement, Claim
from p2pnode.swarm.rounds.claims import is_lie
from p2pnode.swarm.rounds.core import Average, Check, Finish, RoundsCore, Train, Wait
from p2pnode.swarm.rounds.events import End, Verdict
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

UID = Uid("open:test", "ffn.0")
PEERS = [PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in range(5)]
HELD_OUT = 200
SCORES = st.floats(0, 1)
CLAIMS = st.builds(
    Claim,
    round=st.one_of(st.integers(0, 9), st.just(2**53)),
    score=st.one_of(st.none(), SCORES, st.floats(allow_nan=False, allow_infinity=False)),
    scored_on=st.integers(0, 10**6),
    weights=st.sampled_from([b"", *(bytes([n]) * 32 for n in range(4))]),
    mode=st.sampled_from(["best", "average"]),
    is_final=st.booleans(),
)
HEARD = st.dictionaries(st.sampled_from(PEERS), CLAIMS)
# What weights really score here, by their name; None and NaN for those that cannot be scored.
TRUTHS = st.lists(st.one_of(SCORES, st.just(math.nan), st.none()), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["best", "average"]), TRUTHS)
def test_rounds_go_on_within_their_bounds_and_lies_are_not_adopted(data, mode, truths):
    chosen = RoundsSettings(mode=mode, rounds=6, patience=10.0, max_checked=2, min_hold_out=50)
    core = RoundsCore(chosen, held_out=HELD_OUT, score=0.1, weights=b"\xaa" * 32, now=0.0)
    now, versions, last_round, fetched, began = 0.0, 0, 0, 0, 0.0
    for _ in range(60):
        heard = []
        for peer_id, claim in data.draw(HEARD).items():
            versions += 1
            heard.append(
                Announcement(
                    uid=UID,
                    peer_id=peer_id,
                    claim=claim,
                    version=versions,
                    issued=now,
                    lifetime=90.0,
                )
            )
        silent, gone = (data.draw(st.sets(st.sampled_from(PEERS))) for _ in range(2))
        core.receive_announcements(heard, silent, gone)
        before = core.score
        match core.next_action(now):
            case Wait(until=until):
                assert now < until <= began + chosen.patience
                now += data.draw(st.floats(0.1, 30.0))
            case Train(round=number):
                assert last_round < number <= chosen.rounds
                last_round, fetched = number, 0
                now += 1.0
                began = now
                core.receive_trained(data.draw(SCORES), b"\xbb" * 32, now)
                assert number <= core.round <= chosen.rounds
                last_round = core.round
            case Average(members=members):
                assert members == tuple(sorted(members))
                found = data.draw(st.one_of(st.none(), SCORES))
                taken = found if found is not None and core.would_take(found) else None
                core.receive_averaged(taken)
                assert core.score >= before - chosen.max_loss
                fetched = 0 if taken is not None else fetched
            case Check(announcement=announcement, known=known):
                fetched += known is None
                assert fetched <= chosen.max_checked
                claim = announcement.claim
                found = truths[claim.weights[0]] if known is None else known
                verdict = core.receive_checked(announcement, found)
                if verdict is Verdict.ADOPTED:
                    assert before <= found <= 1
                    assert claim.score <= 1
                    assert not is_lie(
                        claim.score,
                        claim.scored_on,
                        found,
                        HELD_OUT,
                        false_alarm=chosen.false_alarm,
                        slack=chosen.slack,
                    )
                    core.receive_adopted(announcement)
                    assert (core.score, core.weights) == (found, claim.weights)
                else:
                    assert core.score == before
            case Finish(reason=reason):
                assert reason is End.LEFT or (
                    core.round == chosen.rounds or core.score >= chosen.threshold
                )
                return
