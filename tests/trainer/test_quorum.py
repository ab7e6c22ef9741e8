import pytest
import trio

from p2pnode.errors import HostLostError
from p2pnode.trainer.quorum import Quorum, gather
from p2pnode.trainer.sources import Answer, CallPolicy, ExpertCall
from p2pnode.wire.keys import PrivateKey


def call_of(*samples):
    return ExpertCall(name="ffn.0", inputs=(), samples=samples)


def peer(number):
    return PrivateKey.from_seed(bytes([number]) * 32).peer_id


def test_a_quorum_is_reached_when_every_sample_has_enough_answers():
    first, second, third = call_of(0, 1), call_of(1, 2), call_of(0, 2)
    quorum = Quorum([first, second, third], k_min=1)
    assert not quorum.receive(first, answered=True)
    assert quorum.receive(second, answered=True)


def test_more_answers_may_be_needed():
    calls = [call_of(0), call_of(0), call_of(0)]
    quorum = Quorum(calls, k_min=2)
    assert [quorum.receive(call, answered=True) for call in calls] == [False, True, True]


def test_a_sample_whose_calls_have_all_failed_is_not_waited_for():
    first, second = call_of(0), call_of(1)
    quorum = Quorum([first, second], k_min=1)
    assert not quorum.receive(first, answered=False)
    assert quorum.receive(second, answered=True)


async def test_stragglers_are_cut_off_a_while_after_the_quorum(autojump_clock):
    delays = {(0,): 1.0, (0, 1): 2.0, (1,): 2.9, (1, 0): 30.0}
    calls = [call_of(*samples) for samples in delays]

    async def make(call, attempt):
        attempt.peer_id = peer(len(call.samples))
        await trio.sleep(delays[call.samples])
        return Answer(tensors=())

    start = trio.current_time()
    outcomes, late = await gather(calls, make, CallPolicy(timeout=60, timeout_after_k_min=1.0))
    assert trio.current_time() - start == pytest.approx(3.0)
    assert [isinstance(outcome, Answer) for outcome in outcomes] == [True, True, True, False]
    assert outcomes[3] is None
    assert late == [peer(2)]


async def test_errors_are_outcomes_and_do_not_start_the_countdown(autojump_clock):
    async def make(call, _attempt):
        if call.samples == (0,):
            raise HostLostError("gone")
        await trio.sleep(5)
        return Answer(tensors=())

    calls = [call_of(0), call_of(0, 1)]
    outcomes, late = await gather(calls, make, CallPolicy(timeout=60, timeout_after_k_min=1.0))
    assert isinstance(outcomes[0], HostLostError)
    assert isinstance(outcomes[1], Answer)
    assert late == []


async def test_cancelling_cancels_all_calls(autojump_clock):
    ended = []

    async def make(call, _attempt):
        try:
            await trio.sleep_forever()
        finally:
            ended.append(call)

    calls = [call_of(0), call_of(1)]
    with trio.move_on_after(1) as scope:
        await gather(calls, make, CallPolicy(timeout=60))
    assert scope.cancelled_caught
    assert len(ended) == 2


async def test_a_bug_in_a_call_is_no_outcome(autojump_clock):
    async def make(_call, _attempt):
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        await gather([call_of(0)], make, CallPolicy(timeout=60))
