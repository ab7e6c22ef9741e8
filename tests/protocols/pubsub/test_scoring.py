import dataclasses

import pytest

from p2pnode.config import PubSubSettings
from p2pnode.protocols.pubsub.deliveries import Deliveries
from p2pnode.protocols.pubsub.scoring import Scores, TopicScoreParams
from p2pnode.wire.keys import PrivateKey

A, B, C = (PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in (1, 2, 3))
NOTHING = {
    each.name: 0.0
    for each in dataclasses.fields(PubSubSettings)
    if each.name.endswith("_weight") and each.name != "topic_weight"
}


def scores(app_score=None, **settings):
    """Scores in which only what a test names counts."""
    made = Scores(PubSubSettings(**NOTHING | settings), app_score)
    for peer in (A, B, C):
        made.add_peer(peer, "here" if peer != C else "there")
    return made


def decay(made, start=0, times=1):
    for n in range(times):
        made.decay(float(start + n))


def test_who_is_unknown_has_no_score():
    assert Scores(PubSubSettings()).score(A) == 0


def test_p1_time_in_the_mesh_counts_up_to_its_cap_and_only_there():
    made = scores(time_in_mesh_weight=2.0, time_in_mesh_quantum=5.0, time_in_mesh_cap=4.0)
    made.graft(A, "t", 0.0)
    made.decay(10.0)
    assert made.score(A) == 4.0
    made.decay(1000.0)
    assert made.score(A) == 8.0
    made.prune(A, "t")
    assert made.score(A) == 0.0
    made.graft(A, "t", 1000.0)
    assert made.score(A) == 0.0


def test_p2_first_deliveries_count_up_to_their_cap_and_decay():
    made = scores(
        first_message_deliveries_weight=3.0,
        first_message_deliveries_cap=2.0,
        first_message_deliveries_decay=0.5,
        decay_to_zero=0.3,
    )
    for _ in range(3):
        made.credit_first(A, "t")
    assert made.score(A) == 6.0
    decay(made)
    assert made.score(A) == 3.0
    decay(made, 1, 2)
    assert made.score(A) == 0.0


def test_a_topic_that_comes_to_count_differently_does_so_at_once():
    made = scores(first_message_deliveries_weight=1.0)
    made.credit_first(A, "t")
    assert made.score(A) == 1.0
    doubled = dataclasses.replace(made.params("t"), topic_weight=2.0)
    made.set_params("t", doubled)
    assert made.score(A) == 2.0


def mesh_scores(**settings):
    return scores(
        mesh_message_deliveries_weight=-1.0,
        mesh_message_deliveries_threshold=4.0,
        mesh_message_deliveries_cap=6.0,
        mesh_message_deliveries_activation=10.0,
        mesh_message_deliveries_decay=0.5,
        **settings,
    )


def test_p3_missing_deliveries_count_by_their_square_once_a_peer_had_time():
    made = mesh_scores()
    made.graft(A, "t", 0.0)
    made.decay(10.0)
    assert made.score(A) == 0
    made.decay(11.0)
    assert made.score(A) == -16
    made.credit_mesh(A, "t")
    made.credit_first(A, "t")
    assert made.score(A) == -4
    for _ in range(10):
        made.credit_mesh(A, "t")
    assert made.score(A) == 0
    made.decay(12.0)  # from the cap, 6, to 3
    assert made.score(A) == -1


def test_p3_deliveries_outside_the_mesh_do_not_count():
    made = mesh_scores()
    for _ in range(5):
        made.credit_mesh(A, "t")
    made.graft(A, "t", 0.0)
    made.decay(11.0)
    assert made.score(A) == -16


def test_p3b_a_deficit_stays_with_who_leaves_the_mesh():
    made = mesh_scores(mesh_failure_penalty_weight=-2.0, mesh_failure_penalty_decay=0.5)
    made.graft(A, "t", 0.0)
    made.decay(11.0)
    made.prune(A, "t")
    assert made.score(A) == -32
    made.prune(A, "t")
    assert made.score(A) == -32
    made.decay(12.0)
    assert made.score(A) == -16


def test_p4_invalid_messages_count_by_their_square():
    made = scores(invalid_message_deliveries_weight=-5.0, invalid_message_deliveries_decay=0.5)
    made.blame_invalid(A, "t")
    made.blame_invalid(A, "t")
    made.blame_invalid(A, "other")
    assert made.score(A) == -25
    decay(made)
    assert made.score(A) == -5 - 1.25


def test_topics_have_weights_and_parameters_of_their_own_and_a_common_cap():
    made = scores(first_message_deliveries_weight=1.0, topic_weight=2.0, topic_score_cap=7.0)
    params = TopicScoreParams.of(PubSubSettings(**NOTHING))
    made.set_params("u", dataclasses.replace(params, first_message_deliveries_weight=3.0))
    made.credit_first(A, "t")
    assert made.score(A) == 2
    made.credit_first(A, "u")
    assert made.score(A) == 5
    made.credit_first(A, "u")
    assert made.score(A) == 7  # not 8


def test_p5_is_what_the_application_says():
    made = scores(lambda peer: 5.0 if peer == A else -1.0, app_specific_weight=2.0)
    assert (made.score(A), made.score(B)) == (10.0, -2.0)


def test_p6_peers_too_many_in_one_network_count_by_their_square():
    made = scores(ip_colocation_factor_weight=-3.0, ip_colocation_factor_threshold=1)
    assert (made.score(A), made.score(B), made.score(C)) == (-3, -3, 0)
    made.remove_peer(B, 0.0)
    assert made.score(A) == 0
    made.add_peer(A, "there")  # a connection from elsewhere
    assert (made.score(A), made.score(C)) == (-3, -3)
    made.add_peer(C, None)  # where nobody is counted
    assert (made.score(A), made.score(C)) == (0, 0)


def test_p7_broken_rules_count_by_the_square_of_those_too_many():
    made = scores(
        behaviour_penalty_weight=-2.0,
        behaviour_penalty_threshold=1.0,
        behaviour_penalty_decay=0.5,
    )
    made.blame(A)
    assert made.score(A) == 0
    made.blame(A, 3)
    assert made.score(A) == -18
    decay(made)
    assert made.score(A) == -2


def test_a_bad_score_waits_for_who_left_and_a_good_one_does_not():
    made = scores(
        first_message_deliveries_weight=1.0,
        invalid_message_deliveries_weight=-1.0,
        retain_score=60.0,
    )
    made.blame_invalid(A, "t")
    made.credit_first(A, "t")
    made.credit_first(B, "t")
    for peer in (A, B):
        made.remove_peer(peer, 0.0)
    decay(made, 0, 50)
    assert made.score(A) == -1  # and it has not mended meanwhile
    made.add_peer(A, "here")
    made.add_peer(B, "here")
    assert (made.score(A), made.score(B)) == (-1, 0)
    made.remove_peer(A, 50.0)
    made.decay(109.0)
    assert made.score(A) == -1
    made.decay(110.0)
    assert made.score(A) == 0
    assert len(made) == 2


def test_leaving_does_not_help_who_owed_deliveries():
    made = mesh_scores(mesh_failure_penalty_weight=-1.0)
    made.graft(A, "t", 0.0)
    made.decay(11.0)
    made.remove_peer(A, 12.0)
    made.add_peer(A, "here")
    assert made.score(A) == -16


def test_only_so_many_scores_are_kept_of_those_who_left():
    made = scores(invalid_message_deliveries_weight=-1.0, max_retained_scores=2)
    for peer in (A, B, C):
        made.blame_invalid(peer, "t")
        made.remove_peer(peer, 0.0)
    assert [made.score(peer) for peer in (A, B, C)] == [0, -1, -1]


# --- who brought what ---------------------------------------------------------------------------


@pytest.fixture
def rig():
    made = mesh_scores(
        first_message_deliveries_weight=100.0,
        invalid_message_deliveries_weight=-1000.0,
        mesh_message_deliveries_window=0.01,
    )
    for peer in (A, B, C):
        made.graft(peer, "t", 0.0)
    made.decay(11.0)  # from now on each lacks four deliveries: -16
    return made, Deliveries(made, ttl=120.0, limit=3)


def test_the_first_is_credited_most_and_those_who_came_meanwhile_as_well(rig):
    made, deliveries = rig
    deliveries.begin(b"m", A, "t", 20.0)
    deliveries.receive_duplicate(b"m", B, 25.0)
    deliveries.receive_duplicate(b"m", B, 25.0)
    assert [made.score(peer) for peer in (A, B, C)] == [-16, -16, -16]
    deliveries.accept(b"m", 30.0)
    assert [made.score(peer) for peer in (A, B, C)] == [100 - 9, -9, -16]


def test_who_comes_soon_after_is_credited_and_who_comes_late_is_not(rig):
    made, deliveries = rig
    deliveries.begin(b"m", A, "t", 20.0)
    deliveries.accept(b"m", 30.0)
    deliveries.receive_duplicate(b"m", B, 30.005)
    deliveries.receive_duplicate(b"m", C, 30.02)
    assert [made.score(peer) for peer in (B, C)] == [-9, -16]
    for _ in range(5):
        deliveries.receive_duplicate(b"m", B, 30.006)  # over and over
        deliveries.receive_duplicate(b"m", A, 30.006)  # the first one, again
    assert [made.score(peer) for peer in (A, B)] == [100 - 9, -9]


def test_all_who_bring_an_invalid_message_are_blamed_once(rig):
    made, deliveries = rig
    deliveries.begin(b"m", A, "t", 20.0)
    deliveries.receive_duplicate(b"m", B, 20.0)
    deliveries.reject(b"m")
    for _ in range(3):
        deliveries.receive_duplicate(b"m", C, 90.0)
        deliveries.receive_duplicate(b"m", B, 90.0)
    assert [made.score(peer) for peer in (A, B, C)] == [-1016] * 3


def test_what_is_dropped_is_nobodys_merit_and_nobodys_fault(rig):
    made, deliveries = rig
    deliveries.begin(b"m", A, "t", 20.0)
    deliveries.drop(b"m")
    deliveries.receive_duplicate(b"m", B, 20.0)
    deliveries.accept(b"m", 21.0)
    deliveries.reject(b"m")
    assert [made.score(peer) for peer in (A, B, C)] == [-16] * 3


def test_records_are_kept_for_a_time_and_only_so_many(rig):
    _, deliveries = rig
    for name in (b"1", b"2", b"3", b"4"):
        deliveries.begin(name, A, "t", 20.0)
    assert len(deliveries) == 3
    assert list(deliveries.bringers(b"1")) == []
    assert list(deliveries.bringers(b"4")) == [A]
    deliveries.expire(139.9)
    assert len(deliveries) == 3
    deliveries.expire(140.0)
    assert len(deliveries) == 0
