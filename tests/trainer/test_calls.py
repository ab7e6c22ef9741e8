"""Which host is called, which one next, and how long everything may take; on virtual time."""

import pytest
import torch
import trio

from p2pnode.errors import (
    AlreadyAppliedError,
    DeadlineExceededError,
    DialError,
    ExpertFailedError,
    HostLostError,
    NoLiveExpertError,
    NonFiniteError,
    OverloadedError,
    SchemaError,
    StaleUpdateError,
    TensorTooLargeError,
    UnknownExpertError,
    WrongRunError,
)
from p2pnode.rpc.age import Age
from p2pnode.rpc.messages import TRACE_BYTES
from p2pnode.rpc.server import CallHandler, CallServed
from p2pnode.trainer.sources import CallPolicy, ExpertCall

NAME = "ffn.0.0"
POLICY = CallPolicy(timeout=10, timeout_after_k_min=1.0)
INPUTS = torch.randn(3, 8)


class Scripted(CallHandler):
    """Serves experts, after what the script does for each call."""

    def __init__(self, experts, script):
        self.experts = experts
        self.script = script
        self.calls = []

    def info(self, uid, span=1):
        return self.experts.info(uid, span)

    def check(self, uid, span=1, *, caller):
        self.experts.check(uid, span, caller=caller)

    async def forward(self, uid, inputs, *, span=1, caller, deadline, age=None):
        self.calls.append("forward")
        answer = await self.experts.forward(
            uid, inputs, span=span, caller=caller, deadline=deadline, age=age
        )
        return await self.script("forward", uid, answer)

    async def backward(
        self,
        uid,
        inputs,
        gradients,
        *,
        span=1,
        caller,
        call_id,
        deadline,
        age=None,
        wants_gradients=True,
    ):
        self.calls.append(call_id)
        answer = await self.experts.backward(
            uid,
            inputs,
            gradients,
            span=span,
            caller=caller,
            call_id=call_id,
            deadline=deadline,
            age=age,
        )
        return await self.script("backward", uid, answer)


async def serve_scripted(swarm, script, *patterns):
    """Start a server whose calls go through `script(kind, uid, answer)`."""
    made = []

    def wrap(experts):
        made.append(Scripted(experts, script))
        return made[0]

    server = await swarm.serve(*(patterns or (NAME,)), handler=wrap)
    return server, made[0]


def call(**changes):
    return ExpertCall(**{"name": NAME, "inputs": (INPUTS,), "samples": (0, 1, 2), **changes})


async def backward(caller, answer, timeout=10):
    gradients = (torch.ones(3, 8),)
    policy = CallPolicy(timeout=timeout)
    return await caller.backward(call(gradients=gradients, answered_by=answer.by), policy)


async def test_a_dead_host_is_replaced_by_another_one_of_the_expert(autojump_clock, open_swarm):
    async with open_swarm() as swarm:
        await swarm.serve()
        first, second = [await swarm.serve(NAME) for _ in range(2)]
        caller = await swarm.session()
        answer = await caller.forward(call(), POLICY)
        dead, left = (first, second) if answer.by == first.host.peer_id else (second, first)
        dead.crash()
        for _ in range(3):
            again = await caller.forward(call(), POLICY)
            assert again.by == left.host.peer_id
        torch.testing.assert_close(again.tensors, answer.tensors)


async def test_a_failed_host_is_left_alone_and_trusted_again_later(autojump_clock, open_swarm):
    failing = True

    async def script(_kind, _uid, answer):
        await trio.lowlevel.checkpoint()
        if failing:
            raise OverloadedError("full")
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        _, bad = await serve_scripted(swarm, script)
        caller = await swarm.session()
        with pytest.raises(OverloadedError):
            await caller.forward(call(), POLICY)
        assert bad.calls == ["forward"]
        for _ in range(3):
            with pytest.raises(NoLiveExpertError, match="full"):
                await caller.forward(call(), POLICY)
        assert bad.calls == ["forward"]
        failing = False
        await trio.sleep(swarm.settings.swarm.ban_time)
        assert (await caller.forward(call(), POLICY)).tensors[0].shape == (3, 8)
        stats = caller.book.recorder.snapshot()
        assert (stats.calls, stats.failed_calls) == (3, 1)  # the schema was asked for once


async def test_an_unknown_expert_names_what_was_looked_for(autojump_clock, open_swarm):
    async with open_swarm() as swarm:
        await swarm.serve(NAME)
        caller = await swarm.session()
        with pytest.raises(NoLiveExpertError, match=r"ffn\.7\.7"):
            await caller.forward(call(name="ffn.7.7"), POLICY)


async def test_a_host_that_no_longer_serves_the_expert_is_passed_over(autojump_clock, open_swarm):
    async def script(kind, _uid, _answer):
        await trio.lowlevel.checkpoint()
        raise UnknownExpertError(f"no {kind} here")

    async with open_swarm() as swarm:
        await swarm.serve()
        await serve_scripted(swarm, script)
        good = await swarm.serve(NAME)
        caller = await swarm.session()
        for _ in range(2):
            assert (await caller.forward(call(), POLICY)).by == good.host.peer_id


async def test_a_refusal_keeps_its_kind_while_the_host_is_left_alone(autojump_clock, open_swarm):
    async def script(_kind, _uid, _answer):
        await trio.lowlevel.checkpoint()
        raise WrongRunError("another run's token")

    async with open_swarm() as swarm:
        await swarm.serve()
        await serve_scripted(swarm, script)
        caller = await swarm.session()
        for _ in range(2):
            with pytest.raises(WrongRunError, match="another run"):
                await caller.forward(call(), POLICY)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ((torch.zeros(3, 7),), "8"),
        ((torch.zeros(3, 8, dtype=torch.float64),), "float64"),
        ((torch.zeros(3, 8), torch.zeros(3, 8)), "1 input"),
        ((torch.zeros(0, 8),), "at least one"),
    ],
)
async def test_what_does_not_fit_is_refused_before_it_is_sent(
    autojump_clock, open_swarm, inputs, sentence
):
    async def script(_kind, _uid, answer):
        await trio.lowlevel.checkpoint()
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        _, handler = await serve_scripted(swarm, script)
        caller = await swarm.session()
        with pytest.raises(SchemaError, match=sentence):
            await caller.forward(call(inputs=inputs), POLICY)
        assert handler.calls == []
        assert caller.book.recorder.snapshot().failed_calls == 0
        await caller.forward(call(), POLICY)  # nobody was banned for the caller's mistake


async def test_backward_goes_to_the_host_that_answered_forward(autojump_clock, open_swarm):
    async with open_swarm() as swarm:
        servers = [await swarm.serve(NAME) for _ in range(3)]
        caller = await swarm.session()
        answers = [await caller.forward(call(), POLICY) for _ in servers]
        assert len({answer.by for answer in answers}) == 3  # each is tried once in the beginning
        for answer in answers:
            await backward(caller, answer)
        assert [server.steps(NAME) for server in servers] == [1, 1, 1]


async def test_a_step_whose_gradients_nobody_wants_brings_none_back(autojump_clock, open_swarm):
    async with open_swarm() as swarm:
        servers = [await swarm.serve(NAME) for _ in range(2)]
        caller = await swarm.session()
        answers = [await caller.forward(call(), POLICY) for _ in servers]
        gradients = (torch.ones(3, 8),)
        found = [
            await caller.backward(
                call(gradients=gradients, answered_by=each.by, wants_gradients=wants), POLICY
            )
            for each, wants in zip(answers, (True, False), strict=True)
        ]
        assert [len(each.tensors) for each in found] == [1, 0]
        assert [server.steps(NAME) for server in servers] == [1, 1]
        stepped = [await caller.forward(call(answered_by=each.by), POLICY) for each in answers]
        torch.testing.assert_close(stepped[0].tensors, stepped[1].tensors)


async def test_a_lost_answer_is_asked_for_again_and_steps_the_optimiser_once(
    autojump_clock, open_swarm
):
    losses = 1

    async def script(kind, _uid, answer):
        nonlocal losses
        await trio.lowlevel.checkpoint()
        if kind == "backward" and losses:
            losses -= 1
            connection = server.host.connection_to(trainer)
            connection.close("the cable was pulled")
            await trio.lowlevel.checkpoint()
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        server, handler = await serve_scripted(swarm, script)
        caller = await swarm.session()
        trainer = caller._host.peer_id
        answer = await caller.forward(call(), POLICY)
        gradients = await backward(caller, answer)
        assert gradients.by == server.host.peer_id
        first, second = handler.calls[1:]
        assert first == second
        assert server.steps(NAME) == 1


async def test_backward_moves_to_another_host_when_the_first_is_dead(autojump_clock, open_swarm):
    async with open_swarm() as swarm:
        await swarm.serve()
        servers = [await swarm.serve(NAME) for _ in range(2)]
        caller = await swarm.session()
        answer = await caller.forward(call(), POLICY)
        dead, left = servers
        if dead.host.peer_id != answer.by:
            dead, left = left, dead
        dead.crash()
        assert (await backward(caller, answer)).by == left.host.peer_id
        assert left.steps(NAME) == 1


async def test_a_step_that_was_taken_is_not_taken_elsewhere(autojump_clock, open_swarm):
    async def script(kind, _uid, answer):
        await trio.lowlevel.checkpoint()
        if kind == "backward":
            raise AlreadyAppliedError("its answer is no longer kept")
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        await serve_scripted(swarm, script)
        caller = await swarm.session()
        answer = await caller.forward(call(), POLICY)
        other = await swarm.serve(NAME)
        with pytest.raises(AlreadyAppliedError):
            await backward(caller, answer)
        assert other.steps(NAME) == 0


async def test_a_silent_host_costs_half_the_time_while_another_is_left(autojump_clock, open_swarm):
    async def script(_kind, _uid, answer):
        await trio.sleep(1000)
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        await serve_scripted(swarm, script)
        caller = await swarm.session()
        start = trio.current_time()
        with pytest.raises(DeadlineExceededError):
            await caller.forward(call(), POLICY)
        assert trio.current_time() - start == pytest.approx(10, abs=0.1)
        await trio.sleep(20)
        good = await swarm.serve(NAME)
        await trio.sleep(1)
        start = trio.current_time()
        answer = await caller.forward(call(), POLICY)
        assert answer.by == good.host.peer_id
        assert trio.current_time() - start < 6


@pytest.mark.parametrize("kind", ["forward", "backward"])
async def test_answers_with_nan_count_as_failures_if_they_are_looked_for(
    autojump_clock, open_swarm, kind
):
    async def script(called, _uid, answer):
        await trio.lowlevel.checkpoint()
        return [torch.full_like(each, torch.nan) for each in answer] if called == kind else answer

    async with open_swarm() as swarm:
        await swarm.serve()
        await serve_scripted(swarm, script)
        caller = await swarm.session()
        careless = await caller.forward(call(), POLICY)
        assert careless.tensors[0].isnan().any() == (kind == "forward")
        policy = CallPolicy(timeout=10, detect_anomalies=True)
        made = call(gradients=(torch.ones(3, 8),), answered_by=careless.by)
        method = caller.forward if kind == "forward" else caller.backward
        with pytest.raises(ExpertFailedError, match="NaN"):
            await method(made, policy)
        assert caller.book.recorder.snapshot().anomalies == 1


async def test_nan_from_the_caller_is_not_held_against_the_expert(autojump_clock, open_swarm):
    async with open_swarm() as swarm:
        server = await swarm.serve("ffn.0.0")
        caller = await swarm.session()
        bad = torch.full((3, 8), torch.nan)
        with pytest.raises(NonFiniteError, match=r"an input for ffn\.0\.0"):
            await caller.forward(call(inputs=(bad,)), POLICY)
        answer = await caller.forward(call(), POLICY)
        with pytest.raises(NonFiniteError, match=r"a gradient for ffn\.0\.0"):
            await caller.backward(call(gradients=(bad,), answered_by=answer.by), POLICY)
        assert server.steps("ffn.0.0") == 0
        await caller.backward(call(gradients=(torch.ones(3, 8),), answered_by=answer.by), POLICY)
        assert server.steps("ffn.0.0") == 1


async def test_a_layer_does_not_wait_for_a_straggler(autojump_clock, open_swarm):
    async def script(_kind, _uid, answer):
        await trio.sleep(8)
        return answer

    async with open_swarm() as swarm:
        await swarm.serve("ffn.0.[0:2]")
        slow, _ = await serve_scripted(swarm, script, "ffn.1.[0:2]")
        caller = await swarm.session()
        calls = [call(name=name) for name in ("ffn.0.0", "ffn.1.0", "ffn.1.1")]
        start = trio.current_time()
        outcomes = await caller.forward_all(calls, POLICY)
        assert trio.current_time() - start == pytest.approx(1, abs=0.1)
        assert [type(each).__name__ for each in outcomes] == [
            "Answer",
            "DeadlineExceededError",
            "DeadlineExceededError",
        ]
        stats = caller.book.recorder.snapshot()
        assert (stats.stragglers, stats.failed_calls) == (2, 0)
        # The second time in a row it counts as failed, and is left alone.
        await caller.forward_all(calls, POLICY)
        names = await caller.live_experts("ffn", (2, 2))
        assert names == ["ffn.0.0", "ffn.0.1"]
        del slow


async def test_beam_search_passes_over_an_expert_that_computes_nonsense(autojump_clock, open_swarm):
    async def script(_kind, uid, answer):
        await trio.lowlevel.checkpoint()
        if uid.name == "ffn.0.1":
            raise ExpertFailedError("nonsense")
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        await serve_scripted(swarm, script, "ffn.[0:2].[0:2]")
        caller = await swarm.session()
        scores = [
            torch.tensor([[1.0, 0.0]]).numpy(),
            torch.tensor([[0.0, 1.0]]).numpy(),
        ]

        async def chosen(k):
            (row,) = await caller.choose("ffn", scores, k)
            return [name for name, _ in row]

        assert await chosen(2) == ["ffn.0.1", "ffn.0.0"]
        with pytest.raises(ExpertFailedError):
            await caller.forward(call(name="ffn.0.1"), POLICY)
        assert await chosen(2) == ["ffn.0.0", "ffn.1.1"]
        assert await chosen(4) == ["ffn.0.0", "ffn.1.1", "ffn.1.0"]


async def test_no_more_calls_than_allowed_are_under_way_at_one_host(autojump_clock, open_swarm):
    running, most = 0, 0

    async def script(_kind, _uid, answer):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return answer

    async with open_swarm() as swarm:
        swarm.settings = swarm.settings.replace(trainer={"calls_at_once_per_host": 3})
        await swarm.serve()
        await serve_scripted(swarm, script, "ffn.[0:3].[0:3]")
        caller = await swarm.session()
        calls = [call(name=f"ffn.{i}.{j}") for i in range(3) for j in range(3)]
        start = trio.current_time()
        await caller.forward_all(calls, CallPolicy(timeout=20, timeout_after_k_min=20))
        assert most == 3
        assert trio.current_time() - start == pytest.approx(3, abs=0.2)


async def test_a_cancelled_call_leaves_nothing_behind(autojump_clock, open_swarm):
    cancelled = []

    async def script(_kind, _uid, answer):
        try:
            await trio.sleep(1000)
        except trio.Cancelled:
            cancelled.append(trio.current_time())
            raise
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        server, _ = await serve_scripted(swarm, script)
        caller = await swarm.session()
        with trio.move_on_after(2) as scope:
            await caller.forward(call(), POLICY)
        assert scope.cancelled_caught
        await trio.sleep(0.1)
        assert len(cancelled) == 1
        assert caller.book.limiter(server.host.peer_id).borrowed_tokens == 0
        stats = caller.book.recorder.snapshot()
        assert (stats.failed_calls, stats.stragglers) == (0, 0)


async def test_a_host_lost_in_forward_is_an_error_when_it_was_the_last(autojump_clock, open_swarm):
    async def script(_kind, _uid, _answer):
        server.crash()
        await trio.sleep_forever()

    async with open_swarm() as swarm:
        await swarm.serve()
        server, _ = await serve_scripted(swarm, script)
        caller = await swarm.session()
        with pytest.raises(HostLostError):
            await caller.forward(call(), POLICY)
        with pytest.raises(NoLiveExpertError, match="lost"):
            await caller.forward(call(), POLICY)


async def test_the_faster_of_two_hosts_is_preferred(autojump_clock, open_swarm):
    async def slow(_kind, _uid, answer):
        await trio.sleep(0.5)
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        await serve_scripted(swarm, slow)
        fast = await swarm.serve(NAME)
        caller = await swarm.session()
        answers = [(await caller.forward(call(), POLICY)).by for _ in range(10)]
        assert answers[2:] == [fast.host.peer_id] * 8
        latencies = caller.book.recorder.snapshot().hosts
        assert latencies[str(fast.host.peer_id)].latency < 0.1


async def test_a_host_behind_a_relay_is_called_when_no_other_one_is_left(
    autojump_clock, open_swarm
):
    async def slow(_kind, _uid, answer):
        await trio.sleep(0.5)
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        relayed = await swarm.serve(NAME)
        direct, _ = await serve_scripted(swarm, slow)
        caller = await swarm.session()
        caller.book._directory.needs_relay = lambda host: host.peer_id == relayed.host.peer_id
        answers = [(await caller.forward(call(), POLICY)).by for _ in range(5)]
        assert answers == [direct.host.peer_id] * 5
        direct.crash()
        assert (await caller.forward(call(), POLICY)).by == relayed.host.peer_id


async def test_a_host_that_refuses_what_its_own_schema_takes_has_failed(autojump_clock, open_swarm):
    async def script(_kind, _uid, _answer):
        await trio.lowlevel.checkpoint()
        raise SchemaError("input 0 must be something else")

    async with open_swarm() as swarm:
        await swarm.serve()
        await serve_scripted(swarm, script)
        caller = await swarm.session()
        with pytest.raises(ExpertFailedError, match="something else"):
            await caller.forward(call(), POLICY)
        with pytest.raises(NoLiveExpertError, match="something else"):
            await caller.forward(call(), POLICY)
        assert caller.book.recorder.snapshot().failed_calls == 1


async def test_tensors_too_large_for_a_host_are_the_callers_to_split(autojump_clock, open_swarm):
    async def script(_kind, _uid, _answer):
        await trio.lowlevel.checkpoint()
        raise TensorTooLargeError("send fewer rows at once")

    async with open_swarm() as swarm:
        await swarm.serve()
        _, handler = await serve_scripted(swarm, script)
        caller = await swarm.session()
        for _ in range(2):  # the host is not left alone for it
            with pytest.raises(TensorTooLargeError, match="fewer rows"):
                await caller.forward(call(), POLICY)
        assert handler.calls == ["forward", "forward"]


async def test_waiting_for_a_turn_at_a_busy_host_counts_as_time(autojump_clock, open_swarm):
    async def script(_kind, _uid, answer):
        await trio.sleep(1000)
        return answer

    async with open_swarm() as swarm:
        swarm.settings = swarm.settings.replace(trainer={"calls_at_once_per_host": 1})
        await swarm.serve()
        await serve_scripted(swarm, script, "ffn.0.[0:2]")
        caller = await swarm.session()
        for name in ("ffn.0.0", "ffn.0.1"):
            await caller.info(name, timeout=5)
        start = trio.current_time()
        calls = [call(name="ffn.0.0"), call(name="ffn.0.1")]
        first, second = await caller.forward_all(calls, POLICY)
        assert trio.current_time() - start == pytest.approx(10, abs=0.1)
        assert {type(first), type(second)} == {DeadlineExceededError, OverloadedError}


@pytest.mark.parametrize("codec", ["none", "blockwise-int8"])
async def test_a_layers_codec_is_that_of_its_calls(autojump_clock, open_swarm, codec):
    async with open_swarm() as swarm:
        await swarm.serve()
        server = await swarm.serve(NAME)
        caller = await swarm.session()
        policy = CallPolicy(timeout=10, codec=codec)
        exact = await caller.forward(call(), POLICY)
        answer = await caller.forward(call(), policy)
        exact, given = exact.tensors[0], answer.tensors[0]
        assert torch.equal(given, exact) == (codec == "none")
        assert (given - exact).abs().max() < 0.05 * exact.abs().max()
        gradients = call(gradients=(torch.ones(3, 8),), answered_by=answer.by)
        await caller.backward(gradients, policy)
        assert server.steps(NAME) == 1


async def test_a_codec_that_cannot_carry_nan_says_so_and_blames_no_host(autojump_clock, open_swarm):
    async with open_swarm() as swarm:
        await swarm.serve()
        await swarm.serve(NAME)
        caller = await swarm.session()
        policy = CallPolicy(timeout=10, codec="blockwise-int8")
        with pytest.raises(NonFiniteError, match="blockwise-int8"):
            await caller.forward(call(inputs=(torch.full((3, 8), torch.nan),)), policy)
        await caller.forward(call(), policy)


async def test_a_call_has_one_trace_wherever_it_is_tried(autojump_clock, open_swarm):
    failing = True

    async def script(_kind, _uid, answer):
        await trio.lowlevel.checkpoint()
        if failing:
            raise OverloadedError("full")
        return answer

    async with open_swarm() as swarm:
        await swarm.serve()
        served = []
        for _ in range(2):
            server, _ = await serve_scripted(swarm, script)
            server.host.events.on(CallServed, served.append)
        caller = await swarm.session()
        with pytest.raises(OverloadedError):
            await caller.forward(call(), POLICY)
        tried = [event for event in served if event.operation == "forward"]
        assert len(tried) == 2
        assert len({event.trace for event in tried}) == 1
        assert len(tried[0].trace) == TRACE_BYTES
        failing = False
        await trio.sleep(60)
        await caller.forward(call(), POLICY)
        assert served[-1].trace != tried[0].trace


async def test_an_update_that_is_too_stale_is_dropped_and_nobody_is_blamed(
    autojump_clock, open_swarm
):
    async with open_swarm() as swarm:
        server = await swarm.serve(NAME)
        caller = await swarm.session()
        old = Age()
        answer = await caller.forward(call(age=old), POLICY)
        for _ in range(3):
            await backward(caller, answer)
        age = Age(since=old.steps, bound=2)
        gradients = (torch.ones(3, 8),)
        with pytest.raises(StaleUpdateError, match="3 steps"):
            await caller.backward(call(gradients=gradients, age=age), POLICY)
        age.bound = 3
        await caller.backward(call(gradients=gradients, age=age), POLICY)
        assert age.staleness == 3
        assert server.experts.steps(server.experts.uids[0]) == 4


# --- an expert that has just lost its hosts -------------------------------------------------------


async def serve_leaver(swarm):
    """Start a host that has left its expert, while the index still names it."""

    async def script(_kind, _uid, _answer):
        await trio.lowlevel.checkpoint()
        raise UnknownExpertError("look up who serves it")

    await swarm.serve()
    await serve_scripted(swarm, script)


async def serve_later(swarm, seconds):
    await trio.sleep(seconds)
    await swarm.serve(NAME)


@pytest.mark.parametrize("kind", ["forward", "backward"])
async def test_a_call_of_one_expert_waits_until_its_next_host_is_found(
    autojump_clock, open_swarm, kind
):
    async with open_swarm() as swarm:
        await serve_leaver(swarm)
        caller = await swarm.session()
        swarm.nursery.start_soon(serve_later, swarm, 6.0)
        started = trio.current_time()
        if kind == "forward":
            await caller.forward(call(), POLICY)
        else:
            await caller.backward(call(gradients=(torch.ones(3, 8),)), POLICY)
        assert 6 <= trio.current_time() - started < 10


async def test_a_layer_does_not_wait_for_an_expert_that_has_lost_its_host(
    autojump_clock, open_swarm
):
    async with open_swarm() as swarm:
        await serve_leaver(swarm)
        caller = await swarm.session()
        swarm.nursery.start_soon(serve_later, swarm, 6.0)
        started = trio.current_time()
        (outcome,) = await caller.forward_all([call()], POLICY)
        assert isinstance(outcome, UnknownExpertError)
        (outcome,) = await caller.backward_all([call(gradients=(torch.ones(3, 8),))], POLICY)
        assert isinstance(outcome, NoLiveExpertError)
        assert trio.current_time() - started < 2


async def test_an_expert_whose_hosts_are_gone_is_waited_for_once_however_often_it_is_called(
    autojump_clock, open_swarm
):
    async with open_swarm() as swarm:
        patience = swarm.settings.trainer.patience
        await swarm.serve()
        server = await swarm.serve(NAME)
        caller = await swarm.session()
        policy = CallPolicy(timeout=3 * patience)
        await caller.forward(call(), policy)
        server.crash()
        started = trio.current_time()
        with pytest.raises((HostLostError, DialError)):
            await caller.forward(call(), policy)
        assert 0.8 * patience < trio.current_time() - started < 1.3 * patience
        started = trio.current_time()
        for _ in range(3):
            with pytest.raises(NoLiveExpertError):
                await caller.forward(call(), policy)
        assert trio.current_time() - started < 3
        # One that has answered since is worth the wait again.
        server = await swarm.serve(NAME)
        await trio.sleep(swarm.settings.swarm.max_absent_time)
        await caller.forward(call(), policy)
        server.crash()
        swarm.nursery.start_soon(serve_later, swarm, patience / 2)
        await caller.forward(call(), policy)


async def test_an_expert_that_nobody_ever_served_is_searched_for_shortly_and_once(
    autojump_clock, open_swarm
):
    async with open_swarm() as swarm:
        await swarm.serve(NAME)
        caller = await swarm.session()
        started = trio.current_time()
        with pytest.raises(NoLiveExpertError, match=r"ffn\.7\.7"):
            await caller.forward(call(name="ffn.7.7"), POLICY)
        assert trio.current_time() - started < 2 * swarm.settings.trainer.search_patience
        started = trio.current_time()
        with pytest.raises(NoLiveExpertError):
            await caller.forward(call(name="ffn.7.7"), POLICY)
        assert trio.current_time() - started < 0.1


async def test_an_expert_that_the_first_look_missed_is_found_by_the_next(
    autojump_clock, open_swarm
):
    async with open_swarm() as swarm:
        await swarm.serve()
        caller = await swarm.session()
        swarm.nursery.start_soon(serve_later, swarm, swarm.settings.trainer.search_patience / 4)
        await caller.forward(call(), POLICY)
