"""Members that are lost in the middle of a round, at every moment of it."""

import random

import pytest
import torch
import trio

from p2pnode.errors import AveragingError
from p2pnode.swarm.averaging import parts
from p2pnode.swarm.averaging.attempt import Attempt
from p2pnode.swarm.averaging.messages import Part, encode_answer
from p2pnode.swarm.averaging.service import Reduced
from p2pnode.swarm.averaging.serving import Serving
from p2pnode.swarm.averaging.travel import Carrier

COUNT = 4
DELAY = (0.01, 0.05)  # one way between two peers; a round takes some 0.3 s
MOMENTS = [0.03 * number for number in range(15)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(parts, "CHUNK", 256)


def check(world, tensors, outcomes):
    """Each has the whole result of those that it names, or nothing; returns what was named."""
    numbers = {peer.peer_id: number for number, peer in enumerate(world.peers)}
    named = []
    for outcome in outcomes.values():
        if isinstance(outcome, AveragingError):
            continue
        assert isinstance(outcome, Reduced)
        contributors = sorted(numbers[each] for each in outcome.contributors)
        for place, found in enumerate(outcome.tensors):
            wanted = sum(tensors[number][place] for number in contributors) / len(contributors)
            torch.testing.assert_close(found, wanted)
        named.append(contributors)
    return named


@pytest.mark.parametrize("lost", [0, 3])
@pytest.mark.parametrize("way", ["kill", "crash"])
async def test_whoever_is_lost_at_whatever_moment_the_rest_end_together(
    peers, draw, way, lost, autojump_clock
):
    tensors = draw(COUNT)
    before = [[each.clone() for each in given] for given in tensors]
    attempts = set()
    for moment in MOMENTS:
        async with peers(delay=DELAY) as world:
            await world.add(COUNT)
            rest = [number for number in range(COUNT) if number != lost]
            began = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def strike(world=world, moment=moment):
                    await trio.sleep(moment)
                    getattr(world.world, way)(world.peers[lost].host)

                nursery.start_soon(strike)
                # A host that has stopped runs no tasks; its round ends by itself, unheard.
                nursery.start_soon(world.reduce_in_vain, world.group(), tensors[lost], lost)
                outcomes = await world.reduce(world.group(), tensors, only=rest)
                nursery.cancel_scope.cancel()
            named = check(world, tensors, outcomes)
            assert len(named) == len(rest)
            assert named[0] in (list(range(COUNT)), rest)
            assert all(each == named[0] for each in named)
            assert trio.current_time() - began < 90
            await trio.sleep(90)
            assert {world.held()[number] for number in rest} == {(0, 0)}
            attempts.add(tuple(named[0]))
    assert len(attempts) == 2  # early losses are left out, and late ones are not
    for given, old in zip(tensors, before, strict=True):
        assert all(map(torch.equal, given, old))


async def test_one_after_the_other_may_be_lost(peers, draw, autojump_clock):
    tensors = draw(6)
    rng = random.Random(1)
    for _ in range(8):
        async with peers(delay=DELAY) as world:
            await world.add(6)
            lost = sorted(rng.sample(range(6), 3))
            rest = [number for number in range(6) if number not in lost]
            async with trio.open_nursery() as nursery:

                async def strike(world=world, lost=lost):
                    for number in lost:
                        await trio.sleep(rng.uniform(0, 0.1))
                        world.world.kill(world.peers[number].host)

                nursery.start_soon(strike)
                for number in lost:
                    nursery.start_soon(world.reduce_in_vain, world.group(), tensors[number], number)
                outcomes = await world.reduce(world.group(), tensors, only=rest)
                nursery.cancel_scope.cancel()
            named = check(world, tensors, outcomes)
            assert len(named) == len(rest)
            assert all(each == named[0] for each in named)


async def test_who_never_comes_is_left_out(peers, draw, autojump_clock):
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        tensors = draw(COUNT)
        outcomes = await world.reduce(world.group(), tensors, only=[0, 1, 3])
        assert check(world, tensors, outcomes) == [[0, 1, 3]] * 3
        assert 10 < trio.current_time() < 11  # the others came at once, and it has its patience
        late = await world.reduce(world.group(), tensors, only=[2])
        assert isinstance(late[2], AveragingError)
        assert "over here" in str(late[2])


@pytest.mark.parametrize("count", [3, 6])
async def test_a_machine_that_falls_silent_costs_the_others_a_few_times_their_patience_at_most(
    peers, draw, count, autojump_clock
):
    tensors, longest = draw(count), 0.0
    for moment in MOMENTS:
        async with peers(delay=DELAY) as world:
            await world.add(count)
            began = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def strike(world=world, moment=moment):
                    await trio.sleep(moment)
                    world.world.crash(world.peers[0].host)

                nursery.start_soon(strike)
                nursery.start_soon(world.reduce_in_vain, world.group(), tensors[0], 0)
                outcomes = await world.reduce(world.group(), tensors, only=range(1, count))
                nursery.cancel_scope.cancel()
            assert len(check(world, tensors, outcomes)) == count - 1
            longest = max(longest, trio.current_time() - began)
    assert 10 < longest < 45


async def test_who_takes_contributions_and_gives_no_part_is_left_out_when_the_others_have_theirs(
    peers, draw, monkeypatch, autojump_clock
):
    tensors, pass_on = draw(COUNT), Serving._pass_on
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        silent = world.peers[1].peer_id

        async def keep(self, numbers, result):
            if self._round.own == silent:
                await trio.sleep_forever()
            await pass_on(self, numbers, result)

        monkeypatch.setattr(Serving, "_pass_on", keep)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.reduce_in_vain, world.group(), tensors[1], 1)
            outcomes = await world.reduce(world.group(), tensors, only=[0, 2, 3])
            nursery.cancel_scope.cancel()
        assert check(world, tensors, outcomes) == [[0, 2, 3]] * 3
        assert trio.current_time() < 32


async def test_whoever_lacks_a_part_that_the_others_have_is_given_the_result(
    peers, draw, monkeypatch, autojump_clock
):
    tensors, give_part = draw(COUNT), Serving._give_part
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        giver, taker = (world.peers[number].peer_id for number in (0, 1))

        async def keep_from_one(self, stream, slot):
            if self._round.own == giver and stream.peer_id == taker:
                answer = Part(members=self._members, weight=float(COUNT))
                await stream.send_all(encode_answer(answer))
                await trio.sleep_forever()
            await give_part(self, stream, slot)

        monkeypatch.setattr(Serving, "_give_part", keep_from_one)
        outcomes = await world.reduce(world.group(), tensors)
        assert check(world, tensors, outcomes) == [[0, 1, 2, 3]] * COUNT
        assert 20 < trio.current_time() < 30


async def test_a_contribution_that_stops_half_way_loses_nobody_but_its_sender(
    peers, draw, monkeypatch, autojump_clock
):
    tensors, contribute = draw(COUNT), Attempt._contribute
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        silent, taker = (world.peers[number].peer_id for number in (0, 1))

        async def stop_half_way(self, stream, peer_id):
            if self._round.own == silent and peer_id == taker:
                await trio.sleep(9)  # it comes at the last moment, and then it says nothing more
                await stream.send_all(self._round.join(peer_id))
                await trio.sleep_forever()
            await contribute(self, stream, peer_id)

        monkeypatch.setattr(Attempt, "_contribute", stop_half_way)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.reduce_in_vain, world.group(), tensors[0], 0)
            outcomes = await world.reduce(world.group(), tensors, only=[1, 2, 3])
            nursery.cancel_scope.cancel()
        assert check(world, tensors, outcomes) == [[1, 2, 3]] * 3
        assert trio.current_time() < 25


async def test_who_is_slow_and_not_silent_is_waited_for(peers, draw, monkeypatch, autojump_clock):
    tensors, receive = draw(COUNT), Carrier.receive_chunk
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        slow = world.peers[2].host.peer_id

        async def crawl(self, stream, chunk, patience):
            found = await receive(self, stream, chunk, patience)
            if stream.peer_id == slow:
                await trio.sleep(3)  # a chunk; it has some five for each of the others
            return found

        monkeypatch.setattr(Carrier, "receive_chunk", crawl)
        outcomes = await world.reduce(world.group(), tensors)
        assert check(world, tensors, outcomes) == [[0, 1, 2, 3]] * COUNT
        assert trio.current_time() > 15


async def test_who_comes_alone_hears_why_there_is_no_result(peers, draw, autojump_clock):
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        outcomes = await world.reduce(world.group(), draw(COUNT), only=[1])
        assert isinstance(outcomes[1], AveragingError)
        assert "only 1 of 4 members" in str(outcomes[1])


async def test_no_round_takes_longer_than_its_time(peers, draw, autojump_clock):
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        outcomes = await world.reduce(world.group(), draw(COUNT), only=[1, 2], timeout=7)
        assert trio.current_time() == pytest.approx(7)
        assert all("time is up" in str(each) for each in outcomes.values())
        assert {type(each) for each in outcomes.values()} == {AveragingError}


async def test_a_quorum_that_is_missed_ends_the_round_at_once(peers, draw, autojump_clock):
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        world.world.kill(world.peers[2].host)
        outcomes = await world.reduce(world.group(), draw(COUNT), only=[0, 1, 3], quorum=COUNT)
        assert {type(each) for each in outcomes.values()} == {AveragingError}
        assert trio.current_time() < 10


async def test_those_that_reduce_nothing_are_served_all_the_same(peers, draw, autojump_clock):
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        tensors = draw(COUNT)
        group = world.group(bandwidths=[0, 3.0, 0, 1.0])
        outcomes = await world.reduce(group, tensors)
        assert check(world, tensors, outcomes) == [[0, 1, 2, 3]] * 4
        assert trio.current_time() < 1


async def test_if_nobody_is_left_to_reduce_there_is_no_result(peers, draw, autojump_clock):
    async with peers(delay=DELAY) as world:
        await world.add(COUNT)
        world.world.kill(world.peers[1].host)
        group = world.group(bandwidths=[0, 3.0, 0, 0])
        outcomes = await world.reduce(group, draw(COUNT), only=[0, 2, 3])
        assert {type(each) for each in outcomes.values()} == {AveragingError}
        assert "no member is left that could reduce" in str(outcomes[0])
