import threading

import trio
import trio.testing

from p2pnode.config import HostingSettings
from p2pnode.experts.pool import Batch, BatchPool, Call
from p2pnode.experts.quick_work import MAX_REMEMBERED, QuickWork
from p2pnode.experts.runtime import Runtime, WaitedCall, WorkerThread
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

ALICE = PrivateKey.from_seed(b"a" * 32).peer_id
A, B = (Uid("open:r", "ffn.0"),), (Uid("open:r", "ffn.1"),)


def call(uids=A, kind="forward", rows=1):
    return Call(
        uids=uids, kind=kind, caller=ALICE, rows=rows, inputs=(), arrived=0.0, deadline=100.0
    )


def batch(*calls):
    return Batch(uids=calls[0].uids, kind=calls[0].kind, calls=list(calls))


def test_nothing_is_quick_before_it_was():
    quick = QuickWork(0.001)
    assert not quick.includes(A, "forward", 1)
    quick.note(batch(call(rows=8)), 0.0005)
    assert quick.includes(A, "forward", 8)
    assert quick.includes(A, "forward", 1)
    assert not quick.includes(A, "forward", 9)
    assert not quick.includes(A, "backward", 1)
    assert not quick.includes(B, "forward", 1)


def test_what_was_slow_once_has_to_be_quick_again_first():
    quick = QuickWork(0.001)
    quick.note(batch(call(rows=8)), 0.0005)
    quick.note(batch(call(rows=100)), 0.1)  # larger: says nothing of the smaller ones
    assert quick.includes(A, "forward", 8)
    quick.note(batch(call(rows=4)), 0.1)
    assert not quick.includes(A, "forward", 1)
    quick.note(batch(call(rows=2)), 0.0005)
    assert quick.includes(A, "forward", 2)
    assert not quick.includes(A, "forward", 8)


def test_a_limit_of_zero_calls_nothing_quick():
    quick = QuickWork(0.0)
    quick.note(batch(call()), 1e-9)
    assert not quick.includes(A, "forward", 1)


def test_it_forgets_what_has_not_been_called_for_longest():
    quick = QuickWork(1.0)
    for number in range(MAX_REMEMBERED + 1):
        quick.note(batch(call(uids=(Uid("open:r", f"ffn.{number}"),))), 0.0)
    assert not quick.includes(A, "forward", 1)
    assert quick.includes(B, "forward", 1)


async def test_a_device_computes_quick_calls_where_they_come(nursery):
    threads, settled = [], []
    ours = threading.get_ident()

    def execute(_uids, calls):
        threads.append(threading.get_ident())
        return [[call.key] for call in calls]

    runtime = Runtime(
        BatchPool(HostingSettings()),
        execute,
        lambda batch, _: settled.append(batch),
        WorkerThread(),
        quick=QuickWork(10.0),
    )
    await nursery.start(runtime.run)

    async def make(key):
        now = trio.current_time()
        made = WaitedCall(
            uids=A,
            kind="forward",
            caller=ALICE,
            rows=1,
            inputs=(),
            key=key,
            arrived=now,
            deadline=now + 100,
        )
        runtime.submit(made)
        return await runtime.result(made)

    assert await make(b"first") == [b"first"]  # nobody knows yet that it is quick
    assert await make(b"second") == [b"second"]
    for number in (1, 2, 2):
        before = len(threads)
        async with runtime.turn:
            for each in range(number):
                nursery.start_soon(make, bytes([each]))
            await trio.testing.wait_all_tasks_blocked()
            assert len(threads) == before  # something else has the device
        await runtime.wait_idle()
    # The first two together are new to it again.
    assert [each == ours for each in threads] == [False, True, True, False, True]
    assert [len(each.calls) for each in settled] == [1, 1, 1, 2, 2]
