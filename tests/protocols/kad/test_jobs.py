import pytest
import trio

from p2pnode.protocols.kad.jobs import LONGEST_NAP, Job, Jobs


class Work:
    """Work that is due at given times, and takes a while."""

    def __init__(self, *due, duration=0.0):
        self.due = list(due)
        self.duration = duration
        self.done = []

    def next_due(self, _now):
        return self.due[0] if self.due else float("inf")

    async def run(self):
        self.done.append(trio.current_time())
        self.due.pop(0)
        await trio.sleep(self.duration)


async def _run(jobs, seconds):
    with trio.move_on_after(seconds):
        await jobs.run()


async def test_each_job_runs_when_it_is_due_and_slow_ones_hold_up_no_other(autojump_clock):
    slow, quick = Work(1.0, 2.0, duration=10.0), Work(3.0, 5.0)
    await _run(Jobs([Job(each.next_due, each.run) for each in (slow, quick)]), 30)
    assert slow.done == [1.0, 11.0]  # never twice at once
    assert quick.done == [3.0, 5.0]


async def test_a_job_keeps_its_spacing(autojump_clock):
    work = Work(1.0, 1.0, 1.0)
    await _run(Jobs([Job(work.next_due, work.run, spacing=5.0)]), 30)
    assert work.done == [1.0, 6.0, 11.0]


@pytest.mark.parametrize(("wake", "noticed"), [(True, 7.0), (False, LONGEST_NAP)])
async def test_what_becomes_due_earlier_is_noticed_at_a_wake_or_after_a_nap(
    autojump_clock, wake, noticed
):
    work = Work(1000.0)
    jobs = Jobs([Job(work.next_due, work.run)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run, jobs, 100)
        await trio.sleep(7)
        work.due = [5.0]
        if wake:
            jobs.wake()
    assert work.done == [noticed]


@pytest.mark.parametrize(("due", "looks"), [(12.0, 2), (80.0, 1)])
async def test_a_wake_for_what_is_due_after_the_next_look_changes_nothing(
    autojump_clock, due, looks
):
    seen = []

    def next_due(now):
        seen.append(now)
        return 50.0

    jobs = Jobs([Job(next_due, trio.lowlevel.checkpoint)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run, jobs, 20)
        await trio.sleep(7)
        jobs.wake(due)
    assert seen == [0.0, 7.0][:looks]
