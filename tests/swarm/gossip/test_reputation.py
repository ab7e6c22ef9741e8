"""What becomes of those who were found to have done something."""

import pytest

from p2pnode.config import GossipSettings
from p2pnode.errors import ConfigError
from p2pnode.swarm.gossip.reputation import Offence, Reputation
from p2pnode.wire.keys import PrivateKey

ONE, TWO, THREE = (PrivateKey.from_seed(bytes([each]) * 32).peer_id for each in (1, 2, 3))


def lie(reputation, now, peer_id=ONE):
    return reputation.receive_offence(peer_id, Offence.FALSE_SCORE, "it lies", now)


def test_who_has_done_nothing_has_no_standing_and_a_score_of_zero():
    reputation = Reputation()
    assert reputation.standing(ONE, 0.0) is None
    assert reputation.standings(0.0) == []
    assert reputation.score(ONE, 0.0) == 0
    assert not reputation.is_shunned(ONE, 0.0)


def test_an_offender_is_left_alone_for_twice_as_long_each_time():
    reputation = Reputation(GossipSettings(first_back_off=30.0, blacklist_points=1e6))
    lie(reputation, 0.0)
    assert reputation.is_shunned(ONE, 29.9)
    assert not reputation.is_shunned(ONE, 30.0)
    lie(reputation, 100.0)
    assert reputation.is_shunned(ONE, 159.9)
    assert not reputation.is_shunned(ONE, 160.0)
    assert not reputation.is_shunned(TWO, 100.0)


def test_the_back_off_is_short_again_when_all_has_faded():
    reputation = Reputation()
    for now in (0.0, 100.0, 1e6):
        reputation.receive_offence(ONE, Offence.BROKEN_PROMISE, "nothing came", now)
    assert not reputation.is_shunned(ONE, 1e6 + 30)


def test_two_lies_put_a_peer_on_the_blacklist_until_they_have_faded():
    reputation = Reputation()
    assert not lie(reputation, 0.0)
    assert not reputation.is_blacklisted(ONE, 0.0)
    assert lie(reputation, 0.0)
    assert not lie(reputation, 1.0)  # it is there already
    assert reputation.is_blacklisted(ONE, 1.0)
    assert reputation.is_shunned(ONE, 1.0)
    half_life = GossipSettings().points_half_life
    assert reputation.is_blacklisted(ONE, half_life / 4)
    assert not reputation.is_blacklisted(ONE, half_life)


def test_lies_told_far_apart_fade_between():
    reputation = Reputation()
    half_life = GossipSettings().points_half_life
    assert not any(lie(reputation, each * 2 * half_life) for each in range(10))


def test_the_blacklist_ends_what_pubsub_hears():
    settings = GossipSettings()
    reputation = Reputation(settings)
    lie(reputation, 0.0)
    assert reputation.score(ONE, 0.0) == -50 * settings.score_per_point
    lie(reputation, 0.0)
    from p2pnode.config import PubSubSettings  # noqa: PLC0415

    assert reputation.score(ONE, 0.0) < PubSubSettings().graylist_threshold
    assert reputation.score(ONE, 1e6) > -1


def test_a_flood_is_counted_but_nobody_backs_off_from_it_at_first():
    reputation = Reputation()
    reputation.receive_offence(ONE, Offence.FLOOD, "it floods", 0.0)
    assert not reputation.is_shunned(ONE, 0.0)
    for _ in range(39):
        reputation.receive_offence(ONE, Offence.FLOOD, "it floods", 0.0)
    assert reputation.is_blacklisted(ONE, 0.0)


def test_standings_say_what_was_done_the_worst_first():
    reputation = Reputation()
    reputation.receive_offence(TWO, Offence.BROKEN_PROMISE, "nothing came", 0.0)
    lie(reputation, 0.0)
    reputation.receive_offence(ONE, Offence.WRONG_CHUNK, "chunk 7 was wrong", 1.0)
    first, second = reputation.standings(1.0)
    assert (first.peer_id, second.peer_id) == (ONE, TWO)
    assert first.offences == {"false score": 1, "wrong chunk": 1}
    assert first.last_reason == "chunk 7 was wrong"
    assert first.back_off == pytest.approx(29.0)
    assert not first.is_blacklisted


def test_the_memory_is_bounded_and_keeps_the_worst():
    reputation = Reputation(GossipSettings(max_offenders=2))
    lie(reputation, 0.0)
    lie(reputation, 0.0)
    reputation.receive_offence(TWO, Offence.FLOOD, "it floods", 1.0)
    reputation.receive_offence(THREE, Offence.FLOOD, "it floods", 2.0)
    assert [each.peer_id for each in reputation.standings(2.0)] == [ONE, THREE]


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="lifetime"):
        GossipSettings(renewal=60.0, lifetime=90.0)
    with pytest.raises(ConfigError, match="max_links"):
        GossipSettings(max_links=100, max_protected=99)
