"""When micro-batches are sent to a host that computes them one after the other."""

import itertools

import pytest
import trio

from p2pnode.trainer.sequential.lines import Line, Lines


class _Host:
    """Computes what comes one after the other, each for `computing` seconds, and notes when."""

    def __init__(self, computing, round_trip):
        self.computing = computing
        self.way = round_trip / 2
        self.device = trio.StrictFIFOLock()
        self.waited = []  # of each, in the queue
        self.sent = []
        self.idle = 0.0
        self.busy_until = None

    async def call(self, line):
        async with line.turn() as is_alone:
            self.sent.append((trio.current_time(), is_alone))
            await trio.sleep(self.way)
            arrived = trio.current_time()
            async with self.device:
                began = trio.current_time()
                self.waited.append(began - arrived)
                self.idle += began - (began if self.busy_until is None else self.busy_until)
                await trio.sleep(self.computing)
                self.busy_until = trio.current_time()
            await trio.sleep(self.way)


async def _send(host, line, count):
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(host.call, line)
    return trio.current_time() - began


@pytest.mark.parametrize(("round_trip", "room"), [(0.0, 1), (0.1, 2), (1.0, 2), (1.5, 3), (6.0, 7)])
async def test_a_host_is_never_idle_once_it_is_known_and_has_at_most_one_in_its_queue(
    autojump_clock, round_trip, room
):
    host, line = _Host(1.0, round_trip), Line(16, round_trip)
    assert line.room == 1
    took = await _send(host, line, 10)
    assert line.room == room
    assert host.idle == pytest.approx(round_trip)  # until the first one is back
    assert took == pytest.approx(10 * 1.0 + 2 * round_trip)
    assert all(each < 1.0 for each in host.waited)  # so that it joins none of them


async def test_the_first_one_goes_alone_and_the_others_apart(autojump_clock):
    host, line = _Host(1.0, 3.0), Line(16, 3.0)
    await _send(host, line, 5)
    assert [alone for _, alone in host.sent] == [True, True, False, False, False]
    times = [at for at, _ in host.sent]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == pytest.approx([4.0, 0.9, 0.9, 0.9])


async def test_no_more_are_under_way_than_the_settings_allow(autojump_clock):
    host, line = _Host(1.0, 30.0), Line(3, 30.0)
    under_way, most = 0, 0

    async def call():
        nonlocal under_way, most
        async with line.turn():
            under_way += 1
            most = max(most, under_way)
            await trio.sleep(31.0)
            under_way -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(call)
    assert most == line.room == 3
    assert not host.sent


async def test_one_that_fails_or_is_given_up_leaves_its_place_and_says_nothing_of_the_host(
    autojump_clock,
):
    line = Line(4, 1.0)
    with pytest.raises(RuntimeError):
        async with line.turn():
            raise RuntimeError("the host has died")
    with trio.move_on_after(1.0):
        async with line.turn():
            await trio.sleep_forever()
    assert line.room == 1
    async with line.turn() as is_alone:
        assert is_alone
        with trio.move_on_after(1.0) as scope:  # while it waits for its turn
            async with line.turn():
                pass
        assert scope.cancelled_caught
        await trio.sleep(5.0)
    assert line.room == 2
    async with line.turn() as is_alone:
        assert is_alone


async def test_what_takes_no_time_is_sent_as_often_as_allowed(autojump_clock):
    line = Line(5, 0.0)
    async with line.turn():
        pass
    assert line.room == 5


async def test_what_the_last_pass_has_seen_is_taken_for_the_first_one_and_then_corrected(
    autojump_clock,
):
    host = _Host(1.0, 1.0)
    first = Lines(8, lambda _: 1.0)
    assert first.computing() == {}
    await _send(host, first.to("host"), 4)
    assert first.computing() == {"host": pytest.approx(1.0)}
    host = _Host(1.0, 1.0)
    took = await _send(host, Lines(8, lambda _: 1.0, first.computing()).to("host"), 10)
    assert took == pytest.approx(10 * 1.0 + 1.0)  # nothing but the way there and back
    assert all(each < 1.0 for each in host.waited)
    slower = Lines(8, lambda _: 1.0, first.computing())
    await _send(_Host(3.0, 1.0), slower.to("host"), 4)
    assert slower.computing() == {"host": pytest.approx(3.0)}


async def test_each_host_has_a_line_of_its_own(autojump_clock):
    lines = Lines(8, {"near": 0.0, "far": 1.0}.get)
    assert lines.to("near") is lines.to("near")
    assert lines.to("near") is not lines.to("far")
