import os
import signal
import threading
import warnings

import pytest
import trio

from p2pnode.errors import ConnectionClosedError, NoPeersError
from p2pnode.trainer.portal import Portal


async def serve(*, task_status):
    task_status.started("ready")
    await trio.sleep_forever()


@pytest.fixture
def portal():
    portal = Portal(serve, name="test portal")
    assert portal.start() == "ready"
    yield portal
    portal.close()


async def double(number):
    await trio.lowlevel.checkpoint()
    return 2 * number


def test_a_call_returns_what_the_function_returns(portal):
    assert portal.call(double, 21) == 42


def test_a_call_raises_what_the_function_raises(portal):
    async def fail():
        raise NoPeersError("nobody")

    with pytest.raises(NoPeersError, match="nobody"):
        portal.call(fail)
    assert portal.call(double, 1) == 2


def test_the_one_typed_error_of_a_nursery_reaches_the_caller_by_itself(portal):
    async def fail():
        async with trio.open_nursery() as nursery:

            async def deep():
                raise NoPeersError("nobody")

            nursery.start_soon(deep)

    with pytest.raises(NoPeersError, match="nobody"):
        portal.call(fail)


def test_a_group_with_a_bug_in_it_stays_a_group(portal):
    async def fail():
        raise ExceptionGroup("both", [NoPeersError("nobody"), ZeroDivisionError()])

    with pytest.raises(ExceptionGroup, match="both"):
        portal.call(fail)


def test_many_threads_may_call_at_once(portal):
    results = {}
    meeting = threading.Barrier(8)

    async def meet(number):
        # Nobody goes on until all eight calls are under way.
        await trio.to_thread.run_sync(meeting.wait, 10)
        return number

    threads = [
        threading.Thread(target=lambda n=n: results.update({n: portal.call(meet, n)}))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: n for n in range(8)}


def test_a_failed_start_raises_the_typed_error_and_leaves_no_thread():
    async def fail(*, task_status):
        del task_status
        async with trio.open_nursery():
            raise NoPeersError("nobody")

    portal = Portal(fail, name="failing portal")
    with pytest.raises(NoPeersError, match="nobody"):
        portal.start()
    assert "failing portal" not in {thread.name for thread in threading.enumerate()}


def test_calls_after_the_end_are_refused_with_a_reason():
    portal = Portal(serve, name="closed portal")
    portal.start()
    portal.close()
    portal.close()
    with pytest.raises(ConnectionClosedError, match="closed"):
        portal.call(double, 1)


def test_a_call_under_way_ends_when_the_portal_closes():
    portal = Portal(serve, name="closing portal")
    portal.start()
    waiting = threading.Event()
    errors = []

    async def wait():
        waiting.set()
        await trio.sleep_forever()

    def call():
        try:
            portal.call(wait)
        except ConnectionClosedError as error:
            errors.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    waiting.wait(10)
    portal.close()
    caller.join(10)
    assert not caller.is_alive()
    assert "closed during the call" in errors[0]


def test_a_crashed_service_ends_calls_and_is_raised_by_close():
    crash = trio.Event()

    async def serve_for_a_while(*, task_status):
        task_status.started()
        await crash.wait()
        raise ZeroDivisionError("a bug")

    portal = Portal(serve_for_a_while, name="crashing portal")
    portal.start()

    async def wait_for_crash():
        crash.set()
        await trio.sleep_forever()

    with pytest.raises(ConnectionClosedError) as caught:
        portal.call(wait_for_crash)
    assert caught.value.__cause__ is not None
    with pytest.raises(ExceptionGroup) as group:
        portal.close()
    assert group.group_contains(ZeroDivisionError, match="a bug")
    portal.close()


def test_ctrl_c_interrupts_a_call_and_cancels_its_work(portal):
    started, cancelled = threading.Event(), threading.Event()

    async def wait():
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    def interrupt():
        started.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        portal.call(wait)
    thread.join()
    assert cancelled.wait(10)
    assert portal.call(double, 2) == 4


def test_ctrl_c_during_the_start_leaves_no_thread():
    started = threading.Event()

    async def never_ready(*, task_status):
        del task_status
        started.set()
        await trio.sleep_forever()

    def interrupt():
        started.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    portal = Portal(never_ready, name="slow portal")
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        portal.start()
    thread.join()
    assert "slow portal" not in {thread.name for thread in threading.enumerate()}


def test_a_blocking_call_inside_the_trio_thread_is_refused(portal):
    async def call_back():
        portal.call(double, 1)

    with pytest.raises(RuntimeError, match="wait for itself"):
        portal.call(call_back)


def test_a_forked_process_is_told_that_the_portal_is_not_its_own(portal):
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 for forks with threads
        child = os.fork()
    if not child:
        signal.alarm(10)  # without the check the call would wait for ever
        said = b""
        try:
            portal.call(double, 1)
        except ConnectionClosedError as error:
            said = str(error).encode()
        finally:
            os.write(write, said)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert b"belongs to another process" in pipe.read()
    os.waitpid(child, 0)
    assert portal.call(double, 2) == 4
