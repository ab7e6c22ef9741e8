"""What is held against peers, over a restart."""

import json
import math

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import GossipSettings
from p2pnode.swarm.gossip.reputation import Offence, Record, Reputation
from p2pnode.swarm.gossip.saved_reputation import FORMAT, SavedReputation
from p2pnode.wire.keys import PrivateKey

ONE, TWO, THREE = (PrivateKey.from_seed(bytes([each]) * 32).peer_id for each in (1, 2, 3))
SETTINGS = GossipSettings()
WALL = 1.8e9

amounts = st.floats(0, 1e12)
records = st.builds(
    Record,
    peer_id=st.sampled_from([ONE, TWO, THREE]),
    points=amounts,
    noted=amounts,
    offences=st.dictionaries(st.sampled_from(list(map(str, Offence))), st.integers(1, 1000)),
    reason=st.text(max_size=50),
    back_off=amounts,
    until=amounts,
)


def again(reputation, now, down=0.0, settings=SETTINGS):
    """What a node remembers that restarts at this time on a clock of its own, after a while."""
    text = FORMAT.render({each.peer_id: each for each in reputation.snapshot(now, WALL)})
    restarted = Reputation(settings)
    restarted.restore(FORMAT.parse(text).values(), 5.0, WALL + down)
    return restarted


def lie(reputation, peer_id=ONE, now=1000.0):
    return reputation.receive_offence(peer_id, Offence.FALSE_SCORE, "it lies", now)


def test_what_was_noted_holds_over_a_restart():
    reputation = Reputation()
    lie(reputation)
    lie(reputation)
    reputation.receive_offence(TWO, Offence.BROKEN_PROMISE, "nothing came", 1000.0)
    restarted = again(reputation, 1000.0)
    assert restarted.is_blacklisted(ONE, 5.0)
    before, after = reputation.standings(1000.0), restarted.standings(5.0)
    assert before == after
    assert restarted.score(TWO, 5.0) == reputation.score(TWO, 1000.0) < 0
    assert restarted.standing(THREE, 5.0) is None


def test_points_and_back_offs_pass_while_the_node_is_down():
    reputation = Reputation()
    lie(reputation)
    lie(reputation)
    half = SETTINGS.points_half_life
    restarted = again(reputation, 1000.0, down=half)
    assert restarted.standing(ONE, 5.0).points == pytest.approx(50)
    assert not restarted.is_shunned(ONE, 5.0)
    assert again(reputation, 1000.0, down=100 * half).standings(5.0) == []


def test_a_back_off_goes_on_and_the_next_one_is_twice_as_long():
    reputation = Reputation(GossipSettings(first_back_off=30.0, blacklist_points=1e6))
    lie(reputation)
    restarted = again(reputation, 1010.0, settings=GossipSettings(blacklist_points=1e6))
    assert restarted.is_shunned(ONE, 24.9)
    assert not restarted.is_shunned(ONE, 25.1)
    lie(restarted, now=100.0)
    assert restarted.is_shunned(ONE, 159.9)
    assert not restarted.is_shunned(ONE, 160.1)


def test_a_clock_that_was_set_back_punishes_nobody_for_longer():
    reputation = Reputation()
    lie(reputation)
    restarted = again(reputation, 1000.0, down=-1e6)
    assert restarted.standing(ONE, 5.0).points == pytest.approx(50)
    assert not restarted.is_shunned(ONE, 5.0 + SETTINGS.longest_back_off + 1)


def test_of_more_offenders_than_are_remembered_the_harmless_go():
    reputation = Reputation()
    for each in (TWO, ONE, ONE, THREE):
        lie(reputation, each)
    restarted = again(reputation, 1000.0, settings=GossipSettings(max_offenders=1))
    assert [each.peer_id for each in restarted.standings(5.0)] in ([ONE], [THREE])
    assert len(restarted.standings(5.0)) == 1


async def until(holds):
    """Wait for a thread, for which virtual time does not."""
    with trio.fail_after(1e9):
        while not holds():  # noqa: ASYNC110  # a file tells nobody
            await trio.sleep(1)


def kept(path, reputation, told):
    return SavedReputation(path, reputation, SETTINGS, told.append)


async def test_a_node_saves_what_it_notes_and_reads_it_when_it_starts(
    tmp_path, autojump_clock, nursery
):
    bind_wall_time_to_trio(WALL)
    path, told, reputation = tmp_path / "reputation.json", [], Reputation()
    async with trio.open_nursery() as running:
        await running.start(kept(path, reputation, told).run)
        await trio.sleep(3 * SETTINGS.save_interval)
        assert not path.exists()  # there was nothing to keep
        lie(reputation, now=trio.current_time())
        await until(path.exists)
        assert "it lies" in path.read_text()
        lie(reputation, now=trio.current_time())  # just before the end
        running.cancel_scope.cancel()
    restarted = Reputation()
    await nursery.start(kept(path, restarted, told).run)
    assert restarted.is_blacklisted(ONE, trio.current_time())
    assert told == []
    nursery.cancel_scope.cancel()


async def test_without_a_path_nothing_is_kept(autojump_clock, nursery):
    reputation = Reputation()
    await nursery.start(SavedReputation(None, reputation, SETTINGS, pytest.fail).run)
    lie(reputation)
    await trio.sleep(2 * SETTINGS.save_interval)
    nursery.cancel_scope.cancel()


@given(st.lists(records, unique_by=lambda each: each.peer_id))
def test_records_come_back_as_they_were(noted):
    table = {each.peer_id: each for each in noted}
    assert FORMAT.parse(FORMAT.render(table)) == table


def changed(**fields):
    record = {"points": 1.0, "noted": 1.0, "offences": {}, "reason": "", "back_off": 0, "until": 0}
    peers = {str(ONE): {**record, **fields}}
    return json.dumps({"format": 1, "peers": peers})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 2}',
        '{"format": 1}',
        '{"format": 1, "peers": {"x": 1}}',
        changed(points=-1),
        changed(points=math.inf),
        changed(noted=math.nan),
        changed(until="1"),
        changed(back_off=True),
        changed(offences={"rude": 1}),
        changed(offences={"flood": -1}),
        changed(offences=[]),
        changed(reason=1),
        changed().replace(str(ONE), "x"),
    ],
)
def test_what_is_no_reputation_is_refused(text):
    with pytest.raises(ValueError, match=r"format|not a saved|Expecting|amount|offences"):
        FORMAT.parse(text)
