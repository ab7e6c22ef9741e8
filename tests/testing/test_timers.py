import math

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pnode.testing.timers import Postman, VirtualClock


def run(main, *, virtual):
    """Run `main(timers)` with either kind of timers."""

    async def outer():
        timers = trio.lowlevel.current_clock() if virtual else Postman()
        async with trio.open_nursery() as nursery:
            await nursery.start(timers.run)
            await main(timers)
            nursery.cancel_scope.cancel()

    clock = VirtualClock() if virtual else MockClock(autojump_threshold=0)
    trio.run(outer, clock=clock)


BOTH = pytest.mark.parametrize("virtual", [False, True], ids=["postman", "clock"])


@BOTH
@given(dues=st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_acts_are_done_in_time_and_in_order(virtual, dues):
    done = []

    async def main(timers):
        for number, due in enumerate(dues):
            timers.at(due, lambda number=number: done.append((trio.current_time(), number)))
        timers.at(math.inf, lambda: done.append("never"))
        await trio.sleep(200)

    run(main, virtual=virtual)
    expected = sorted((due, number) for number, due in enumerate(dues))
    assert [number for _, number in done] == [number for _, number in expected]
    assert [at for at, _ in done] == pytest.approx([due for due, _ in expected])  # clocks round


@BOTH
def test_an_act_may_ask_for_another_one_sooner_than_all_others(virtual):
    done = []

    async def main(timers):
        timers.at(5.0, lambda: done.append(trio.current_time()))
        timers.at(1.0, lambda: timers.at(2.0, lambda: done.append(trio.current_time())))
        timers.at(3.0, lambda: timers.at(0.0, lambda: done.append(trio.current_time())))
        await trio.sleep(10)

    run(main, virtual=virtual)
    assert done == [2.0, 3.0, 5.0]


@BOTH
def test_sleepers_wake_in_time_and_can_be_cancelled(virtual):
    woken = []

    async def main(timers):
        async def sleep(due):
            await timers.sleep_until(due)
            woken.append(trio.current_time())

        with trio.move_on_after(2.0):
            async with trio.open_nursery() as nursery:
                for due in (1.0, 1.0, 2.5, 100.0):
                    nursery.start_soon(sleep, due)
        await trio.sleep(5)

    run(main, virtual=virtual)
    assert woken == [1.0, 1.0]


@BOTH
def test_a_sleeper_that_is_cancelled_as_it_wakes_is_woken_once(virtual):
    async def main(timers):
        with trio.CancelScope(deadline=1.0) as scope:
            await timers.sleep_until(1.0)
        assert trio.current_time() == 1.0
        await trio.sleep(1)
        assert scope.deadline == 1.0

    run(main, virtual=virtual)


@BOTH
def test_what_an_act_raises_ends_the_block_that_runs_the_timers(virtual):
    async def main(timers):
        timers.at(1.0, lambda: 1 / 0)
        await trio.sleep(10)
        pytest.fail("this was not to be reached")

    with pytest.raises(ExceptionGroup) as caught:
        run(main, virtual=virtual)
    assert caught.group_contains(ZeroDivisionError)


def test_the_clock_stands_still_while_a_task_runs_and_jumps_to_the_next_deadline():
    async def main():
        assert trio.current_time() == 0.0
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == 0.0
        await trio.sleep(1e4)
        assert trio.current_time() == 1e4
        with trio.move_on_after(7.0):
            await trio.sleep_forever()
        assert trio.current_time() == 1e4 + 7

    trio.run(main, clock=VirtualClock())


def test_time_does_not_pass_while_a_thread_is_waited_for_without_deadlines():
    async def main():
        assert await trio.to_thread.run_sync(lambda: 42) == 42
        assert trio.current_time() == 0.0

    trio.run(main, clock=VirtualClock())
