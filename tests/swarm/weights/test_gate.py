import pytest
import torch
import trio

from p2pnode.errors import DeadlineExceededError, UnknownExpertError
from p2pnode.rpc.server import CallHandler
from p2pnode.swarm.weights.gate import Gate
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

CALLER = PrivateKey.from_seed(bytes(32)).peer_id
UIDS = [Uid("open:digits", f"ffn.{each}") for each in range(4)]


class Experts(CallHandler):
    """Answers after a second."""

    def __init__(self):
        self.running = 0
        self.done = []

    def info(self, uid, span=1):
        return f"{uid.name}+{span}"

    def check(self, uid, span=1, *, caller):
        pass

    async def _work(self, what):
        self.running += 1
        try:
            await trio.sleep(1)
            self.done.append(what)
        finally:
            self.running -= 1
        return []

    async def forward(self, uid, inputs, **options):
        return await self._work(("forward", uid, options["span"]))

    async def backward(self, uid, inputs, gradients, **options):
        return await self._work(("backward", uid, options["call_id"]))


@pytest.fixture
def experts():
    return Experts()


@pytest.fixture
def gate(experts):
    return Gate(experts)


async def forward(gate, uid, span=1, deadline=1e9):
    return await gate.forward(uid, [torch.zeros(1)], span=span, caller=CALLER, deadline=deadline)


async def backward(gate, uid):
    return await gate.backward(uid, [], [], span=1, caller=CALLER, call_id=b"id", deadline=1e9)


async def test_calls_of_open_experts_pass(gate, experts, autojump_clock):
    assert gate.info(UIDS[0], 2) == "ffn.0+2"
    gate.check(UIDS[0], caller=CALLER)
    await forward(gate, UIDS[0], 2)
    await backward(gate, UIDS[1])
    assert experts.done == [("forward", UIDS[0], 2), ("backward", UIDS[1], b"id")]


async def test_calls_that_touch_a_closed_expert_are_refused(gate, experts, autojump_clock):
    gate.close([UIDS[2]])
    for call in (
        lambda: gate.info(UIDS[2]),
        lambda: gate.info(UIDS[0], 3),
        lambda: gate.check(UIDS[1], 2, caller=CALLER),
    ):
        with pytest.raises(UnknownExpertError):
            call()
    with pytest.raises(UnknownExpertError):
        await forward(gate, UIDS[1], 2)
    with pytest.raises(UnknownExpertError):
        await backward(gate, UIDS[2])
    await forward(gate, UIDS[0], 2)
    gate.open([UIDS[2]])
    await forward(gate, UIDS[0], 4)
    assert len(experts.done) == 2


async def test_a_hold_begins_when_the_calls_under_way_have_ended(gate, experts, autojump_clock):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(forward, gate, UIDS[0], 2)
        nursery.start_soon(forward, gate, UIDS[3])
        await trio.sleep(0.5)
        async with gate.holding(UIDS[1]):
            assert ("forward", UIDS[0], 2) in experts.done
            nursery.start_soon(forward, gate, UIDS[0], 2)
            nursery.start_soon(backward, gate, UIDS[1])
            await forward(gate, UIDS[0])  # another expert is none of it
            await trio.sleep(10)
            assert experts.running == 0
    assert len(experts.done) == 5


async def test_calls_that_waited_are_refused_where_the_expert_has_gone(
    gate, experts, autojump_clock
):
    refused = []

    async def call():
        with pytest.raises(UnknownExpertError, match="look up"):
            await backward(gate, UIDS[0])
        refused.append(trio.current_time())

    async with trio.open_nursery() as nursery, gate.holding(UIDS[0]):
        nursery.start_soon(call)
        await trio.sleep(3)
        assert not refused
        gate.close([UIDS[0]])
    assert len(refused) == 1
    assert experts.done == []


async def test_a_call_waits_no_longer_than_its_deadline(gate, autojump_clock):
    async with gate.holding(UIDS[0]):
        with pytest.raises(DeadlineExceededError, match="handed over"):
            await forward(gate, UIDS[0], deadline=trio.current_time() + 2)
        assert trio.current_time() < 2.1


async def test_a_cancelled_call_no_longer_counts(gate, autojump_clock):
    with trio.move_on_after(0.5):
        await forward(gate, UIDS[0])
    with trio.fail_after(0.1):
        async with gate.holding(UIDS[0]):
            pass
    with trio.move_on_after(0.5):  # a hold that was given up holds nobody
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward, gate, UIDS[0])
            await trio.sleep(0.1)
            async with gate.holding(UIDS[0]):
                pytest.fail("a call was under way")
    await forward(gate, UIDS[0])
