"""Whom a look-up asks, and when, of peers that answer as a test says."""

import math

import pytest
import trio

from p2pnode.config import DhtSettings
from p2pnode.errors import RemoteError
from p2pnode.events import EventBus
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.messages import Message, MessageType
from p2pnode.protocols.kad.queries import Queries
from p2pnode.wire.peer_id import PeerId

SETTINGS = DhtSettings(parallelism=3, resiliency=3, patience=1.0, disjoint_paths=1)
QUESTION = Message(type=MessageType.FIND_NODE, key=b"key")


def _peer(number: int) -> PeerId:
    return PeerId(b"\x12\x20" + number.to_bytes(32, "big"))


class Peers:
    """Stands for `KadPeers`: the n-th request takes `seconds[n]`, or the last of them."""

    def __init__(self, *seconds):
        self.seconds = seconds
        self.asked_at = []

    async def ask(self, peer, message, addresses=()):
        number = min(len(self.asked_at), len(self.seconds) - 1)
        self.asked_at.append(trio.current_time())
        if self.seconds[number] < 0:
            await trio.sleep(-self.seconds[number])
            raise RemoteError("it is gone")
        await trio.sleep(self.seconds[number])
        return Message(type=message.type, key=message.key)

    def worth_asking(self, contacts, now):
        return [(each, None) for each in contacts]

    def group_of(self, peer):
        return None


@pytest.fixture
async def requests():
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


def _queries(peers, count=12):
    core = KadCore(_peer(0), SETTINGS, {})
    for number in range(1, count + 1):
        core.table.receive_alive(_peer(number), 0.0)
    return Queries(core, peers, EventBus(), SETTINGS)


async def test_as_many_are_asked_at_once_as_may_be_and_the_next_one_for_each_answer(
    requests, autojump_clock
):
    start, peers = trio.current_time(), Peers(0.25)
    lookup = await _queries(peers).iterate(QUESTION, requests)
    assert [at - start for at in peers.asked_at] == pytest.approx(
        [0.25 * (n // 3) for n in range(12)]
    )
    assert len(lookup.closest) == 12


async def test_whoever_fails_makes_room_for_another(requests, autojump_clock):
    start, peers = trio.current_time(), Peers(-0.25)
    lookup = await _queries(peers).iterate(QUESTION, requests)
    assert [at - start for at in peers.asked_at] == pytest.approx(
        [0.25 * (n // 3) for n in range(12)]
    )
    assert not lookup.closest


async def test_a_look_up_that_has_ended_asks_nobody_any_more(requests, autojump_clock):
    peers = Peers(0.25, 0.5, 0.5)
    await _queries(peers).iterate(QUESTION, requests, lambda _peer, _answer: True)
    await trio.sleep(10)
    assert len(peers.asked_at) == SETTINGS.parallelism


async def test_who_is_slow_gives_its_place_to_another_again_and_again(requests, autojump_clock):
    start, peers = trio.current_time(), Peers(math.inf)
    await _queries(peers).iterate(QUESTION, requests)
    assert [at - start for at in peers.asked_at] == pytest.approx([n // 3 for n in range(12)])
    assert trio.current_time() - start == pytest.approx(SETTINGS.lookup_timeout)


async def test_an_answer_after_a_while_of_silence_lets_the_look_up_go_on(requests, autojump_clock):
    """All are slow, so only the end of the look-up would wake it; then somebody answers."""
    start, peers = trio.current_time(), Peers(*[5.0] * 3, *[math.inf] * 3, 0.25)
    lookup = await _queries(peers, count=6).iterate(QUESTION, requests)
    assert [at - start for at in peers.asked_at] == pytest.approx([0.0] * 3 + [1.0] * 3)
    assert len(lookup.closest) == 3
    assert trio.current_time() - start == pytest.approx(5.0)


async def test_of_several_that_are_asked_late_ones_are_left_once_one_has_answered(
    requests, autojump_clock
):
    start, peers = trio.current_time(), Peers(0.25, 0.5, 5.0)
    answers = await _queries(peers).ask_all([_peer(n) for n in (1, 2, 3)], QUESTION, requests)
    assert len(answers) == 2
    assert trio.current_time() - start == pytest.approx(SETTINGS.patience)
    await trio.sleep(10)
    assert len(answers) == 2  # what comes later changes nothing


async def test_of_several_that_are_asked_the_first_is_waited_for_unless_in_a_hurry(
    requests, autojump_clock
):
    start, peers = trio.current_time(), Peers(5.0)
    everyone = [_peer(n) for n in (1, 2, 3)]
    answers = await _queries(peers).ask_all(everyone, QUESTION, requests)
    assert len(answers) == 3
    assert trio.current_time() - start == pytest.approx(5.0)
    assert not await _queries(peers).ask_all(everyone, QUESTION, requests, hurried=True)
    assert trio.current_time() - start == pytest.approx(5.0 + SETTINGS.patience)


async def test_asking_nobody_ends_at_once(requests, autojump_clock):
    assert await _queries(Peers(1.0)).ask_all([], QUESTION, requests) == {}
