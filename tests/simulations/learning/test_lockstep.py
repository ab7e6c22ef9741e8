"""Blocking code in step with trio: it never runs beside it, and never outlives it."""

import queue
import threading

import pytest
import trio

from p2pnode.errors import NoPeersError
from simulations.learning.lockstep import LockstepExperts


class Caller:
    """Answers after a while of virtual time."""

    def __init__(self, error=None):
        self.error = error

    async def choose(self, block, _scores, k):
        await trio.sleep(100)
        if self.error is not None:
            raise self.error
        return [[(block, float(k))]]

    async def forward_all(self, calls, _policy):
        await trio.sleep(10)
        return [("forward", each) for each in calls]

    async def backward_all(self, calls, _policy):
        await trio.sleep(1)
        return [("backward", each) for each in calls]

    async def live_experts(self, block, grid):
        await trio.lowlevel.checkpoint()
        return [f"{block}.{size}" for size in grid]


def lockstep_threads():
    return [each for each in threading.enumerate() if "lockstep" in each.name]


async def test_calls_take_virtual_time_and_the_work_takes_none(autojump_clock):
    experts = LockstepExperts(Caller())

    def work():
        chosen = experts.choose("ffn", [], 3)
        return (
            chosen,
            experts.forward(["a"], None),
            experts.backward(["b"], None),
            experts.live_experts("ffn", (1, 2)),
        )

    assert await experts.run(work) == (
        [[("ffn", 3.0)]],
        [("forward", "a")],
        [("backward", "b")],
        ["ffn.1", "ffn.2"],
    )
    assert trio.current_time() == 111
    assert lockstep_threads() == []


async def test_the_work_reads_the_virtual_clock(autojump_clock):
    experts = LockstepExperts(Caller())
    await trio.sleep(5)

    def work():
        before = experts.now()
        experts.forward(["a"], None)
        return before, experts.now()

    assert await experts.run(work) == (5, 15)


async def test_other_tasks_run_only_while_the_work_waits(autojump_clock):
    experts = LockstepExperts(Caller())
    order = []

    async def other():
        for _ in range(3):
            order.append(("other", trio.current_time()))
            await trio.sleep(40)

    def work():
        order.append("before")
        experts.choose("ffn", [], 1)
        order.append("after")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await experts.run(work)
        order.append(trio.current_time())
    assert order == ["before", ("other", 0), ("other", 40), ("other", 80), "after", 100]


async def test_a_node_s_error_is_raised_in_the_work_which_may_go_on(autojump_clock):
    experts = LockstepExperts(Caller(NoPeersError("nobody")))

    def work():
        with pytest.raises(NoPeersError, match="nobody"):
            experts.choose("ffn", [], 1)
        return "went on"

    assert await experts.run(work) == "went on"
    with pytest.raises(NoPeersError, match="nobody"):
        await experts.run(lambda: experts.choose("ffn", [], 1))


async def test_what_the_work_raises_is_raised_where_it_was_asked_for(autojump_clock):
    experts = LockstepExperts(Caller())

    def work():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await experts.run(work)
    assert await experts.run(lambda: "again") == "again"


async def test_a_cancelled_run_ends_its_work_at_once(autojump_clock):
    experts = LockstepExperts(Caller())
    ended = []

    def work():
        try:
            experts.choose("ffn", [], 1)
        except Exception:  # noqa: BLE001  # that is the point: even this must not hold it up
            ended.append("swallowed")
        finally:
            ended.append("unwound")
            experts.choose("ffn", [], 1)  # nobody is there to answer: it must not wait
            ended.append("answered")

    with trio.move_on_after(5) as scope:
        await experts.run(work)
    assert scope.cancelled_caught
    assert trio.current_time() == 5
    assert ended == ["unwound"]
    assert lockstep_threads() == []
    assert await experts.run(lambda: experts.live_experts("ffn", (1,))) == ["ffn.1"]


async def test_an_interrupt_while_the_work_computes_ends_it_at_its_next_call(
    autojump_clock, monkeypatch
):
    experts = LockstepExperts(Caller())
    interrupted = threading.Event()
    ended = []

    class Interrupted(queue.SimpleQueue):
        def get(self):
            if self is experts._requests:
                interrupted.set()
                raise KeyboardInterrupt
            return super().get()

    def work():
        interrupted.wait()
        try:
            experts.choose("ffn", [], 1)
        finally:
            ended.append("unwound")

    with monkeypatch.context() as patched:
        patched.setattr(queue, "SimpleQueue", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            await experts.run(work)
    assert ended == ["unwound"]
    assert lockstep_threads() == []


async def test_a_bug_in_a_call_ends_the_work_and_is_raised(autojump_clock):
    experts = LockstepExperts(Caller(KeyError("bug")))
    with pytest.raises(KeyError, match="bug"):
        await experts.run(lambda: experts.choose("ffn", [], 1))
    assert lockstep_threads() == []
