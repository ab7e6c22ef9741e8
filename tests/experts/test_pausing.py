"""An expert host that its owner pauses: it finishes, leaves the device, and comes back."""

import dataclasses

import pytest
import torch
import trio
import trio.testing

from p2pnode.errors import PausedError
from p2pnode.events import EventBus
from p2pnode.experts.backend import ExpertBackend, build_backend
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

A, B = Uid("open:digits", "ffn.0.0"), Uid("open:digits", "ffn.0.1")
ALICE = PrivateKey.from_seed(b"a" * 32).peer_id
X = torch.ones(2, 8)
CPU, GPU, META = torch.device("cpu"), torch.device("cuda:0"), torch.device("meta")


async def slowly(work):
    await trio.sleep(1)
    return work()


@pytest.fixture
async def make_host(settings, nursery):
    async def make(compute):
        one_by_one = dataclasses.replace(settings, max_batch_rows=2)
        host = ExpertHost(one_by_one, None, EventBus(), compute=compute, disk=compute_inline)
        await nursery.start(host.run)
        await host.add([A, B])
        return host

    return make


def forward(host, uid=A):
    return host.forward(uid, [X], caller=ALICE, deadline=trio.current_time() + 100)


@pytest.fixture
def moves(monkeypatch):
    """Moves of experts between devices, of which a test machine has one."""
    done = []

    def move(backend, device):
        done.append((backend.uid, device))
        backend.device = device

    monkeypatch.setattr(ExpertBackend, "move", move)
    return done


async def test_a_paused_host_finishes_what_it_has_and_takes_nothing_new(
    autojump_clock, make_host, nursery
):
    host = await make_host(slowly)
    answers = []

    async def call():
        answers.append(await forward(host))

    nursery.start_soon(call)
    nursery.start_soon(call)
    await trio.testing.wait_all_tasks_blocked()
    host.pause()
    with pytest.raises(PausedError, match="call another"):
        host.check(A, caller=ALICE)
    with pytest.raises(PausedError):
        await forward(host)
    await host.free_device(patience=100)
    await trio.testing.wait_all_tasks_blocked()
    assert len(answers) == 2
    await host.resume()
    assert (await forward(host))[0].shape == (2, 8)


async def test_on_the_cpu_nothing_is_moved(make_host, moves):
    host = await make_host(compute_inline)
    host.pause()
    await host.free_device(patience=100)
    await host.resume()
    assert moves == []


async def test_experts_leave_their_device_and_come_back_to_it(make_host, moves):
    host = await make_host(compute_inline)
    for uid in (A, B):
        host._experts[uid].backend.device = GPU
    host.pause()
    await host.free_device(patience=100)
    assert moves == [(A, CPU), (B, CPU)]
    await host.free_device(patience=100)  # as when the reason for the pause changes
    await host.remove([B])
    await host.resume()
    assert moves[2:] == [(A, GPU)]


async def test_an_expert_that_is_restarted_in_a_pause_leaves_the_device_to_its_owner(
    make_host, moves, monkeypatch
):
    host = await make_host(compute_inline)
    hosted = host._experts[A]
    hosted.backend.device = GPU
    hosted.settings = dataclasses.replace(hosted.settings, device="cuda:0")
    built = []

    def build(uid, settings, **more):
        built.append((uid, settings.device))
        return build_backend(uid, dataclasses.replace(settings, device="cpu"), **more)

    monkeypatch.setattr("p2pnode.experts.service.build_backend", build)
    host.pause()
    await host.free_device(patience=100)
    await host._restart(hosted)
    assert built == [(A, "cpu")]
    await host.resume()
    assert moves == [(A, CPU), (A, GPU)]
    await host._restart(hosted)
    assert built[1:] == [(A, "cuda:0")]


async def test_an_owner_who_changes_his_mind_while_experts_come_back_is_obeyed(
    autojump_clock, make_host, moves, nursery
):
    async def in_a_thread(work):
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return work()

    host = await make_host(in_a_thread)
    for hosted in host._experts.values():
        hosted.backend.device = GPU
    host.pause()
    await host.free_device(patience=100)
    with trio.CancelScope() as coming_back:
        nursery.start_soon(pause_after, 0.5, host, coming_back)
        await host.resume()
    with pytest.raises(PausedError):
        await forward(host)
    await host.free_device(patience=100)
    assert {hosted.backend.device for hosted in host._experts.values()} == {CPU}
    await host.resume()
    assert {hosted.backend.device for hosted in host._experts.values()} == {GPU}
    host.check(A, caller=ALICE)


async def pause_after(seconds, host, scope):
    """Pause as the owner's service does it: at once, and what is under way is cancelled."""
    await trio.sleep(seconds)
    host.pause()
    scope.cancel()


async def test_a_device_without_room_keeps_the_host_paused(make_host, moves, monkeypatch):
    host = await make_host(compute_inline)
    for uid in (A, B):
        host._experts[uid].backend.device = GPU
    host.pause()
    await host.free_device(patience=100)
    move = ExpertBackend.move

    def fail(backend, device):
        if (backend.uid, device) == (B, GPU):
            raise torch.OutOfMemoryError("CUDA out of memory")
        move(backend, device)

    monkeypatch.setattr(ExpertBackend, "move", fail)
    with pytest.raises(torch.OutOfMemoryError):
        await host.resume()
    assert [host._experts[uid].backend.device for uid in (A, B)] == [CPU, CPU]
    with pytest.raises(PausedError):
        await forward(host)
    monkeypatch.setattr(ExpertBackend, "move", move)
    await host.resume()
    assert moves[-2:] == [(A, GPU), (B, GPU)]


async def test_calls_that_take_too_long_do_not_keep_the_device(
    autojump_clock, make_host, moves, nursery
):
    host = await make_host(slowly)
    host._experts[A].backend.device = GPU
    for _ in range(10):
        nursery.start_soon(forward, host, B)
        await trio.testing.wait_all_tasks_blocked()
    host.pause()
    await host.free_device(patience=0.5)
    assert moves == [(A, CPU)]
    assert host.queued > 0


def test_an_expert_takes_its_optimiser_along(settings):
    backend = build_backend(A, settings)
    backend.backward([X], [X])
    backend.move(META)  # the one other device that every machine has
    states = [each for values in backend._optimizer.state.values() for each in values.values()]
    assert {each.device for each in [*backend.module.parameters(), *states]} == {META}
    assert backend.device == META
    assert len(states) > 0


def test_an_expert_that_finds_no_room_stays_where_it_is(settings, monkeypatch):
    backend = build_backend(A, settings)
    backend.backward([X], [X])
    expected = backend.forward([X])[0]
    to = torch.nn.Module.to

    def fail(module, device):
        if device == META:
            raise torch.OutOfMemoryError("out of memory")
        return to(module, device)

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(torch.OutOfMemoryError):
        backend.move(META)
    assert backend.device == CPU
    assert torch.equal(backend.forward([X])[0], expected)
