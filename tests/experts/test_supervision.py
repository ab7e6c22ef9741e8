"""Experts at fault: stopped, restarted from the disk, the others untouched."""

import dataclasses

import pytest
import torch
import trio
from torch import nn

from p2pnode.errors import ExpertFailedError
from p2pnode.events import Event, EventBus
from p2pnode.experts import layers
from p2pnode.experts.events import (
    CheckpointFailed,
    ExpertRestarted,
    ExpertRestartFailed,
    ExpertStopped,
)
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

A, B = Uid("open:digits", "ffn.0.0"), Uid("open:digits", "ffn.0.1")
ALICE = PrivateKey.from_seed(b"a" * 32).peer_id
X, G = torch.randn(2, 8), torch.randn(2, 8)
BAD = torch.full((2, 8), 13.0)


class Fragile(nn.Module):
    """Fails on inputs of 13, and on all of them when it has crashed."""

    unbuildable = False

    def __init__(self, hidden_dim):
        super().__init__()
        if Fragile.unbuildable:
            raise RuntimeError("the device is gone")
        self.linear = nn.Linear(hidden_dim, hidden_dim)
        self.crashed = False

    def forward(self, x):
        if self.crashed or (x == 13).any():
            raise RuntimeError("crashed")
        return self.linear(x)


@pytest.fixture(autouse=True)
def _fragile_layer(monkeypatch):
    layer = layers.Layer(name="fragile", build=Fragile, inputs=layers.hidden_rows)
    monkeypatch.setitem(layers._LAYERS, "fragile", layer)
    monkeypatch.setattr(Fragile, "unbuildable", False)


@pytest.fixture
def settings(settings):
    return dataclasses.replace(
        settings,
        layer="fragile",
        max_failures_in_row=3,
        restart_delay=1.0,
        max_restart_delay=10.0,
        checkpoint_interval=1000.0,
    )


class Slow:
    """Inline compute that takes a virtual second."""

    async def __call__(self, work):
        await trio.sleep(1.0)
        return work()


class Rig:
    def __init__(self, settings, directory=None, compute=compute_inline):
        self.events = EventBus()
        self.seen = []
        self.events.on(Event, self.seen.append)
        self.host = ExpertHost(
            settings, directory, self.events, compute=compute, disk=compute_inline
        )
        self.calls = 0

    def of(self, *kinds):
        return [event for event in self.seen if type(event) in kinds]

    def module(self, uid=A):
        return self.host._experts[uid].backend.module

    async def forward(self, x=X, uid=A):
        deadline = trio.current_time() + 100
        return (await self.host.forward(uid, [x], caller=ALICE, deadline=deadline))[0]

    async def backward(self, x=X, g=G, uid=A, number=None):
        self.calls += 1
        call_id = (self.calls if number is None else number).to_bytes(16, "big")
        deadline = trio.current_time() + 100
        answer = await self.host.backward(
            uid, [x], [g], caller=ALICE, call_id=call_id, deadline=deadline
        )
        return answer[0]

    async def fail(self, times=3, use=None, x=X, uid=A):
        for _ in range(times):
            with pytest.raises(ExpertFailedError):
                await (use or self.forward)(x, uid=uid)
        await trio.testing.wait_all_tasks_blocked()

    def stopped(self, uid=A):
        return next(status.stopped for status in self.host.status() if status.uid == uid)


@pytest.fixture
async def rig(settings, tmp_path, nursery):
    rig = Rig(settings, tmp_path)
    await rig.host.add([A, B])
    await nursery.start(rig.host.run)
    return rig


async def test_an_expert_that_fails_on_all_inputs_is_stopped_and_the_others_go_on(
    rig, autojump_clock
):
    rig.module().crashed = True
    await rig.fail(2)
    assert rig.stopped() == ""
    await rig.fail(1)
    (event,) = rig.of(ExpertStopped)
    assert (event.uid, event.reason, event.retry_in) == (
        A,
        "ffn.0.0 failed in forward: RuntimeError: crashed",
        1.0,
    )
    assert rig.stopped() == event.reason
    with pytest.raises(ExpertFailedError, match="out of service here until it is restarted"):
        await rig.forward()
    with pytest.raises(ExpertFailedError, match="out of service"):
        rig.host.check(A, caller=ALICE)
    await rig.forward(uid=B)
    rig.host.check(B, caller=ALICE)


async def test_inputs_that_an_expert_cannot_take_do_not_stop_it(rig, autojump_clock):
    for use in (rig.forward, rig.backward):
        await rig.fail(10, use, BAD)
    await rig.fail(10, rig.forward, torch.full((2, 8), torch.nan))
    assert rig.of(ExpertStopped) == []
    await rig.forward()


async def test_an_expert_that_answers_in_between_is_not_suspected(rig, monkeypatch, autojump_clock):
    tried = []
    monkeypatch.setattr(rig.host._experts[A].backend, "diagnose", lambda: tried.append(1) or "")
    for _ in range(5):
        await rig.fail(2, x=BAD)
        await rig.forward()
    assert tried == []
    await rig.fail(3, x=BAD)
    assert tried == [1]
    await rig.fail(2, x=BAD)  # it was found well: counting starts anew
    assert tried == [1]


async def test_a_stopped_expert_is_restarted_from_its_checkpoint(rig, autojump_clock):
    for number in range(2):
        await rig.backward(number=number)
    await rig.host.save_all()
    expected = await rig.forward()
    await rig.backward(number=2)
    rig.module().crashed = True
    await rig.fail()
    await trio.sleep(1.1)
    assert [(e.uid, e.steps, e.lost) for e in rig.of(ExpertRestarted)] == [(A, 2, 1)]
    assert rig.stopped() == ""
    assert torch.equal(await rig.forward(), expected)
    await rig.backward(number=1)  # is answered as before
    assert rig.host.steps(A) == 2
    await rig.backward(number=2)  # the restored state does not contain it
    assert [rig.host.steps(uid) for uid in (A, B)] == [3, 0]


async def test_an_expert_broken_inside_a_step_is_stopped_at_once(rig, monkeypatch, autojump_clock):
    await rig.backward()
    await rig.host.save_all()

    def half_a_step():
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(rig.host._experts[A].backend._optimizer, "step", half_a_step)
    await rig.fail(1, rig.backward)
    assert "in the middle of an optimiser step" in rig.of(ExpertStopped)[0].reason
    await rig.host.save_all()  # nothing of it is worth keeping, and nothing else is kept from it
    assert rig.of(CheckpointFailed) == []
    await trio.sleep(1.1)
    await rig.backward()
    assert rig.host.steps(A) == 2


async def test_weights_that_are_not_finite_are_replaced_by_those_on_the_disk(rig, autojump_clock):
    await rig.host.save_all()
    expected = await rig.forward()
    rig.module().linear.weight.data[0, 0] = torch.nan
    await rig.fail()
    assert "weights that are not finite" in rig.of(ExpertStopped)[0].reason
    await trio.sleep(1.1)
    assert torch.equal(await rig.forward(), expected)


async def test_pauses_double_up_to_a_bound_and_start_anew_when_all_was_well(rig, autojump_clock):
    for _ in range(6):
        rig.module().crashed = True
        await rig.fail()
        await trio.sleep(rig.of(ExpertStopped)[-1].retry_in + 0.1)
    assert [event.retry_in for event in rig.of(ExpertStopped)] == [1, 2, 4, 8, 10, 10]
    await trio.sleep(10.1)
    rig.module().crashed = True
    await rig.fail()
    assert rig.of(ExpertStopped)[-1].retry_in == 1


async def test_an_expert_that_cannot_be_built_again_is_tried_again(
    rig, monkeypatch, autojump_clock
):
    rig.module().crashed = True
    await rig.fail()
    monkeypatch.setattr(Fragile, "unbuildable", True)
    await trio.sleep(3.5)
    assert [event.retry_in for event in rig.of(ExpertRestartFailed)] == [2.0, 4.0]
    assert "the device is gone" in rig.of(ExpertRestartFailed)[0].reason
    monkeypatch.setattr(Fragile, "unbuildable", False)
    await trio.sleep(4.0)
    assert len(rig.of(ExpertRestarted)) == 1
    await rig.forward()


async def test_a_call_that_was_queued_for_a_stopped_expert_is_not_computed(
    settings, nursery, autojump_clock
):
    rig = Rig(settings, compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    rig.module().crashed = True
    await rig.fail(2)
    nursery.start_soon(rig.fail, 1)
    await trio.sleep(1.5)  # now it is tried
    assert rig.stopped() == ""
    with pytest.raises(ExpertFailedError, match="out of service"):
        await rig.forward()


async def test_a_stopped_expert_may_be_removed(rig, autojump_clock):
    rig.module().crashed = True
    await rig.fail()
    await rig.host.remove([A])
    await trio.sleep(20)
    assert rig.of(ExpertRestarted) == []
    assert rig.host.uids == [B]
    await rig.host.add([A])
    await rig.forward()
