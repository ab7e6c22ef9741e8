import dataclasses
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pnode.config import PubSubSettings
from p2pnode.errors import ProtocolError
from p2pnode.protocols.pubsub.core import Router, Verdict
from p2pnode.protocols.pubsub.messages import (
    Graft,
    IDontWant,
    IHave,
    Interest,
    IWant,
    Message,
    PeerHint,
    Prune,
    Rpc,
    RpcLimits,
    decode,
    encode,
)
from p2pnode.protocols.pubsub.signing import sign
from p2pnode.protocols.pubsub.state import (
    FLOODSUB,
    GOSSIPSUB_1_0,
    GOSSIPSUB_1_1,
    GOSSIPSUB_1_2,
    PROTOCOLS,
    Cancel,
    Deliver,
    Dial,
    MeshChanged,
    Report,
    Send,
    Validate,
)
from p2pnode.wire.keys import PrivateKey

TOPIC = "news"


def subscribed(bench, *peers, **settings):
    """A router that subscribes to the topic, with peers that do."""
    made = bench(**settings)
    made.router.subscribe(TOPIC, made.now)
    made.join(*peers)
    made.router.take_outputs()
    return made


def mesh(made):
    return {n for n in range(60) if made.peer(n) in made.router.mesh_of(TOPIC)}


# --- peers, topics and meshes -------------------------------------------------------------------


def test_a_new_peer_is_told_our_topics_and_then_of_each_change(bench):
    made = bench()
    made.router.subscribe("a", made.now)
    made.join(1, topic=None)
    assert made.sent() == [(made.peer(1), Interest("a", wanted=True))]
    made.router.subscribe("b", made.now)
    made.router.unsubscribe("a", made.now)
    assert made.sent() == [
        (made.peer(1), Interest("b", wanted=True)),
        (made.peer(1), Interest("a", wanted=False)),
    ]
    assert made.router.topics == ["b"]


def test_subscribing_grafts_d_peers(bench):
    made = bench()
    made.join(*range(1, 21))
    made.router.subscribe(TOPIC, made.now)
    grafted = {peer for peer, _ in made.sent(Graft)}
    assert grafted == set(made.router.mesh_of(TOPIC))
    assert len(grafted) == made.settings.d
    assert len(made.router.peers_of(TOPIC)) == 20


def test_peers_that_come_later_are_grafted_until_there_are_d_low(bench):
    made = subscribed(bench, *range(1, 21))
    assert len(mesh(made)) == made.settings.d_low
    made.beat()
    assert len(mesh(made)) == made.settings.d_low


def test_a_mesh_that_has_too_few_is_filled_to_d_at_the_next_heartbeat(bench):
    made = subscribed(bench, *range(1, 21))
    for n in list(mesh(made))[:2]:
        made.router.remove_peer(made.peer(n), made.now)
    made.beat()
    assert len(mesh(made)) == made.settings.d


def test_unsubscribing_prunes_the_mesh_with_a_short_backoff(bench):
    made = subscribed(bench, 1, 2)
    made.router.unsubscribe(TOPIC, made.now)
    assert made.sent(Prune) == [(made.peer(n), Prune(TOPIC, (), 10)) for n in (1, 2)]
    made.router.subscribe(TOPIC, made.now)
    assert mesh(made) == set()
    made.now += 11
    made.beat()
    assert mesh(made) == {1, 2}


def test_who_leaves_the_topic_or_the_network_leaves_the_mesh(bench):
    made = subscribed(bench, 1, 2, 3)
    made.say(1, Interest(TOPIC, wanted=False))
    made.router.remove_peer(made.peer(2), made.now)
    assert mesh(made) == {3}
    assert made.router.peers == [made.peer(1), made.peer(3)]
    assert made.router.peers_of(TOPIC) == [made.peer(3)]
    assert [each.joined for each in made.take(MeshChanged)] == [False, False]


def test_a_graft_is_taken_and_not_answered(bench):
    made = subscribed(bench, *range(1, 5))
    made.join(9)
    assert 9 not in mesh(made)
    made.say(9, Graft(TOPIC))
    assert 9 in mesh(made)
    assert made.sent((Graft, Prune)) == []


def test_a_graft_for_a_topic_we_do_not_have_gets_no_answer(bench):
    made = bench()
    made.join(1)
    made.say(1, Graft("other"))
    assert made.router.take_outputs() == []


def test_who_does_not_subscribe_is_not_taken_in(bench):
    made = subscribed(bench)
    made.join(1, topic=None)
    made.router.take_outputs()
    made.say(1, Graft(TOPIC))
    assert mesh(made) == set()
    assert made.sent(Prune) == [(made.peer(1), Prune(TOPIC, (), 60))]


def test_one_rpc_cannot_go_on_when_it_has_cost_its_sender_our_ear(bench):
    made = subscribed(bench, 1)
    made.say(1, Prune(TOPIC, (), 60), *[Graft(TOPIC)] * 1000)
    assert made.score(1) < made.settings.graylist_threshold
    assert len(made.sent(Prune)) < 20


def test_a_full_mesh_turns_down_those_who_come_but_not_those_we_dialled(bench):
    made = subscribed(bench, d_high=6, d_score=4)
    made.join(*range(1, 11))
    made.join(11, outbound=True)
    for n in range(1, 12):
        made.say(n, Graft(TOPIC))
    assert mesh(made) == {*range(1, 7), 11}
    turned_down = {peer for peer, _ in made.sent(Prune)}
    assert turned_down == {made.peer(n) for n in range(7, 11)}


def test_an_overfull_mesh_keeps_the_best_some_others_and_those_we_dialled(bench):
    made = subscribed(bench)
    made.join(*range(1, 19))
    made.join(19, 20, outbound=True)
    for n in (*range(1, 13), 19, 20):
        made.say(n, Graft(TOPIC))
    for n in (1, 2, 3, 4):
        made.bring(n, made.write(50))
    assert len(mesh(made)) == 14 > made.settings.d_high
    made.router.take_outputs()
    made.beat()
    assert mesh(made) == {1, 2, 3, 4, 19, 20}
    pruned = dict(made.sent(Prune))
    assert len(pruned) == 14 - made.settings.d
    assert set(pruned.values()) == {Prune(TOPIC, (), 60)}


def test_a_mesh_without_peers_that_we_dialled_takes_some_in(bench):
    made = subscribed(bench, *range(1, 7))
    for n in range(1, 7):
        made.say(n, Graft(TOPIC))
    made.join(11, 12, 13, outbound=True)
    made.beat()
    assert len(mesh(made) & {11, 12, 13}) == made.settings.d_out


def test_who_is_pruned_may_not_come_back_before_its_backoff_is_over(bench):
    made = subscribed(bench, 1)
    made.say(1, Prune(TOPIC, (), 30))
    made.beat(29)
    assert mesh(made) == set()
    made.beat(2)
    assert mesh(made) == {1}


def test_a_shorter_backoff_does_not_replace_a_longer_one(bench):
    made = subscribed(bench, 1)
    made.say(1, Prune(TOPIC, (), 30), Prune(TOPIC, (), 1))
    made.beat(29)
    assert mesh(made) == set()


def test_an_endless_backoff_is_cut_and_a_peer_of_1_0_has_the_usual_one(bench):
    made = subscribed(bench, 1, max_prune_backoff=100.0)
    made.say(1, Prune(TOPIC, (), 2**64 - 1))
    made.beat(101)
    assert mesh(made) == {1}
    made.say(1, Prune(TOPIC))
    made.beat(58)
    assert mesh(made) == set()
    made.beat(3)
    assert mesh(made) == {1}


def test_grafting_in_the_backoff_is_turned_down_and_penalised_twice_if_in_haste(bench):
    made = subscribed(bench, 1, behaviour_penalty_threshold=0.0, behaviour_penalty_weight=-1.0)
    made.router.unsubscribe(TOPIC, made.now)
    made.router.subscribe(TOPIC, made.now)
    made.router.take_outputs()
    made.now += 5
    made.say(1, Graft(TOPIC))
    assert made.score(1) == -1  # half a minute after the PRUNE has the unsubscribe's backoff
    assert len(made.take(Report)) == 1
    made.now += 1
    made.say(1, Graft(TOPIC))  # six seconds after being pruned for a minute
    assert made.score(1) == -9
    assert made.sent(Prune) == [(made.peer(1), Prune(TOPIC, (), 60))]
    made.now += 30
    made.say(1, Graft(TOPIC))
    assert made.score(1) == -16
    assert mesh(made) == set()


def test_peers_of_a_bad_score_are_pruned_and_not_grafted(bench):
    scores = {}
    made = subscribed(bench, *range(1, 5), app_score=lambda peer: scores.get(peer, 0.0))
    assert mesh(made) == {1, 2, 3, 4}
    scores[made.peer(1)] = -1.0
    made.beat()
    assert mesh(made) == {2, 3, 4}
    assert made.sent(Prune) == [(made.peer(1), Prune(TOPIC, (), 60))]
    scores[made.peer(5)] = -1.0
    made.join(5)
    made.say(5, Graft(TOPIC))
    assert 5 not in mesh(made)


def test_a_poor_mesh_takes_in_better_peers_from_time_to_time(bench):
    scores = {}
    made = subscribed(bench, *range(1, 7), app_score=lambda peer: scores.get(peer, 1.0), d_out=0)
    for n in range(1, 7):
        made.say(n, Graft(TOPIC))
    made.join(11, 12, 13)
    scores |= {made.peer(n): 2.0 for n in (11, 12)} | {made.peer(13): 0.5}
    made.beat(59)
    assert mesh(made) == {1, 2, 3, 4, 5, 6}
    made.beat()
    assert mesh(made) == {1, 2, 3, 4, 5, 6, 11, 12}


def test_a_good_mesh_is_left_alone(bench):
    scores = {}
    made = subscribed(bench, *range(1, 7), app_score=lambda p: scores.get(p, 4.0), d_out=0)
    for n in range(1, 7):
        made.say(n, Graft(TOPIC))
    made.join(11)
    scores[made.peer(11)] = 9.0
    made.beat(120)
    assert mesh(made) == {1, 2, 3, 4, 5, 6}


def test_a_peer_may_not_subscribe_without_end(bench):
    made = bench(max_topics_per_peer=3, max_topic_bytes=10)
    made.join(1, topic=None)
    made.say(1, *[Interest(f"t{n}", wanted=True) for n in range(5)])
    made.say(1, Interest("x" * 11, wanted=True))
    assert sum(made.peer(1) in made.router.peers_of(f"t{n}") for n in range(5)) == 3
    assert made.router.peers_of("x" * 11) == []
    assert len(made.take(Report)) == 3


# --- messages -----------------------------------------------------------------------------------


def test_a_valid_message_is_delivered_and_goes_to_the_mesh_but_not_back(bench):
    made = subscribed(bench, 1, 2, 3)
    made.join(4, topic=None)
    message = made.write(2)
    outputs = made.bring(1, message)
    assert [each.message for each in outputs if isinstance(each, Deliver)] == [message]
    targets = [each.peer_id for each in outputs if isinstance(each, Send)]
    assert targets == [made.peer(3)]  # not to its bringer, nor to its author
    assert made.bring(3, message) == []
    assert made.router.counts.duplicates == 1


def test_nothing_leaves_before_the_verdict(bench):
    made = subscribed(bench, 1, 2, 3)
    message = made.write(9)
    (request,) = made.bring(1, message, verdict=None)
    assert request == Validate(made.router.id_of(message), message, made.peer(1))
    assert made.bring(2, message, verdict=None) == []
    made.router.receive_verdict(request.message_id, Verdict.ACCEPT, made.now)
    assert [peer for peer, _ in made.sent(Message)] == [made.peer(3)]  # 2 has brought it itself
    made.router.receive_verdict(request.message_id, Verdict.ACCEPT, made.now)
    assert made.router.take_outputs() == []


@pytest.mark.parametrize(("verdict", "blamed"), [(Verdict.REJECT, True), (Verdict.IGNORE, False)])
def test_only_accepted_messages_go_on_and_only_rejected_ones_are_blamed(bench, verdict, blamed):
    made = subscribed(bench, 1, 2)
    message = made.write(9)
    (request,) = made.bring(1, message, verdict=None)
    made.bring(2, message, verdict=None)
    made.router.receive_verdict(request.message_id, verdict, made.now)
    assert made.router.take_outputs() == []
    assert (made.score(1) < 0, made.score(2) < 0) == (blamed, blamed)


def test_messages_of_topics_we_do_not_want_are_dropped_and_not_blamed(bench):
    made = subscribed(bench, 1)
    assert made.bring(1, made.write(9, topic="other")) == []
    assert made.router.counts.unwanted == 1
    assert made.score(1) == 0


def test_a_forged_message_is_refused_blamed_and_does_not_shut_out_the_true_one(bench):
    made = subscribed(bench, 1, 2)
    message = made.write(9)
    outputs = made.bring(1, dataclasses.replace(message, data=b"forged"))
    assert outputs == [
        Report(made.peer(1), "it sent a message that is refused: its signature does not hold")
    ]
    assert made.score(1) < 0
    assert any(isinstance(each, Deliver) for each in made.bring(2, message))
    assert made.score(2) > 0


@pytest.mark.parametrize("author", ["ourselves", "nobody"])
def test_messages_in_our_name_or_in_no_name_are_refused(bench, author):
    made = subscribed(bench, 1)
    message = Message(topic=TOPIC, data=b"x") if author == "nobody" else made.write(0)
    assert [type(each) for each in made.bring(1, message)] == [Report]
    assert made.score(1) < 0


def test_our_own_message_coming_back_is_only_a_duplicate(bench):
    made = subscribed(bench, 1)
    made.router.publish(TOPIC, b"ours", made.now, 5)
    ((_, ours),) = made.sent(Message)
    assert made.bring(1, ours) == []
    assert made.score(1) >= 0


def test_too_large_messages_are_refused(bench):
    made = subscribed(bench, 1, max_message_bytes=100)
    assert [type(each) for each in made.bring(1, made.write(9, b"x" * 101))] == [Report]
    assert any(isinstance(each, Deliver) for each in made.bring(1, made.write(9, b"x" * 100)))


def test_without_signing_ids_are_made_of_the_content(bench):
    made = subscribed(bench, 1, 2, strict_sign=False)
    bare = Message(topic=TOPIC, data=b"x")
    assert any(isinstance(each, Deliver) for each in made.bring(1, bare))
    assert made.bring(2, bare) == []
    assert [type(each) for each in made.bring(1, made.write(9))] == [Report]
    first = made.router.publish(TOPIC, b"y", made.now, 1)
    assert made.router.publish(TOPIC, b"y", made.now, 2) == first
    assert made.router.counts.published == 1


def test_a_topic_may_have_ids_of_its_own(bench):
    made = subscribed(bench, 1)
    made.router.set_message_id(TOPIC, lambda message: message.data[:1])
    assert any(isinstance(each, Deliver) for each in made.bring(1, made.write(9, b"a1")))
    assert made.bring(1, made.write(9, b"a2")) == []
    assert [type(each) for each in made.bring(1, made.write(9, b""))] == [Report]
    made.router.set_message_id(TOPIC, None)
    assert any(isinstance(each, Deliver) for each in made.bring(1, made.write(9, b"a2")))


def test_what_was_seen_is_forgotten_in_time(bench):
    made = subscribed(bench, 1)
    message = made.write(9)
    assert made.bring(1, message)
    made.beat(119)
    assert made.bring(1, message) == []
    made.beat(2)
    assert made.bring(1, message)


# --- publishing ---------------------------------------------------------------------------------


def test_publishing_floods_all_peers_that_are_worth_it(bench):
    scores = {}
    made = subscribed(bench, *range(1, 21), app_score=lambda peer: scores.get(peer, 0.0))
    scores[made.peer(20)] = -1001.0
    made.router.publish(TOPIC, b"x", made.now, 1)
    sends = made.take(Send)
    assert {each.peer_id for each in sends} == {made.peer(n) for n in range(1, 20)}
    assert all(each.own for each in sends)


def test_without_flooding_it_goes_to_the_mesh_or_to_a_fanout_that_lasts(bench):
    made = subscribed(bench, *range(1, 21), flood_publish=False)
    made.router.publish(TOPIC, b"x", made.now, 1)
    assert {peer for peer, _ in made.sent(Message)} == set(made.router.mesh_of(TOPIC))
    made.join(*range(1, 21), topic="other")

    def receivers():
        made.router.take_outputs()
        made.router.publish("other", b"x", made.now, 1)
        return {peer for peer, _ in made.sent(Message)}

    first = receivers()
    assert len(first) == made.settings.d
    made.beat(30)
    assert receivers() == first
    made.beat(61)
    assert receivers() != first  # chosen anew; the chance of the same six is 1 in 38,760


def test_subscribing_turns_the_fanout_into_the_mesh(bench):
    made = bench(flood_publish=False)
    made.join(*range(1, 21))
    made.router.publish(TOPIC, b"x", made.now, 1)
    fanout = {peer for peer, _ in made.sent(Message)}
    made.router.subscribe(TOPIC, made.now)
    assert set(made.router.mesh_of(TOPIC)) == fanout


def test_sequence_numbers_rise_from_the_clock(bench):
    made = subscribed(bench, 1)
    for wall_ns in (10**18, 10**18, 10**18 - 5, 2 * 10**18):
        made.router.publish(TOPIC, b"x", made.now, wall_ns)
    numbers = [int.from_bytes(message.seqno, "big") for _, message in made.sent(Message)]
    assert numbers == [10**18, 10**18 + 1, 10**18 + 2, 2 * 10**18]


@pytest.mark.parametrize("emit_self", [True, False])
def test_our_own_subscriptions_get_our_messages_only_if_told_to(bench, emit_self):
    made = subscribed(bench, emit_self=emit_self)
    made.router.publish(TOPIC, b"x", made.now, 1)
    made.router.publish("other", b"x", made.now, 1)
    assert len(made.take(Deliver)) == emit_self


def test_floodsub_peers_get_everything_and_are_never_grafted(bench):
    made = subscribed(bench, flood_publish=False)
    made.join(1, protocol=FLOODSUB)
    made.join(2)
    made.beat()
    assert mesh(made) == {2}
    made.router.take_outputs()
    made.router.publish(TOPIC, b"x", made.now, 1)
    outputs = made.bring(2, made.write(9))
    assert made.peer(1) in {each.peer_id for each in outputs if isinstance(each, Send)}
    made.say(1, Graft(TOPIC), IHave(TOPIC, (b"1",)))
    assert made.router.take_outputs() == []


def test_direct_peers_get_everything_whatever_their_score_and_are_never_grafted(bench):
    made = subscribed(bench, direct=[1], app_score=lambda _peer: -9999.0)
    made.join(1)
    made.beat()
    assert mesh(made) == set()
    made.router.take_outputs()
    made.router.publish(TOPIC, b"x", made.now, 1)
    assert [peer for peer, _ in made.sent(Message)] == [made.peer(1)]
    assert any(isinstance(each, Deliver) for each in made.bring(1, made.write(9)))
    made.say(1, Graft(TOPIC))
    assert mesh(made) == set()
    assert {type(each) for each in made.router.take_outputs()} == {Send, Report}


def test_a_graylisted_peer_is_not_heard(bench):
    scores = {}
    made = subscribed(bench, 1, app_score=lambda peer: scores.get(peer, 0.0))
    scores[made.peer(1)] = -2501.0
    assert not made.router.accepts_from(made.peer(1))
    assert made.bring(1, made.write(9)) == []
    made.say(1, Interest("b", wanted=True))
    assert made.router.peers_of("b") == []
    scores[made.peer(1)] = -2500.0
    assert made.bring(1, made.write(9))


# --- gossip -------------------------------------------------------------------------------------


def test_peers_outside_the_mesh_are_told_of_messages_for_three_heartbeats(bench):
    made = subscribed(bench, *range(1, 21), gossip_factor=0.0)
    message = made.write(50)
    made.bring(1, message)
    made.router.take_outputs()
    for told in (6, 6, 6, 0):
        made.beat()
        ihaves = made.sent(IHave)
        assert len(ihaves) == told
        assert {piece for _, piece in ihaves} <= {IHave(TOPIC, (made.router.id_of(message),))}
        assert not {peer for peer, _ in ihaves} & set(made.router.mesh_of(TOPIC))


def test_of_many_peers_a_quarter_is_told(bench):
    made = subscribed(bench, *range(1, 45))
    made.bring(1, made.write(50))
    made.router.take_outputs()
    made.beat()
    assert len(made.sent(IHave)) == 10  # of the 40 outside the mesh


def test_peers_of_a_low_score_are_neither_told_nor_believed_nor_served(bench):
    scores = {}
    made = subscribed(bench, *range(1, 9), app_score=lambda peer: scores.get(peer, 0.0))
    outside = [n for n in range(1, 9) if n not in mesh(made)]
    scores |= {made.peer(n): -501.0 for n in outside}
    message = made.write(50)
    made.bring(next(iter(mesh(made))), message)
    made.router.take_outputs()
    made.beat()
    assert made.sent(IHave) == []
    made.say(outside[0], IHave(TOPIC, (b"new",)), IWant((made.router.id_of(message),)))
    assert made.router.take_outputs() == []


def test_what_is_not_seen_is_asked_for_once(bench):
    made = subscribed(bench, 1)
    message = made.write(9)
    made.bring(1, message)
    made.router.take_outputs()
    known = made.router.id_of(message)
    made.say(1, IHave(TOPIC, (known, b"new", b"new")), IHave("other", (b"b",)))
    assert made.sent() == [(made.peer(1), IWant((b"new",)))]
    made.say(1, IHave(TOPIC, (known,)))
    assert made.sent() == []


def test_what_is_asked_for_is_sent_so_many_times(bench):
    made = subscribed(bench, 1, 2)
    message = made.write(9)
    made.bring(1, message)
    made.router.take_outputs()
    message_id = made.router.id_of(message)
    for _ in range(5):
        made.say(2, IWant((message_id, message_id, b"unknown")))
    assert made.sent() == [(made.peer(2), message)] * 3
    made.beat(5)
    made.router.take_outputs()
    made.say(1, IWant((message_id,)))
    assert made.sent(Message) == []  # it has left the cache


def test_only_so_many_ihaves_and_ids_are_heeded_in_a_heartbeat(bench):
    made = subscribed(bench, 1, 2, max_ihave_messages=3, max_ihave_length=10)
    for n in range(5):
        made.say(1, IHave(TOPIC, (bytes([n]),)))
    assert len(made.sent(IWant)) == 3
    made.say(2, IHave(TOPIC, tuple(b"x%d" % n for n in range(8))))
    made.say(2, IHave(TOPIC, tuple(b"y%d" % n for n in range(8))))
    assert [len(piece.ids) for _, piece in made.sent(IWant)] == [8, 2]
    made.say(2, IHave(TOPIC, (b"z",)))
    assert made.sent(IWant) == []
    made.beat()
    made.router.take_outputs()
    made.say(1, IHave(TOPIC, (b"z",)))
    assert len(made.sent(IWant)) == 1


def test_only_so_many_ids_are_told_to_one_peer_in_a_heartbeat(bench):
    made = subscribed(bench, *range(1, 9), max_ihave_length=5)
    for n in range(12):
        made.bring(1, made.write(50, b"%d" % n))
    made.router.take_outputs()
    made.beat()
    assert {len(piece.ids) for _, piece in made.sent(IHave)} == {5}


def test_a_promise_that_is_not_kept_is_penalised(bench):
    made = subscribed(bench, 1, 2, behaviour_penalty_threshold=0.0)
    message = made.write(9)
    made.say(1, IHave(TOPIC, (b"never",)))
    made.say(2, IHave(TOPIC, (made.router.id_of(message),)))
    made.bring(2, message)
    made.beat(2)
    assert made.score(1) >= 0
    made.beat()
    assert made.score(1) < 0
    assert made.score(2) > 0
    assert [each.peer_id for each in made.take(Report)] == [made.peer(1)]


def test_a_promise_kept_by_another_peer_is_kept(bench):
    made = subscribed(bench, 1, 2, behaviour_penalty_threshold=0.0)
    message = made.write(9)
    made.say(1, IHave(TOPIC, (made.router.id_of(message),)))
    made.bring(2, message, Verdict.IGNORE)
    made.beat(5)
    assert made.score(1) >= 0


def test_the_promises_of_a_peer_that_left_are_nobodys(bench):
    made = subscribed(bench, 1)
    made.say(1, IHave(TOPIC, (b"never",)))
    made.router.remove_peer(made.peer(1), made.now)
    made.beat(5)
    assert made.take(Report) == []


# --- IDONTWANT ----------------------------------------------------------------------------------


def test_the_mesh_is_told_at_once_that_a_large_message_is_here(bench):
    made = subscribed(bench, 1, 2)
    made.join(3, protocol=GOSSIPSUB_1_1)
    made.join(4)
    assert mesh(made) == {1, 2, 3, 4}
    message = made.write(4, b"x" * 1024)
    outputs = made.bring(1, message, verdict=None)
    (hint,) = [each for each in outputs if isinstance(each, Send)]  # not to 1, 3 and the author
    assert hint.peer_id == made.peer(2)
    assert hint.piece == IDontWant((made.router.id_of(message),))
    small = made.bring(1, made.write(9, b"x" * 1023), verdict=None)
    assert [type(each) for each in small] == [Validate]


def test_who_does_not_want_a_message_is_not_sent_it_for_three_heartbeats(bench):
    made = subscribed(bench, 1, 2)
    message = made.write(9)
    message_id = made.router.id_of(message)
    made.say(2, IDontWant((message_id,)))
    assert made.take(Cancel) == [Cancel(made.peer(2), (message_id,))]
    assert [each for each in made.bring(1, message) if isinstance(each, Send)] == []
    made.say(2, IWant((message_id,)))
    assert made.sent(Message) == []
    made.beat(3)
    made.router.take_outputs()
    made.say(2, IWant((message_id,)))
    assert len(made.sent(Message)) == 1


def test_only_so_many_idontwants_are_heeded_in_a_heartbeat(bench):
    made = subscribed(bench, 1, max_idontwant_messages=3)
    made.say(1, IDontWant((b"a", b"b")), IDontWant((b"c", b"d")), IDontWant((b"e",)))
    assert [each.ids for each in made.take(Cancel)] == [(b"a", b"b"), (b"c",)]
    made.beat()
    made.router.take_outputs()
    made.say(1, IDontWant((b"e",)))
    assert len(made.take(Cancel)) == 1


# --- peer exchange ------------------------------------------------------------------------------


def test_a_prune_names_others_only_if_told_to_and_only_with_their_records(bench):
    for do_px in (True, False):
        made = subscribed(bench, *range(1, 4), d_low=1, d=1, d_high=1, d_score=1, d_out=0,
                          do_px=do_px)  # fmt: skip
        for n in (2, 3):
            made.router.note_record(made.peer(n), b"record %d" % n)
        (member,) = mesh(made)
        other = next(n for n in (1, 2, 3) if n != member)
        made.say(other, Graft(TOPIC))
        ((peer, prune),) = made.sent(Prune)
        assert peer == made.peer(other)
        known = {n for n in (2, 3) if n != other} if do_px else set()
        assert set(prune.peers) == {PeerHint(made.peer(n), b"record %d" % n) for n in known}


def test_a_peer_of_1_0_is_told_neither_backoff_nor_peers(bench):
    made = subscribed(bench, do_px=True)
    made.join(1, protocol=GOSSIPSUB_1_0)
    made.router.unsubscribe(TOPIC, made.now)
    assert made.sent(Prune) == [(made.peer(1), Prune(TOPIC))]


@pytest.mark.parametrize(("score", "dialled"), [(999.0, 0), (1000.0, 16)])
def test_peers_named_by_a_prune_are_tried_only_if_its_sender_is_trusted(bench, score, dialled):
    made = subscribed(bench, 1, app_score=lambda _peer: score)
    hints = tuple(PeerHint(made.peer(n), b"r") for n in (1, *range(20, 60)))
    made.say(1, Prune(TOPIC, hints, 60))
    dials = made.take(Dial)
    assert len({each.peer_id for each in dials}) == dialled
    assert made.peer(1) not in {each.peer_id for each in dials}


# --- one seed, one run --------------------------------------------------------------------------

STORY = """
import random
from p2pnode.config import PubSubSettings
from p2pnode.protocols.pubsub.core import Router
from p2pnode.protocols.pubsub.messages import Interest, Rpc
from p2pnode.wire.keys import PrivateKey
keys = [PrivateKey.from_seed(bytes([n]) * 32) for n in range(40)]
router = Router(keys[0], PubSubSettings(flood_publish=False), random.Random(7))
for key in keys[1:]:
    router.add_peer(key.peer_id, "/meshsub/1.2.0", outbound=False, network=None)
    router.receive_rpc(key.peer_id, Rpc(subscriptions=(Interest("a", True),)), 0.0)
router.publish("a", b"x", 1.0, 1)
router.subscribe("a", 2.0)
router.heartbeat(3.0)
print(router.take_outputs())
"""


def test_one_seed_gives_one_run_whatever_the_process():
    def run(hash_seed):
        environ = os.environ | {"PYTHONHASHSEED": hash_seed}
        return subprocess.run(
            [sys.executable, "-c", STORY], env=environ, capture_output=True, check=True
        ).stdout

    assert run("1") == run("2") != b""


# --- whatever comes -----------------------------------------------------------------------------

KEYS = [PrivateKey.from_seed(bytes([n]) * 32) for n in range(9)]
TOPICS = ["a", "b"]
LIMITS = RpcLimits(50, 50, 50)

a_topic = st.sampled_from(TOPICS)
a_peer = st.sampled_from([key.peer_id for key in KEYS[1:]])
an_id = st.binary(min_size=1, max_size=2)
ids = st.lists(an_id, min_size=1, max_size=4).map(tuple)
controls = st.one_of(
    st.builds(Graft, a_topic),
    st.builds(Prune, a_topic, st.just(()), st.none() | st.integers(0, 100)),
    st.builds(IHave, a_topic, ids),
    st.builds(IWant, ids),
    st.builds(IDontWant, ids),
)
SMALL = PubSubSettings(
    d=3, d_low=2, d_high=4, d_score=2, d_out=1, max_topics_per_peer=2, max_seen=10, max_backoffs=16,
    prune_backoff=5.0, graft_flood_threshold=2.0, max_idontwant_messages=4, retain_score=20.0,
    max_retained_scores=3, mesh_message_deliveries_weight=-1.0,
    mesh_message_deliveries_activation=3.0, mesh_failure_penalty_weight=-1.0,
    behaviour_penalty_threshold=1.0, max_mcache_bytes=2000,
)  # fmt: skip


@given(st.binary(max_size=100), st.integers(0, 2**32))
def test_no_bytes_end_a_router(data, seed):
    router = Router(KEYS[0], SMALL, random.Random(seed))
    router.subscribe("a", 0.0)
    peer = KEYS[1].peer_id
    router.add_peer(peer, GOSSIPSUB_1_2, outbound=False, network=None)
    try:
        rpc = decode(data, LIMITS)
    except ProtocolError:
        return
    router.receive_rpc(peer, rpc, 1.0)
    for message in rpc.messages:
        router.receive_message(peer, message, 1.0)
    router.heartbeat(2.0)


class RouterMachine(RuleBasedStateMachine):
    """Any inputs in any order: what must hold of a router always holds."""

    def __init__(self):
        super().__init__()
        self.now = 100.0
        self.router = Router(KEYS[0], SMALL, random.Random(1))
        self.pruned_until = {}
        self.pending = []
        self.seqno = 0
        self.delivered = set()
        self.just_beat = False

    def act(self):
        """Take the outputs, and check each."""
        for output in self.router.take_outputs():
            if isinstance(output, Send):
                assert output.peer_id in self.router.peers
                topic = getattr(output.piece, "topic", None)
                if isinstance(output.piece, Graft):
                    assert self.pruned_until.get((topic, output.peer_id), 0) <= self.now
                if isinstance(output.piece, Prune):
                    until = self.now + output.piece.backoff
                    self.note_backoff(topic, output.peer_id, until)
            elif isinstance(output, Validate):
                self.pending.append(output.message_id)
            elif isinstance(output, Deliver):
                assert output.message_id not in self.delivered
                self.delivered.add(output.message_id)
                assert output.message.topic in TOPICS

    def note_backoff(self, topic, peer, until):
        key = topic, peer
        self.pruned_until[key] = max(until, self.pruned_until.get(key, 0))

    @rule(peer=a_peer, protocol=st.sampled_from(PROTOCOLS), outbound=st.booleans())
    def come(self, peer, protocol, outbound):
        if protocol in {GOSSIPSUB_1_1, GOSSIPSUB_1_2}:  # whose backoffs the test can follow
            self.router.add_peer(peer, protocol, outbound=outbound, network="net")
        self.act()

    @rule(peer=a_peer)
    def go(self, peer):
        self.router.remove_peer(peer, self.now)
        self.act()

    @rule(peer=a_peer, topic=a_topic, wanted=st.booleans())
    def tell_interest(self, peer, topic, wanted):
        rpc = Rpc(subscriptions=(Interest(topic, wanted),))
        self.router.receive_rpc(peer, decode(encode(rpc), LIMITS), self.now)
        self.act()

    @rule(peer=a_peer, control=controls)
    def control(self, peer, control):
        heard = peer in self.router.peers and self.router.accepts_from(peer)
        if isinstance(control, Prune) and control.topic in self.router.topics and heard:
            backoff = SMALL.prune_backoff if control.backoff is None else control.backoff
            self.note_backoff(control.topic, peer, self.now + backoff)
        self.router.receive_rpc(peer, Rpc(control=(control,)), self.now)
        self.act()

    @rule(topic=a_topic)
    def subscribe_or_not(self, topic):
        if topic in self.router.topics:
            self.router.unsubscribe(topic, self.now)
        else:
            self.router.subscribe(topic, self.now)
        self.act()

    @rule(topic=a_topic, data=st.binary(max_size=50))
    def publish(self, topic, data):
        self.router.publish(topic, data, self.now, 1)
        self.act()

    @rule(peer=a_peer, author=st.sampled_from(KEYS[1:]), topic=a_topic, forged=st.booleans())
    def bring(self, peer, author, topic, forged):
        self.seqno += 1
        message = sign(author, topic, b"x", self.seqno)
        if forged:
            message = dataclasses.replace(message, data=b"y")
        self.router.receive_message(peer, message, self.now)
        self.act()

    @precondition(lambda self: self.pending)
    @rule(verdict=st.sampled_from(Verdict), data=st.data())
    def judge(self, verdict, data):
        message_id = self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1)))
        self.router.receive_verdict(message_id, verdict, self.now)
        self.act()

    @rule(seconds=st.integers(0, 6))
    def beat(self, seconds):
        self.now += seconds
        self.router.heartbeat(self.now)
        self.act()
        for topic in self.router.topics:
            mesh = self.router.mesh_of(topic)
            assert all(self.router.scores.score(each) >= 0 for each in mesh)
            assert len(mesh) <= SMALL.d_high + SMALL.d_out + SMALL.opportunistic_graft_peers

    @invariant()
    def meshes_are_of_peers_that_are_there(self):
        for topic in TOPICS:
            mesh = self.router.mesh_of(topic)
            assert set(mesh) <= set(self.router.peers_of(topic)) <= set(self.router.peers)
            assert topic in self.router.topics or not mesh
        for peer in self.router.peers:
            assert sum(peer in self.router.peers_of(topic) for topic in TOPICS) <= 2

    @invariant()
    def bounds_hold(self):
        router = self.router
        assert len(router._seen) <= SMALL.max_seen
        assert len(router._deliveries) <= SMALL.max_seen
        assert len(router._mesh.backoffs) <= SMALL.max_backoffs
        assert len(router.scores) <= len(router.peers) + SMALL.max_retained_scores
        assert len(router._gossip.promises._until) <= 20 * len(KEYS)
        for peer in router._state.peers.values():
            assert len(peer.unwanted) <= SMALL.max_idontwant_messages * SMALL.idontwant_ttl


RouterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRouterMachine = RouterMachine.TestCase
