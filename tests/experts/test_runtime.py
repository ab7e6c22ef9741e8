import threading

import pytest
import trio

from p2pnode.config import HostingSettings
from p2pnode.errors import DeadlineExceededError, OverloadedError, PausedError
from p2pnode.experts.pool import BatchPool
from p2pnode.experts.runtime import Runtime, WaitedCall, WorkerThread, compute_inline
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

ALICE = PrivateKey.from_seed(b"a" * 32).peer_id
A, B = Uid("open:r", "ffn.0"), Uid("open:r", "ffn.1")


class Device:
    """Computes by writing down what it is asked to."""

    def __init__(self, duration=1.0, window=0.0, max_calls=100):
        self.duration = duration
        self.busy = False
        self.log = []
        self.settled = []
        self.pool = BatchPool(
            HostingSettings(max_batch_rows=100, max_queued_calls=max_calls, batch_window=window)
        )
        self.runtime = Runtime(
            self.pool, self.execute, lambda batch, _: self.settled.append(batch), self.compute
        )

    def execute(self, uids, calls):
        self.log.append((uids[0].name, [call.key for call in calls]))
        return [[call.key] for call in calls]

    async def compute(self, work):
        await trio.lowlevel.checkpoint()
        assert not self.busy, "one piece of work at a time"
        self.busy = True
        with trio.CancelScope(shield=True):  # as a thread that cannot be interrupted
            await trio.sleep(self.duration)
        self.busy = False
        return work()

    async def call(self, key, uid=A, patience=100.0):
        now = trio.current_time()
        call = WaitedCall(
            uids=(uid,),
            kind="forward",
            caller=ALICE,
            rows=1,
            inputs=(),
            key=key,
            arrived=now,
            deadline=now + patience,
        )
        self.runtime.submit(call)
        return await self.runtime.result(call)


async def test_calls_that_come_while_the_device_is_busy_are_joined(nursery, autojump_clock):
    device = Device()
    await nursery.start(device.runtime.run)
    for number in range(4):
        nursery.start_soon(device.call, number)
        await trio.sleep(0.1)
    await device.runtime.wait_idle()
    assert device.log == [("ffn.0", [0]), ("ffn.0", [1, 2, 3])]


async def test_the_oldest_call_is_served_first(nursery, autojump_clock):
    device = Device()
    await nursery.start(device.runtime.run)
    for key, uid in enumerate([A, B, A, B]):
        nursery.start_soon(device.call, key, uid)
        await trio.sleep(0.1)
    await device.runtime.wait_idle()
    assert device.log == [("ffn.0", [0]), ("ffn.1", [1, 3]), ("ffn.0", [2])]


async def test_each_caller_gets_its_own_answer(nursery, autojump_clock):
    device = Device()
    await nursery.start(device.runtime.run)
    answers = []

    async def call(key):
        answers.append((key, await device.call(key)))

    async with trio.open_nursery() as callers:
        for key in range(5):
            callers.start_soon(call, key)
    assert sorted(answers) == [(key, [key]) for key in range(5)]


async def test_a_call_given_up_while_queued_costs_no_compute(nursery, autojump_clock):
    device = Device(max_calls=1)
    await nursery.start(device.runtime.run)
    nursery.start_soon(device.call, 0)
    await trio.sleep(0.1)
    with trio.move_on_after(0.5):
        await device.call(1)
    assert len(device.pool) == 0
    await device.call(2)
    assert device.log == [("ffn.0", [0]), ("ffn.0", [2])]


async def test_a_call_given_up_while_computed_is_settled_all_the_same(nursery, autojump_clock):
    device = Device()
    await nursery.start(device.runtime.run)
    with trio.move_on_after(0.5) as scope:
        await device.call(0)
    assert scope.cancelled_caught
    await device.runtime.wait_idle()
    assert [call.outcome for call in device.settled[0].calls] == [[0]]


async def test_a_late_call_fails_without_costing_compute(nursery, autojump_clock):
    device = Device()
    await nursery.start(device.runtime.run)
    nursery.start_soon(device.call, 0)
    await trio.sleep(0.1)
    with pytest.raises(DeadlineExceededError, match="while it was queued"):
        await device.call(1, patience=0.5)
    await device.call(2)
    assert device.log == [("ffn.0", [0]), ("ffn.0", [2])]


async def test_a_batch_waits_for_company_as_long_as_it_is_told(nursery, autojump_clock):
    device = Device(window=0.5, duration=0.0)
    await nursery.start(device.runtime.run)
    for key in range(3):
        nursery.start_soon(device.call, key)
        await trio.sleep(0.2)
    await device.runtime.wait_idle()
    assert device.log == [("ffn.0", [0, 1, 2])]


async def test_exclusive_work_runs_between_batches(nursery, autojump_clock):
    device = Device()
    await nursery.start(device.runtime.run)
    for key, uid in enumerate([A, B]):
        nursery.start_soon(device.call, key, uid)
        await trio.sleep(0.1)
    await device.runtime.exclusive(lambda: device.log.append("exclusive"))
    await device.runtime.wait_idle()
    assert device.log == [("ffn.0", [0]), "exclusive", ("ffn.1", [1])]


async def test_exclusive_work_sees_batches_settled(nursery, autojump_clock):
    device = Device()
    await nursery.start(device.runtime.run)
    nursery.start_soon(device.call, 0)
    await trio.sleep(0.1)
    assert await device.runtime.exclusive(lambda: len(device.settled)) == 1


async def test_exclusive_work_needs_no_running_loop(autojump_clock):
    assert await Device().runtime.exclusive(lambda: 3) == 3


async def test_an_idle_device_is_idle_at_once(nursery, autojump_clock):
    device = Device()
    await nursery.start(device.runtime.run)
    with trio.fail_after(0.1):
        await device.runtime.wait_idle()
    nursery.start_soon(device.call, 0)
    await trio.sleep(0.1)
    with trio.move_on_after(0.5) as scope:
        await device.runtime.wait_idle()
    assert scope.cancelled_caught


async def test_a_device_is_idle_when_the_last_call_is_given_up(nursery, autojump_clock):
    device = Device(window=5.0)
    await nursery.start(device.runtime.run)
    with trio.move_on_after(1.0):
        await device.call(0)
    with trio.fail_after(10):
        await device.runtime.wait_idle()
    assert device.log == []


async def test_stopping_the_loop_fails_what_it_had_taken(autojump_clock):
    device = Device()
    failed = []

    async def call(key):
        try:
            await device.call(key)
        except (OverloadedError, PausedError) as error:
            failed.append(str(error))

    async def never(_work):
        await trio.sleep_forever()

    device.runtime.compute = never
    async with trio.open_nursery() as callers, trio.open_nursery() as loop:
        await loop.start(device.runtime.run)
        callers.start_soon(call, 0)
        await trio.sleep(0.1)
        loop.cancel_scope.cancel()
    assert failed == ["the host is shutting down; call another"]


async def test_two_who_wait_for_one_call_each_get_their_own_error(nursery, autojump_clock):
    device = Device()
    device.execute = lambda uid, calls: [OverloadedError("x") for _ in calls]
    device.runtime._execute = device.execute
    await nursery.start(device.runtime.run)
    now = trio.current_time()
    call = WaitedCall(
        uids=(A,), kind="forward", caller=ALICE, rows=1, inputs=(), arrived=now, deadline=now + 9
    )
    device.runtime.submit(call)
    errors = []

    async def wait():
        try:
            await device.runtime.result(call)
        except (OverloadedError, PausedError) as error:
            errors.append(error)

    async with trio.open_nursery() as waiters:
        waiters.start_soon(wait)
        waiters.start_soon(wait)
    assert errors[0] is not errors[1]


async def test_inline_compute_returns_and_raises_what_the_work_does(autojump_clock):
    assert await compute_inline(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        await compute_inline(lambda: 1 / 0)


async def test_the_loop_runs_on_while_the_worker_thread_is_busy():
    worker, may_end = WorkerThread(), threading.Event()
    order = []

    async def work():
        await worker(lambda: order.append(may_end.wait(10)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        order.append("loop")
        may_end.set()
    assert order == ["loop", True]


async def test_a_cancelled_worker_thread_is_waited_for():
    worker, began, may_end = WorkerThread(), threading.Event(), threading.Event()
    ended = []

    def work():
        began.set()
        may_end.wait(10)
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker, work)
        await trio.to_thread.run_sync(began.wait)
        nursery.cancel_scope.cancel()
        may_end.set()
    assert ended == [True]
