import pytest
import torch
import trio

from p2pnode.errors import StaleUpdateError
from p2pnode.events import EventBus
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.age import Age
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

A, B = Uid("open:digits", "blocks.0"), Uid("open:digits", "blocks.1")
ALICE = PrivateKey.from_seed(bytes(32)).peer_id
X = torch.randn(2, 8)


class Rig:
    def __init__(self, settings):
        self.host = ExpertHost(
            settings, None, EventBus(), compute=compute_inline, disk=compute_inline
        )
        self.calls = 0

    async def backward(self, age=None, span=1):
        self.calls += 1
        return await self.host.backward(
            A,
            [X],
            [X],
            span=span,
            caller=ALICE,
            call_id=self.calls.to_bytes(16),
            deadline=trio.current_time() + 10,
            age=age,
        )


@pytest.fixture
async def rig(settings, nursery):
    made = Rig(settings)
    await nursery.start(made.host.run)
    await made.host.add([A, B])
    return made


async def test_a_forward_call_is_told_which_weights_computed_it(rig):
    await rig.backward()
    age = Age()
    await rig.host.forward(A, [X], span=2, caller=ALICE, deadline=1e9, age=age)
    assert age.steps == (1, 0)


async def test_an_update_within_the_bound_is_applied_and_tells_its_staleness(rig):
    for _ in range(3):
        await rig.backward()
    age = Age(since=(0,), bound=3)
    await rig.backward(age)
    assert age.staleness == 3
    assert rig.host.steps(A) == 4


async def test_an_update_beyond_the_bound_is_dropped(rig):
    for _ in range(4):
        await rig.backward()
    with pytest.raises(StaleUpdateError, match=r"taken 4 steps .* more than 3"):
        await rig.backward(Age(since=(0,), bound=3))
    assert rig.host.steps(A) == 4


async def test_of_a_span_no_layer_is_stepped_when_one_is_too_far(rig):
    for _ in range(4):
        await rig.backward()
    with pytest.raises(StaleUpdateError):
        await rig.backward(Age(since=(0, 0), bound=3), span=2)
    assert [rig.host.steps(uid) for uid in (A, B)] == [4, 0]


async def test_calls_that_are_computed_together_are_judged_one_by_one(settings, nursery):
    rig = Rig(settings)
    await rig.host.add([A])  # it computes nothing before `run`, so that they meet in the queue
    outcomes = {}

    async def call(name, age):
        try:
            outcomes[name] = len(await rig.backward(age))
        except StaleUpdateError:
            outcomes[name] = "dropped"

    async with trio.open_nursery() as calls:
        calls.start_soon(call, "fresh", Age(since=(0,), bound=1))
        calls.start_soon(call, "stale", Age(since=(2,), bound=1))
        await trio.testing.wait_all_tasks_blocked()
        await nursery.start(rig.host.run)
    assert outcomes == {"fresh": 1, "stale": "dropped"}
    assert rig.host.steps(A) == 1
