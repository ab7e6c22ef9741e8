"""Several devices in one host; here all of them are the CPU."""

import dataclasses

import pytest
import torch
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.events import Event, EventBus
from p2pnode.experts.backend import build_backend
from p2pnode.experts.devices import spread
from p2pnode.experts.events import BatchComputed
from p2pnode.experts.passes import backward_through
from p2pnode.experts.runtime import Runtime
from p2pnode.experts.service import ExpertHost
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

RUN = "open:digits"
ALICE = PrivateKey.from_seed(b"a" * 32).peer_id
FIRST = Uid(RUN, "blocks.0")
UIDS = FIRST.span(4)
X, G = torch.randn(2, 8), torch.randn(2, 8)


class Slow:
    """Takes a virtual second for each piece of work, and notes how many it has at once."""

    def __init__(self):
        self.at_once = self.most = 0

    async def __call__(self, work):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            await trio.sleep(1.0)
        self.at_once -= 1
        return work()


@pytest.fixture
def settings(settings):
    return dataclasses.replace(settings, device="cpu,cpu")


@pytest.fixture
async def served(settings, nursery):
    worker, events = Slow(), EventBus()
    host = ExpertHost(settings, None, events, compute=worker)
    await host.add(UIDS)
    host.seen = []
    events.on(Event, host.seen.append)
    worker.most = 0
    host.worker = worker
    await nursery.start(host.run)
    return host


async def forward(host, uid, span=1):
    deadline = trio.current_time() + 100
    return await host.forward(uid, [X], span=span, caller=ALICE, deadline=deadline)


async def backward(host, uid, span, number):
    return await host.backward(
        uid,
        [X],
        [G],
        span=span,
        caller=ALICE,
        call_id=number.to_bytes(16, "big"),
        deadline=trio.current_time() + 100,
    )


def test_experts_go_to_where_most_room_is_left():
    assert spread(5, 10, [100, 100]) == [3, 2]
    assert spread(5, 10, [100, 30]) == [5, 0]
    assert spread(9, 10, [50, 30, 10]) == [5, 3, 1]
    assert spread(3, 10, [0, 0]) == [2, 1]  # who has no room is told so when it is built


@given(
    st.integers(0, 60), st.integers(0, 50), st.lists(st.integers(0, 500), min_size=1, max_size=5)
)
def test_all_experts_are_placed_and_no_device_is_left_with_much_more_room(count, size, rooms):
    counts = spread(count, size, rooms)
    assert sum(counts) == count
    left = [room - placed * max(1, size) for room, placed in zip(rooms, counts, strict=True)]
    for at, placed in enumerate(counts):
        if placed:
            assert left[at] + max(1, size) >= max(left)


async def test_neighbours_are_placed_together(served, autojump_clock):
    devices = {status.uid: status.device for status in served.status()}
    assert list(devices.values()) == ["cpu"] * 4
    loops = [served._experts[uid].device for uid in UIDS]
    assert loops[0] is loops[1]
    assert loops[2] is loops[3]
    assert loops[1] is not loops[2]
    assert loops[0].held == 2 * served._experts[FIRST].backend.size > 0


async def test_devices_compute_at_the_same_time_and_each_one_batch_after_the_other(
    served, autojump_clock
):
    began = trio.current_time()
    async with trio.open_nursery() as callers:
        for uid in UIDS:
            callers.start_soon(forward, served, uid)
    assert trio.current_time() - began == pytest.approx(2.0)
    assert served.worker.most == 2


async def test_a_span_over_two_devices_is_one_batch_that_has_both(served, autojump_clock):
    settings = dataclasses.replace(served._settings, device="cpu")
    twin = [build_backend(uid, settings) for uid in UIDS]
    began = trio.current_time()
    (mine,) = await backward(served, FIRST, 4, 1)
    torch.testing.assert_close(mine, backward_through(twin, [X], [G])[0])
    assert trio.current_time() - began == pytest.approx(1.0)
    async with trio.open_nursery() as callers:
        callers.start_soon(backward, served, FIRST, 4, 2)
        await trio.sleep(0.1)
        callers.start_soon(forward, served, UIDS[3])
        callers.start_soon(served.snapshot, UIDS[2])
    assert served.worker.most == 1
    assert [served.steps(uid) for uid in UIDS] == [2, 2, 2, 2]


async def test_a_span_over_two_devices_leaves_a_third_alone(settings, nursery, autojump_clock):
    worker = Slow()
    settings = dataclasses.replace(settings, device="cpu,cpu,cpu")
    host = ExpertHost(settings, None, EventBus(), compute=worker)
    uids = FIRST.span(6)
    await host.add(uids)
    await nursery.start(host.run)
    worker.most, began = 0, trio.current_time()
    async with trio.open_nursery() as callers:
        callers.start_soon(backward, host, uids[1], 2, 1)
        callers.start_soon(forward, host, uids[5])
    assert worker.most == 2
    assert trio.current_time() - began == pytest.approx(1.0)


async def test_spans_that_cross_in_both_directions_do_not_wait_for_each_other(
    served, autojump_clock
):
    more = Uid(RUN, "blocks.4").span(2)
    await served.add(more)  # the first two loops have as much: so one goes to each
    with trio.fail_after(60):
        async with trio.open_nursery() as callers:
            for number in range(6):
                callers.start_soon(backward, served, UIDS[1], 2, number)  # from one to the other
                callers.start_soon(backward, served, UIDS[3], 2, number + 10)  # and maybe back
                callers.start_soon(forward, served, UIDS[number % 4])
    spans = [event.span for event in served.seen if type(event) is BatchComputed]
    assert spans.count(2) >= 2
    assert served.worker.most <= 2
    assert served.queued == 0


async def test_a_device_that_is_named_later_computes_as_well(served, settings, autojump_clock):
    other = Uid(RUN, "other.0")
    await served.add([other], dataclasses.replace(settings, device="cpu,cpu,cpu"))
    await forward(served, other)
    assert len(served._devices._devices) == 3


async def test_an_expert_leaves_room_behind(served, autojump_clock):
    device = served._experts[FIRST].device
    before = device.held
    await served.remove([FIRST])
    assert device.held == before // 2


async def test_a_host_is_idle_when_all_its_devices_are(served, autojump_clock):
    async with trio.open_nursery() as callers:
        for uid in UIDS:
            callers.start_soon(forward, served, uid)
        await trio.sleep(0.1)
        began = trio.current_time()
        await served.drain()
        assert trio.current_time() - began == pytest.approx(1.9)


async def test_a_device_that_does_not_exist_is_named(settings):
    host = ExpertHost(settings, None, EventBus())
    with pytest.raises(ConfigError, match="'tpu9' is not a device"):
        await host.add([FIRST], dataclasses.replace(settings, device="cpu,tpu9"))
    assert host.uids == []


@pytest.mark.parametrize("when", ["while it starts", "while it runs", "between two runs"])
async def test_each_device_has_one_loop_whenever_it_is_named(
    settings, nursery, monkeypatch, autojump_clock, when
):
    begun = []
    run = Runtime.run

    async def counted(self, *, task_status=trio.TASK_STATUS_IGNORED):
        begun.append(self)
        await run(self, task_status=task_status)

    monkeypatch.setattr(Runtime, "run", counted)
    host = ExpertHost(dataclasses.replace(settings, device="cpu"), None, EventBus(), compute=Slow())
    await host.add([FIRST])
    more = FIRST.span(2)[1:]

    async def add():
        await host.add(more, settings)

    if when == "while it starts":
        nursery.start_soon(add)
    await nursery.start(host.run)
    if when == "while it runs":
        await add()
    if when == "between two runs":
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            await add()
            async with trio.open_nursery() as again:
                begun.clear()
                await again.start(host.run)
                assert len(begun) == len(set(begun)) == 2
                assert (await forward(host, *more))[0].shape == X.shape
                again.cancel_scope.cancel()
        return
    await trio.sleep(60)
    assert (await forward(host, *more))[0].shape == X.shape
    assert len(begun) == len(set(begun)) == 2
