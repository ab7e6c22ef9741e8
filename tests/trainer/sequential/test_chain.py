"""Passes through blocks whose hosts die: on virtual time, over the light network."""

from collections import Counter

import pytest
import torch
import trio

from p2pnode.errors import (
    AlreadyAppliedError,
    DeadlineExceededError,
    NoLiveExpertError,
    NonFiniteError,
    OverloadedError,
    SchemaError,
    UnknownExpertError,
)
from p2pnode.rpc.server import CallHandler
from p2pnode.trainer.sources import CallPolicy


class Scripted(CallHandler):
    """Serves experts, after what the script does before and behind each call."""

    def __init__(self, experts, script):
        self.experts = experts
        self.script = script
        self.calls = []

    def info(self, uid, span=1):
        return self.experts.info(uid, span)

    def check(self, uid, span=1, *, caller):
        self.experts.check(uid, span, caller=caller)

    async def forward(self, uid, inputs, *, span=1, caller, deadline, age=None):
        self.calls.append(("forward", uid.coordinate, span))
        await self.script("before forward", uid.coordinate)
        return await self.experts.forward(
            uid, inputs, span=span, caller=caller, deadline=deadline, age=age
        )

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
        self.calls.append(("backward", uid.coordinate, span))
        await self.script("before backward", uid.coordinate)
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
        await self.script("after backward", uid.coordinate)
        return answer


async def serve_scripted(swarm, script, *patterns):
    made = []

    def wrap(experts):
        made.append(Scripted(experts, script))
        return made[0]

    server = await swarm.serve(*patterns, handler=wrap)
    return server, made[0]


async def test_outputs_gradients_and_steps_are_those_of_the_local_blocks(autojump_clock, lab):
    async with lab.open() as swarm:
        twin = lab.twin(4)
        servers = [await swarm.serve("blocks.[0:2]"), await swarm.serve("blocks.[2:4]")]
        chain = await lab.chain(swarm, 4)
        for step in range(1, 3):
            outputs, passage = await lab.forward(chain)
            torch.testing.assert_close(outputs, twin.forward(lab.inputs))
            assert len(passage.stages) == 2
            gradient = await lab.backward(chain, passage)
            torch.testing.assert_close(gradient, twin.backward(lab.inputs, lab.upstream))
            assert lab.steps(servers, 4) == [step] * 4
            assert all(stage.inputs is None for stage in passage.stages)  # nothing is left behind


async def test_one_call_runs_all_blocks_of_a_host(autojump_clock, lab):
    async with lab.open() as swarm:
        servers = [
            await swarm.serve("blocks.[0:2]"),
            await swarm.serve("blocks.[2:6]"),
            await swarm.serve("blocks.[0:6]"),
        ]
        chain = await lab.chain(swarm, 6)
        _, passage = await lab.forward(chain)
        assert lab.stages(servers, passage) == [(2, 0, 6)]


async def test_a_host_that_dies_in_forward_is_gone_around(autojump_clock, lab):
    async def die(when, _number):
        await trio.lowlevel.checkpoint()
        if when == "before forward":
            servers[1].crash()
            await trio.sleep_forever()

    async with lab.open() as swarm:
        servers = [await swarm.serve("blocks.[0:2]")]
        servers.append((await serve_scripted(swarm, die, "blocks.[2:4]"))[0])
        chain = await lab.chain(swarm, 4)
        await lab.look(chain)  # it is in use
        servers += [await swarm.serve("blocks.2"), await swarm.serve("blocks.3")]
        outputs, passage = await lab.forward(chain)
        assert lab.stages(servers, passage) == [(0, 0, 2), (2, 2, 3), (3, 3, 4)]
        torch.testing.assert_close(outputs, lab.twin(4).forward(lab.inputs))


@pytest.mark.parametrize("replacements", [["blocks.[1:4]"], ["blocks.1", "blocks.[2:4]"]])
@pytest.mark.parametrize("when", ["between", "before backward", "after backward"])
async def test_a_host_that_dies_in_backward_is_stood_in_for_by_others(
    autojump_clock, lab, replacements, when
):

    async def die(moment, _number):
        await trio.lowlevel.checkpoint()
        if moment == when:
            servers[1].crash()
            await trio.sleep_forever()

    async with lab.open() as swarm:
        twin = lab.twin(5)
        servers = [await swarm.serve("blocks.0")]
        servers.append((await serve_scripted(swarm, die, "blocks.[1:4]"))[0])
        servers.append(await swarm.serve("blocks.4"))
        chain = await lab.chain(swarm, 5)
        _, passage = await lab.forward(chain)
        assert [stage.hop.span for stage in passage.stages] == [1, 3, 1]
        others = [await swarm.serve(pattern) for pattern in replacements]
        if when == "between":
            servers[1].crash()
        gradient = await lab.backward(chain, passage)
        torch.testing.assert_close(gradient, twin.backward(lab.inputs, lab.upstream))
        left = [servers[0], *others, servers[2]]
        assert lab.steps(left, 5) == [1] * 5
        # The chain goes on as one step of training was taken, with those that live.
        outputs, _ = await lab.forward(chain)
        torch.testing.assert_close(outputs, twin.forward(lab.inputs))


async def test_stages_that_were_let_go_are_computed_again(autojump_clock, lab):
    settings = lab.settings.replace(sequential={"kept_bytes": lab.inputs.nbytes})
    async with lab.open(settings) as swarm:
        twin = lab.twin(4)
        servers = [await swarm.serve(f"blocks.{number}") for number in range(4)]
        chain = await lab.chain(swarm, 4)
        _, passage = await lab.forward(chain)
        assert [stage.inputs is None for stage in passage.stages] == [True, True, True, False]
        gradient = await lab.backward(chain, passage)
        torch.testing.assert_close(gradient, twin.backward(lab.inputs, lab.upstream))
        assert lab.steps(servers, 4) == [1] * 4


async def test_a_pass_that_nobody_goes_back_through_keeps_nothing(autojump_clock, lab):
    async with lab.open() as swarm:
        for number in range(3):
            await swarm.serve(f"blocks.{number}")
        chain = await lab.chain(swarm, 3)
        _, kept = await lab.forward(chain)
        assert chain._keeper.kept_bytes == 2 * lab.inputs.nbytes
        del kept
        assert chain._keeper.kept_bytes == 0
        _, passage = await lab.forward(chain, keep=False)
        assert chain._keeper.kept_bytes == 0
        assert [stage.inputs for stage in passage.stages] == [None] * 3


async def test_micro_batches_are_in_several_stages_at_once(autojump_clock, lab):
    busy, most = set(), []

    async def compute(when, number):
        if when.startswith("before"):
            busy.add(number)
            most.append(len(busy))
            await trio.sleep(1)
            busy.discard(number)

    async with lab.open() as swarm:
        for number in range(3):
            await serve_scripted(swarm, compute, f"blocks.{number}")
        chain = await lab.chain(swarm, 3)
        await lab.forward(chain)  # knows all hosts
        most.clear()
        parts = lab.inputs.split(1)
        started = trio.current_time()
        found = await chain.forward(parts, lab.policy, True)
        took = trio.current_time() - started
        torch.testing.assert_close(
            torch.cat([outputs for outputs, _ in found]),
            lab.twin(3).forward(lab.inputs),
        )
        assert took < 6 * 3  # seconds of virtual time that one after the other takes
        passages = [passage for _, passage in found]
        gradients = await chain.backward(passages, parts, lab.upstream.split(1), lab.policy)
        assert [each.shape for each in gradients] == [(1, 8)] * 6


async def test_no_more_micro_batches_are_in_flight_than_allowed(autojump_clock, lab):
    under_way, most = 0, 0

    async def compute(_when, _number):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.sleep(1)
        under_way -= 1

    settings = lab.settings.replace(sequential={"micro_batches_at_once": 2})
    async with lab.open(settings) as swarm:
        for number in range(3):
            await serve_scripted(swarm, compute, f"blocks.{number}")
        chain = await lab.chain(swarm, 3)
        await chain.forward(lab.inputs.split(1), lab.policy, False)
        assert most == 2


@pytest.mark.parametrize("at_one_host", [1, 2])
async def test_a_host_has_so_many_micro_batches_at_once_and_others_compute_meanwhile(
    autojump_clock, lab, at_one_host
):
    under_way, most, together = Counter(), Counter(), []

    async def compute(_when, number):
        under_way[number] += 1
        most[number] = max(most[number], under_way[number])
        together.append(under_way.total())
        await trio.sleep(1)
        under_way[number] -= 1

    settings = lab.settings.replace(sequential={"micro_batches_at_one_host": at_one_host})
    async with lab.open(settings, lambda *_: 0.25) as swarm:  # over which two keep a host busy
        for number in range(3):
            await serve_scripted(swarm, compute, f"blocks.{number}")
        chain = await lab.chain(swarm, 3)
        parts = lab.inputs.split(1)
        found = await chain.forward(parts, lab.policy, True)
        passages = [passage for _, passage in found]
        await chain.backward(passages, parts, lab.upstream.split(1), lab.policy)
        assert set(most.values()) == {at_one_host}
        assert max(together) > at_one_host


async def test_a_micro_batch_whose_time_is_up_before_its_turn_fails(autojump_clock, lab):
    async def compute(_when, _number):
        await trio.sleep(8)

    settings = lab.settings.replace(sequential={"micro_batches_at_one_host": 1})
    async with lab.open(settings) as swarm:
        await serve_scripted(swarm, compute, "blocks.0")
        chain = await lab.chain(swarm, 1)
        started = trio.current_time()
        with pytest.raises((OverloadedError, DeadlineExceededError)):
            await chain.forward(lab.inputs.split(1), CallPolicy(timeout=20.0), False)
        assert trio.current_time() - started <= 21


async def test_a_block_without_a_live_host_is_a_typed_error_that_names_it(autojump_clock, lab):
    async with lab.open() as swarm:
        await swarm.serve("blocks.[0:2]")
        last = await swarm.serve("blocks.2")
        chain = await lab.chain(swarm, 4)
        started = trio.current_time()
        with pytest.raises(NoLiveExpertError, match=r"no live host of blocks\.3 is known"):
            await lab.forward(chain)
        assert trio.current_time() - started < 1  # it never had one: nothing to wait for
        chain = await lab.chain(swarm, 3)
        await lab.forward(chain)
        last.crash()
        started = trio.current_time()
        with pytest.raises(NoLiveExpertError, match=r"blocks\.2 is known; the last call failed"):
            await lab.forward(chain)
        patience = swarm.settings.sequential.patience
        assert patience <= trio.current_time() - started <= patience + 5


async def test_a_host_that_comes_back_in_time_is_waited_for(autojump_clock, lab):
    async with lab.open() as swarm:
        await swarm.serve("blocks.0")
        lost = await swarm.serve("blocks.1")
        chain = await lab.chain(swarm, 2)
        await lab.forward(chain)
        lost.crash()
        outputs = []

        async def go_on():
            outputs.append(await lab.forward(chain))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            await trio.sleep(3)
            await swarm.serve("blocks.1")
        assert outputs


async def test_a_busy_host_is_asked_again_after_a_while_and_not_in_pieces(autojump_clock, lab):
    refusals = 2

    async def refuse(when, _number):
        nonlocal refusals
        await trio.lowlevel.checkpoint()
        if when == "before forward" and refusals:
            refusals -= 1
            raise OverloadedError("full")

    async with lab.open() as swarm:
        await swarm.serve()
        _, handler = await serve_scripted(swarm, refuse, "blocks.[0:3]")
        chain = await lab.chain(swarm, 3)
        await lab.look(chain)
        started = trio.current_time()
        await lab.forward(chain)
        assert handler.calls == [("forward", 0, 3)] * 3
        assert trio.current_time() - started >= 3 * swarm.settings.swarm.ban_time


async def test_a_span_that_a_host_does_not_have_is_asked_for_block_by_block(autojump_clock, lab):
    async def script(_when, _number):
        await trio.lowlevel.checkpoint()

    class Forgetful(Scripted):
        def info(self, uid, span=1):
            if 2 in range(uid.coordinate, uid.coordinate + span):
                raise UnknownExpertError("block 2 has moved away")
            return super().info(uid, span)

    async with lab.open() as swarm:
        servers = [
            await swarm.serve("blocks.[0:4]", handler=lambda experts: Forgetful(experts, script)),
            await swarm.serve("blocks.2"),
        ]
        chain = await lab.chain(swarm, 4)
        _, passage = await lab.forward(chain)
        assert lab.stages(servers, passage)[-2:] == [(1, 2, 3), (0, 3, 4)]


async def test_a_silent_host_costs_half_the_time_while_another_is_left(autojump_clock, lab):
    async def sleep(when, _number):
        if when == "before forward":
            await trio.sleep(1000)

    async with lab.open() as swarm:
        servers = [(await serve_scripted(swarm, sleep, "blocks.0"))[0]]
        chain = await lab.chain(swarm, 1)
        await lab.look(chain)
        servers.append(await swarm.serve("blocks.0"))
        await lab.look(chain)
        started = trio.current_time()
        _, passage = await lab.forward(chain)
        assert lab.stages(servers, passage) == [(1, 0, 1)]
        assert trio.current_time() - started == pytest.approx(15, abs=0.5)
        servers[1].crash()
        started = trio.current_time()
        with pytest.raises((DeadlineExceededError, NoLiveExpertError)):
            await lab.forward(chain)
        assert trio.current_time() - started <= 30.1


async def test_relayed_hosts_are_used_when_there_is_no_direct_one(autojump_clock, lab, monkeypatch):
    async with lab.open() as swarm:
        servers = [await swarm.serve("blocks.[0:2]"), await swarm.serve("blocks.0")]
        chain = await lab.chain(swarm, 2)
        relayed = {servers[0].host.peer_id}
        monkeypatch.setattr(
            chain._client.book, "needs_relay", lambda entry: entry.peer_id in relayed
        )
        _, passage = await lab.forward(chain)
        assert lab.stages(servers, passage) == [(0, 0, 2)]  # one call over it, and not two hops
        servers.append(await swarm.serve("blocks.1"))
        await lab.look(chain)
        _, passage = await lab.forward(chain)
        assert lab.stages(servers, passage) == [(1, 0, 1), (2, 1, 2)]


async def test_a_step_that_was_taken_is_not_taken_elsewhere(autojump_clock, lab):
    async def script(when, _number):
        await trio.lowlevel.checkpoint()
        if when == "after backward":
            raise AlreadyAppliedError("its answer is no longer kept")

    async with lab.open() as swarm:
        await serve_scripted(swarm, script, "blocks.0")
        chain = await lab.chain(swarm, 1)
        _, passage = await lab.forward(chain)
        other = await swarm.serve("blocks.0")
        with pytest.raises(AlreadyAppliedError):
            await lab.backward(chain, passage)
        assert other.steps("blocks.0") == 0


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        (torch.zeros(3, 7), SchemaError),
        (torch.zeros(3, 8, dtype=torch.float64), SchemaError),
        (torch.full((3, 8), torch.nan), NonFiniteError),
    ],
)
async def test_tensors_that_no_host_takes_are_the_callers_mistake(
    autojump_clock, lab, kind, inputs
):
    async with lab.open() as swarm:
        await swarm.serve("blocks.[0:2]")
        chain = await lab.chain(swarm, 2)
        with pytest.raises(kind):
            await lab.forward(chain, inputs)
        await lab.forward(chain)  # nobody was banned for it


@pytest.mark.parametrize("ends", [(2, 2), (3, 2), (-1, 2), (0, 257)])
async def test_a_chain_has_at_least_one_block_and_not_too_many(autojump_clock, lab, ends):
    async with lab.open() as swarm:
        await swarm.serve("blocks.0")
        with pytest.raises(ValueError, match="a chain has"):
            await lab.chain(swarm, ends[1], ends[0])
