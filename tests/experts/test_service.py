import contextlib
import dataclasses
import math

import pytest
import torch
import trio
from torch import nn

from p2pnode.config import RpcSettings
from p2pnode.errors import (
    AlreadyAppliedError,
    CheckpointError,
    ConfigError,
    DeadlineExceededError,
    ExpertFailedError,
    OverloadedError,
    PausedError,
    SchemaError,
    UnknownExpertError,
)
from p2pnode.events import Event, EventBus
from p2pnode.experts import layers
from p2pnode.experts.backend import build_backend
from p2pnode.experts.checkpoints import read_checkpoint
from p2pnode.experts.events import (
    BatchComputed,
    CheckpointFailed,
    CheckpointSaved,
    CheckpointSkipped,
    ExpertAdded,
    ExpertAdopted,
    ExpertFailed,
    ExpertRemoved,
    VersionSetAside,
)
from p2pnode.experts.passes import backward_through, forward_through
from p2pnode.experts.replay import replay_key
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid, expand

RUN = "open:digits"
A, B = Uid(RUN, "ffn.0.0"), Uid(RUN, "ffn.0.1")
ALICE, BOB = (PrivateKey.from_seed(seed * 32).peer_id for seed in (b"a", b"b"))
ID = bytes(16)
X, G = torch.randn(2, 8), torch.randn(2, 8)


class Clumsy(nn.Module):
    def __init__(self, hidden_dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden_dim))

    def forward(self, x):
        if (x == 13).any():
            raise ZeroDivisionError("unlucky")
        return x * self.scale


@pytest.fixture(autouse=True)
def _clumsy_layer(monkeypatch):
    layer = layers.Layer(name="clumsy", build=Clumsy, inputs=layers.hidden_rows)
    monkeypatch.setitem(layers._LAYERS, "clumsy", layer)
    narrow = layers.Layer(name="narrow", build=lambda d: nn.Linear(d, 1), inputs=layers.hidden_rows)
    monkeypatch.setitem(layers._LAYERS, "narrow", narrow)


class Slow:
    """Inline compute that takes virtual seconds, and cannot be interrupted."""

    def __init__(self, duration=1.0):
        self.duration = duration

    async def __call__(self, work):
        await trio.lowlevel.checkpoint()
        with trio.CancelScope(shield=True):
            await trio.sleep(self.duration)
        return work()


class Rig:
    def __init__(self, settings, directory=None, compute=compute_inline):
        self.events = EventBus()
        self.seen = []
        self.events.on(Event, self.seen.append)
        self.host = ExpertHost(
            settings, directory, self.events, compute=compute, disk=compute_inline
        )

    def of(self, kind):
        return [event for event in self.seen if type(event) is kind]

    async def forward(self, x=X, uid=A, *, span=1, caller=ALICE, patience=100.0):
        deadline = trio.current_time() + patience
        return (await self.host.forward(uid, [x], span=span, caller=caller, deadline=deadline))[0]

    async def backward(self, x=X, g=G, *, uid=A, span=1, caller=ALICE, call_id=ID, patience=100.0):
        answer = await self.host.backward(
            uid,
            [x],
            [g],
            span=span,
            caller=caller,
            call_id=call_id,
            deadline=trio.current_time() + patience,
        )
        return answer[0]

    def steps(self, uid=A):
        return next(status.steps for status in self.host.status() if status.uid == uid)

    def assert_nothing_is_left(self):
        assert self.host.queued == 0
        assert all(not hosted.pending for hosted in self.host._experts.values())


def numbered(number):
    return number.to_bytes(16, "big")


# --- adding ---------------------------------------------------------------------------------------


async def test_experts_are_added_once_with_their_schema(settings):
    rig = Rig(settings)
    added = await rig.host.add([A, B, A])
    assert [status.uid for status in added] == rig.host.uids == [A, B]
    assert await rig.host.add([B]) == []
    info = rig.host.info(B)
    assert info.layer == "ffn"
    assert info.inputs == info.outputs == (info.inputs[0],)
    assert info.inputs[0].shape == (None, 8)
    assert (info.max_rows, info.max_bytes) == (
        settings.max_batch_rows,
        RpcSettings().max_call_bytes,
    )
    events = [(e.uid, e.layer, e.steps, e.restored) for e in rig.of(ExpertAdded)]
    assert events == [(A, "ffn", 0, None), (B, "ffn", 0, None)]


async def test_experts_of_several_kinds_live_together(settings):
    rig = Rig(settings)
    await rig.host.add([A])
    await rig.host.add([B], dataclasses.replace(settings, layer="linear", hidden_dim=3))
    assert rig.host.info(A).layer == "ffn"
    assert rig.host.info(B).inputs[0].shape == (None, 3)


async def test_of_many_experts_alike_only_the_first_is_tried_when_they_are_added(
    settings, monkeypatch
):
    tried = []
    monkeypatch.setattr(Clumsy, "forward", lambda _, x: tried.append(len(x)) or x)
    rig = Rig(dataclasses.replace(settings, layer="clumsy"))
    await rig.host.add(expand("ffn.[0:4].[0:8]", RUN))
    assert len(rig.host.uids) == 32
    assert len(tried) == 1


async def test_either_all_experts_are_added_or_none(settings, tmp_path):
    saved = Rig(settings, tmp_path)
    await saved.host.add([B])
    await saved.host.save_all()
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    rig = Rig(settings, tmp_path)
    with pytest.raises(CheckpointError, match=r"ffn\.0\.1"):
        await rig.host.add([A, B])
    assert rig.host.uids == []
    assert rig.seen == []
    await rig.host.add([A])


async def test_more_experts_than_configured_are_refused(settings):
    rig = Rig(dataclasses.replace(settings, max_experts=1))
    with pytest.raises(ConfigError, match=r"hosting\.max_experts"):
        await rig.host.add([A, B])
    await rig.host.add([A])
    with pytest.raises(ConfigError):
        await rig.host.add([B])


# --- calls ----------------------------------------------------------------------------------------


async def test_calls_equal_those_of_a_local_twin(settings, nursery, autojump_clock):
    rig = Rig(settings)
    await rig.host.add([A, B])
    await nursery.start(rig.host.run)
    twin = build_backend(A, settings)
    for number in range(3):
        torch.testing.assert_close(await rig.forward(), twin.forward([X])[0])
        mine = await rig.backward(call_id=numbered(number))
        torch.testing.assert_close(mine, twin.backward([X], [G])[0])
    assert (rig.steps(A), rig.steps(B)) == (3, 0)
    assert [event.kind for event in rig.of(BatchComputed)] == ["forward", "backward"] * 3
    rig.assert_nothing_is_left()


async def test_concurrent_calls_are_one_batch_and_one_step(settings, nursery, autojump_clock):
    rig = Rig(settings, compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    nursery.start_soon(rig.forward)
    await trio.sleep(0.1)
    async with trio.open_nursery() as callers:
        for number in range(5):
            callers.start_soon(lambda n=number: rig.backward(call_id=numbered(n)))
    assert rig.steps() == 1
    assert [(e.calls, e.rows, e.failed, e.seconds) for e in rig.of(BatchComputed)] == [
        (1, 2, 0, pytest.approx(1.0)),
        (5, 10, 0, pytest.approx(1.0)),
    ]


async def test_an_unknown_expert_is_refused(settings):
    rig = Rig(settings)
    for use in (rig.forward, rig.backward):
        with pytest.raises(UnknownExpertError, match=r"does not serve ffn\.0\.0"):
            await use()
    with pytest.raises(UnknownExpertError):
        rig.host.info(A)


async def test_a_full_queue_refuses_until_there_is_room(settings, nursery, autojump_clock):
    rig = Rig(dataclasses.replace(settings, max_queued_calls=2), compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    nursery.start_soon(rig.forward)
    await trio.sleep(0.1)
    nursery.start_soon(rig.forward)
    with trio.CancelScope() as scope:
        nursery.start_soon(rig.forward)
        await trio.sleep(0.1)
        assert rig.host.queued == rig.host.status()[0].queued == 2
        with pytest.raises(OverloadedError):
            await rig.forward()
        with pytest.raises(OverloadedError):
            await rig.backward()
    assert not scope.cancelled_caught
    await trio.sleep(1.0)
    await rig.forward()
    rig.assert_nothing_is_left()


async def test_a_trainer_is_not_held_up_by_a_thousand_calls_of_another(
    settings, nursery, autojump_clock
):
    settings = dataclasses.replace(settings, max_batch_rows=32)
    uids = [Uid(RUN, f"ffn.{number}") for number in range(10)]
    rig = Rig(settings, compute=Slow(1.0))
    await rig.host.add(uids)
    await nursery.start(rig.host.run)
    with trio.CancelScope() as flood:
        for number in range(1000):
            nursery.start_soon(rig.forward, X, uids[number % 10])
        await trio.sleep(0.1)
        assert rig.host.queued > 900
        for number in range(5):
            began = trio.current_time()
            await rig.forward(uid=uids[number], caller=BOB)
            # One batch is being computed, one may be the other's turn, and one has the call.
            assert trio.current_time() - began <= 3.0
        flood.cancel()
    assert rig.host.queued > 600
    nursery.cancel_scope.cancel()


async def test_a_failing_call_harms_neither_its_expert_nor_others(
    settings, nursery, autojump_clock
):
    rig = Rig(dataclasses.replace(settings, layer="clumsy"), compute=Slow())
    await rig.host.add([A, B])
    await nursery.start(rig.host.run)
    failures, answers = [], []

    async def fail(use, x):
        with pytest.raises(ExpertFailedError) as caught:
            await use(x)
        failures.append(str(caught.value))

    async def succeed(uid):
        answers.append(await rig.forward(uid=uid))

    unlucky, nan = torch.full((1, 8), 13.0), torch.full((2, 8), math.nan)
    nursery.start_soon(rig.forward)
    await trio.sleep(0.1)
    async with trio.open_nursery() as callers:
        callers.start_soon(fail, rig.forward, unlucky)
        callers.start_soon(succeed, A)
        callers.start_soon(succeed, B)
        callers.start_soon(fail, rig.forward, nan)
        callers.start_soon(fail, rig.backward, nan)
    assert len(failures) == len(rig.of(ExpertFailed)) == 3
    assert all(torch.equal(answer, X) for answer in answers)
    assert rig.steps() == 0
    assert torch.equal(await rig.backward(), G)  # the id of the failed call was not used up
    assert rig.steps() == 1


async def test_a_draining_host_finishes_what_it_has_and_takes_no_more(
    settings, nursery, autojump_clock
):
    rig = Rig(settings, compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    answers = []

    async def call():
        answers.append(await rig.backward())

    nursery.start_soon(call)
    await trio.sleep(0.1)
    nursery.start_soon(rig.host.drain)
    await trio.sleep(0.1)
    with pytest.raises(PausedError, match="shutting down"):
        await rig.forward()
    await rig.host.drain()
    assert trio.current_time() == pytest.approx(1.0 + 1.0)  # building took the first second
    await trio.testing.wait_all_tasks_blocked()
    assert len(answers) == 1


# --- at most once ---------------------------------------------------------------------------------


async def test_a_repeated_backward_call_steps_once_and_answers_alike(
    settings, nursery, autojump_clock
):
    rig = Rig(settings)
    await rig.host.add([A, B])
    await nursery.start(rig.host.run)
    first = await rig.backward()
    again = await rig.backward()
    assert torch.equal(first, again)
    assert rig.steps() == 1
    await rig.backward(caller=BOB)  # ids are each caller's own
    await rig.backward(uid=B)
    assert (rig.steps(A), rig.steps(B)) == (2, 1)


async def test_a_repetition_waits_for_the_first_when_that_is_under_way(
    settings, nursery, autojump_clock
):
    rig = Rig(settings, compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    answers = []

    async def call():
        answers.append(await rig.backward())

    async with trio.open_nursery() as callers:
        for _ in range(3):
            callers.start_soon(call)
            await trio.sleep(0.4)  # queued or in the device
    assert rig.steps() == 1
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    rig.assert_nothing_is_left()


async def test_a_repetition_takes_over_when_the_first_is_given_up(
    settings, nursery, autojump_clock
):
    rig = Rig(settings, compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    nursery.start_soon(rig.forward)
    await trio.sleep(0.1)
    answers = []

    async def first():
        with trio.move_on_after(0.4):
            await rig.backward(patience=0.5)  # over before the device is free

    async def second():
        await trio.sleep(0.2)
        answers.append(await rig.backward())

    async with trio.open_nursery() as callers:
        callers.start_soon(first)
        callers.start_soon(second)
    assert len(answers) == rig.steps() == 1
    rig.assert_nothing_is_left()


async def test_a_call_given_up_while_queued_may_be_made_again(settings, nursery, autojump_clock):
    rig = Rig(settings, compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    nursery.start_soon(rig.forward)
    await trio.sleep(0.1)
    with trio.move_on_after(0.1):
        await rig.backward()
    rig.assert_nothing_is_left()
    with pytest.raises(DeadlineExceededError):
        await rig.backward(patience=0.1)
    assert rig.steps() == 0
    rig.assert_nothing_is_left()
    await rig.backward()
    assert rig.steps() == 1


async def test_a_reply_lost_after_the_step_is_given_again(settings, nursery, autojump_clock):
    rig = Rig(settings, compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    with trio.move_on_after(0.5) as scope:
        await rig.backward()
    assert scope.cancelled_caught
    await trio.sleep(1.0)
    assert rig.steps() == 1
    twin = build_backend(A, settings)
    torch.testing.assert_close(await rig.backward(), twin.backward([X], [G])[0])
    assert rig.steps() == 1


async def test_an_applied_call_without_its_answer_is_computed_again_and_steps_nothing(
    settings, nursery, autojump_clock
):
    rig = Rig(dataclasses.replace(settings, replay_window_bytes=X.nbytes))
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    await rig.backward(call_id=numbered(1))
    await rig.backward(2 * X, call_id=numbered(2))
    before = (await rig.host.snapshot(A)).state.tensors
    twin = build_backend(A, settings)
    twin.backward([X], [G])
    twin.backward([2 * X], [G])
    torch.testing.assert_close(
        await rig.backward(call_id=numbered(1)), twin.backward([X], [G])[0]
    )  # by the weights of now
    after = (await rig.host.snapshot(A)).state.tensors
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert rig.steps() == 2


async def test_an_applied_call_is_computed_again_beside_new_ones_of_its_batch(
    settings, nursery, autojump_clock
):
    rig = Rig(dataclasses.replace(settings, replay_window_bytes=1), compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    await rig.backward(call_id=numbered(1))
    answers = {}

    async def call(number, g):
        answers[number] = await rig.backward(g=g, call_id=numbered(number))

    async with trio.open_nursery() as callers:
        callers.start_soon(call, 0, G)  # computed while the others gather
        await trio.sleep(0.1)
        for number in (1, 2, 3):
            callers.start_soon(call, number, number * G)
    assert [event.calls for event in rig.of(BatchComputed)] == [1, 1, 3]
    assert rig.steps() == 3
    twin = build_backend(A, settings)
    for _ in range(2):
        twin.backward([X], [G])
    expected = backward_through([twin], [X], [G], stepping=[])[0]
    for number in (1, 2, 3):  # all by the same weights
        torch.testing.assert_close(answers[number], number * expected)


@pytest.mark.parametrize("why", ["paused", "late", "failing"])
async def test_an_applied_call_that_cannot_be_computed_again_is_told_so(
    settings, nursery, autojump_clock, why
):
    rig = Rig(dataclasses.replace(settings, replay_window_bytes=1), compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    await rig.backward()
    if why == "paused":
        rig.host.pause()
    if why == "late":
        nursery.start_soon(rig.forward)
        await trio.sleep(0.1)
    with pytest.raises(AlreadyAppliedError, match="go on with the next step"):
        await rig.backward(X * torch.nan if why == "failing" else X, patience=0.5)
    await trio.sleep(3)
    assert rig.steps() == 1
    rig.assert_nothing_is_left()


# --- spans ----------------------------------------------------------------------------------------


def twin_of(settings, span):
    return [build_backend(uid, settings) for uid in A.span(span)]


async def test_a_span_is_one_batch_and_one_step_of_each_layer(settings, nursery, autojump_clock):
    rig = Rig(settings)
    await rig.host.add(A.span(3))
    await nursery.start(rig.host.run)
    twin = twin_of(settings, 3)
    torch.testing.assert_close(await rig.forward(span=3), forward_through(twin, [X])[0])
    mine = await rig.backward(span=3)
    torch.testing.assert_close(mine, backward_through(twin, [X], [G])[0])
    assert [rig.steps(uid) for uid in A.span(3)] == [1, 1, 1]
    assert [(e.uid, e.span, e.kind) for e in rig.of(BatchComputed)] == [
        (A, 3, "forward"),
        (A, 3, "backward"),
    ]
    assert torch.equal(await rig.backward(span=3), mine)
    expected = backward_through(twin[1:2], [X], [G], stepping=[])[0]
    torch.testing.assert_close(await rig.backward(uid=B), expected)  # a part of it, again
    assert [rig.steps(uid) for uid in A.span(3)] == [1, 1, 1]


async def test_a_span_takes_what_its_first_layer_takes_and_gives_what_its_last_gives(settings):
    rig = Rig(settings)
    await rig.host.add([A])
    await rig.host.add([B], dataclasses.replace(settings, layer="torch.nn:Identity"))
    await rig.host.add([A.span(3)[2]], dataclasses.replace(settings, layer="narrow"))
    info = rig.host.info(A, 3)
    assert (info.layer, info.inputs[0].shape, info.outputs[0].shape) == (
        "ffn",
        (None, 8),
        (None, 1),
    )
    with pytest.raises(UnknownExpertError, match=r"ffn\.0\.3"):
        rig.host.info(A, 4)
    await rig.host.add([A.span(4)[3]])
    with pytest.raises(SchemaError, match=r"ffn\.0\.3 does not take what ffn\.0\.2 gives"):
        rig.host.info(A, 4)


async def test_the_same_call_of_overlapping_spans_steps_each_layer_once(
    settings, nursery, autojump_clock
):
    rig = Rig(settings, compute=Slow())
    await rig.host.add(A.span(3))
    await nursery.start(rig.host.run)
    outcomes = {}

    async def call(uid, span):
        outcomes[uid, span] = await rig.backward(uid=uid, span=span)

    async with trio.open_nursery() as callers:
        for uid, span in [(A, 2), (B, 2), (A, 3), (B, 1)]:
            callers.start_soon(call, uid, span)
            await trio.sleep(0.1)
    assert [rig.steps(uid) for uid in A.span(3)] == [1, 1, 1]
    rig.assert_nothing_is_left()


async def test_a_call_applied_to_a_part_of_its_span_steps_the_rest_of_it_alone(
    settings, nursery, autojump_clock
):
    rig = Rig(settings)
    await rig.host.add(A.span(3))
    await nursery.start(rig.host.run)
    twin = twin_of(settings, 3)
    await rig.backward(uid=A, span=2)
    backward_through(twin[:2], [X], [G])
    found = await rig.backward(uid=B, span=2)
    expected = backward_through(twin[1:], [X], [G], stepping=twin[2:])[0]
    torch.testing.assert_close(found, expected)
    assert [rig.steps(uid) for uid in A.span(3)] == [1, 1, 1]
    torch.testing.assert_close(await rig.forward(span=3), forward_through(twin, [X])[0])


async def test_an_overlapping_call_goes_ahead_when_the_first_is_late(
    settings, nursery, autojump_clock
):
    rig = Rig(settings, compute=Slow())
    await rig.host.add(A.span(2))
    await nursery.start(rig.host.run)
    nursery.start_soon(rig.forward)
    await trio.sleep(0.1)

    async def late():
        with pytest.raises(DeadlineExceededError):
            await rig.backward(span=2, patience=0.5)

    async with trio.open_nursery() as callers:
        callers.start_soon(late)
        await trio.sleep(0.1)
        await rig.backward(uid=B)
    assert (rig.steps(A), rig.steps(B)) == (0, 1)
    rig.assert_nothing_is_left()


# --- other options --------------------------------------------------------------------------------


async def test_an_expert_learns_on_with_other_options_and_what_its_optimiser_has_kept(
    settings, nursery, autojump_clock
):
    settings = dataclasses.replace(settings, optimizer="adam")
    rig, twin = Rig(settings), build_backend(A, settings)
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    await rig.backward(call_id=numbered(1))
    twin.backward([X], [G])
    changed = dataclasses.replace(
        settings, learning_rate=0.5, beta1=0.5, weight_decay=0.1, clip_grad_norm=1.0
    )
    await rig.host.retune(A, changed)
    assert rig.host.settings(A) == changed
    twin.retune(changed)
    unchanged = build_backend(A, settings)
    unchanged.backward([X], [G])
    for number in (2, 3):
        await rig.backward(call_id=numbered(number))
        twin.backward([X], [G])
        unchanged.backward([X], [G])
    mine = await rig.forward()
    torch.testing.assert_close(mine, twin.forward([X])[0])
    assert not torch.allclose(mine, unchanged.forward([X])[0])
    fresh = build_backend(A, changed)  # without the first step's moments
    for _ in range(3):
        fresh.backward([X], [G])
    assert not torch.allclose(mine, fresh.forward([X])[0])


async def test_what_an_expert_takes_of_its_device_follows_its_options(settings):
    rig = Rig(dataclasses.replace(settings, optimizer="sgd"))
    await rig.host.add([A])
    device = rig.host._experts[A].device
    before = device.held
    await rig.host.retune(A, dataclasses.replace(rig.host.settings(A), momentum=0.9))
    assert device.held == rig.host._experts[A].backend.size > before
    await rig.host.remove([A])
    assert device.held == 0


async def test_an_expert_that_is_being_restarted_learns_by_its_newest_options(
    settings, tmp_path, nursery, autojump_clock
):
    rig = Rig(settings, tmp_path, compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    hosted = rig.host._experts[A]
    nursery.start_soon(rig.forward)  # takes the device's turn
    await trio.sleep(0.2)
    nursery.start_soon(rig.host.retune, A, dataclasses.replace(settings, learning_rate=0.5))
    await trio.sleep(0.2)
    nursery.start_soon(rig.host._restart, hosted)
    await trio.sleep(60)
    await rig.backward()
    assert hosted.backend._optimizer.param_groups[0]["lr"] == 0.5


async def test_an_expert_is_built_anew_when_the_one_at_fault_has_given_its_memory_back(
    settings, tmp_path, monkeypatch
):
    rig = Rig(settings, tmp_path)
    (status,) = await rig.host.add([A])
    hosted = rig.host._experts[A]
    broken, size, held = hosted.backend, hosted.backend.size, hosted.device.held

    def look(*args, **options):
        assert sum(each.nbytes for each in broken.module.parameters()) == 0
        assert not broken._optimizer
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build_backend(*args, **options)

    monkeypatch.setattr("p2pnode.experts.service.build_backend", look)
    for full in (True, False):
        with pytest.raises(ExpertFailedError) if full else contextlib.nullcontext():
            await rig.host._restart(hosted)
        if full:
            with pytest.raises(ExpertFailedError, match="was given up"):
                broken.forward([X])
            assert hosted.backend.size == size
    assert rig.host.status() == [dataclasses.replace(status, restored=False)]
    assert hosted.backend.forward([X])[0].shape == X.shape
    await rig.host.remove([A])
    assert (held, hosted.device.held) == (size, 0)


async def test_options_for_which_a_device_has_no_room_change_nothing(settings, monkeypatch):
    rig = Rig(dataclasses.replace(settings, optimizer="sgd"))
    await rig.host.add([A])
    (device,) = rig.host._devices.named("cpu")
    before, held = rig.host.settings(A), device.held

    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    changed = dataclasses.replace(before, momentum=0.9)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros_like", full)
        with pytest.raises(ExpertFailedError, match="out of memory"):
            await rig.host.retune(A, changed)
    assert (rig.host.settings(A), device.held) == (before, held)
    await rig.host.retune(A, changed)
    assert device.held > held


async def test_an_expert_that_would_have_to_be_built_anew_is_left_as_it_is(settings):
    rig = Rig(settings)
    await rig.host.add([A])
    with pytest.raises(ConfigError, match="another hidden_dim"):
        await rig.host.retune(A, dataclasses.replace(settings, hidden_dim=9, learning_rate=0.5))
    assert rig.host.settings(A) == settings


# --- leaving and taking over ----------------------------------------------------------------------


async def test_an_expert_is_removed_when_its_calls_are_answered_and_its_state_is_saved(
    settings, tmp_path, nursery, autojump_clock
):
    rig = Rig(settings, tmp_path, compute=Slow())
    await rig.host.add(A.span(3))
    await nursery.start(rig.host.run)
    answers = []

    async def call(uid, span, number):
        answers.append(await rig.backward(uid=uid, span=span, call_id=numbered(number)))

    async with trio.open_nursery() as callers:
        callers.start_soon(call, A, 2, 0)
        await trio.sleep(0.1)
        callers.start_soon(call, B, 2, 1)
        await trio.sleep(0.1)
        callers.start_soon(rig.host.remove, [A, B])
        await trio.sleep(0.1)
        with pytest.raises(UnknownExpertError, match=r"ffn\.0\.1"):
            await rig.forward(uid=B, span=2)
        nursery.start_soon(call, A.span(3)[2], 1, 2)  # the third stays
    assert rig.host.uids == [A.span(3)[2]]
    assert [event.steps for event in rig.of(ExpertRemoved)] == [1, 2]
    assert {event.uid: event.steps for event in rig.of(CheckpointSaved)} == {A: 1, B: 2}
    with pytest.raises(UnknownExpertError):
        rig.host.info(A)
    await trio.sleep(9)
    assert len(answers) == 3

    await rig.host.add([B])
    assert rig.steps(B) == 2
    await rig.backward(uid=B, call_id=numbered(0))  # answers are gone, ids are not
    assert rig.steps(B) == 2


async def test_a_step_that_comes_while_an_expert_that_leaves_is_saved_is_saved_too(
    settings, tmp_path, nursery, autojump_clock
):
    rig = Rig(settings, tmp_path)
    rig.host._keeper._disk = Slow()
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    await rig.backward(call_id=numbered(1))
    nursery.start_soon(rig.host.remove, [A])
    await trio.sleep(0.5)
    assert await rig.host.step_once(A, lambda expert: expert.backward([X], [G]), numbered(2))
    await trio.sleep(60)
    assert rig.host.uids == []
    await rig.host.add([A])
    assert rig.steps() == 2
    assert rig.host.was_applied(A, numbered(2))


async def test_an_expert_that_cannot_be_saved_is_not_removed(settings, tmp_path, autojump_clock):
    rig = Rig(settings, tmp_path)
    await rig.host.add([A])
    (tmp_path / "open@digits").write_text("a file")
    with pytest.raises(CheckpointError):
        await rig.host.remove([A])
    assert rig.host.uids == [A]
    rig.host.check(A, caller=ALICE)  # and takes calls again
    with pytest.raises(UnknownExpertError):
        await rig.host.remove([A, B])
    rig.host.check(A, caller=ALICE)


async def test_a_removal_given_up_leaves_the_expert_in_service(settings, nursery, autojump_clock):
    rig = Rig(settings, compute=Slow())
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    nursery.start_soon(rig.forward)
    await trio.sleep(0.1)
    with trio.move_on_after(0.5) as scope:
        await rig.host.remove([A])
    assert scope.cancelled_caught
    await rig.forward()


async def test_a_state_moves_to_another_host_with_the_calls_it_contains(
    settings, nursery, autojump_clock
):
    one, two = Rig(settings), Rig(settings)
    for rig in (one, two):
        await rig.host.add([A])
        await nursery.start(rig.host.run)
    await one.backward(call_id=numbered(1))
    await two.backward(call_id=numbered(2))  # lost when the other's state is adopted
    await two.host.adopt(A, await one.host.snapshot(A))
    assert torch.equal(await one.forward(), await two.forward())
    await two.backward(call_id=numbered(1))
    await two.backward(call_id=numbered(2))
    assert (one.steps(), two.steps()) == (1, 2)
    assert [(e.steps_before, e.steps) for e in two.of(ExpertAdopted)] == [(1, 1)]


async def test_what_was_learnt_here_is_set_aside_before_another_state_is_adopted(
    settings, tmp_path, nursery, autojump_clock
):
    one, two = Rig(settings), Rig(settings, tmp_path)
    for rig in (one, two):
        await rig.host.add([A])
        await nursery.start(rig.host.run)
    for number in (1, 2, 3):
        await one.backward(call_id=numbered(number))
    await two.backward(2 * X, call_id=numbered(4))
    own = (await two.host.snapshot(A)).state
    await two.host.adopt(A, await one.host.snapshot(A), keep_own=True)
    (event,) = two.of(VersionSetAside)
    kept = read_checkpoint(event.path, A)
    assert (event.steps, kept.state.steps, two.steps()) == (1, 1, 3)
    assert all(torch.equal(kept.state.tensors[name], each) for name, each in own.tensors.items())
    assert kept.applied == [replay_key(ALICE, numbered(4))]
    # What the new state contains is nobody's own, and neither are fresh weights.
    await one.backward(call_id=numbered(5))
    await two.host.adopt(A, await one.host.snapshot(A), keep_own=True)
    await two.host.add([B])
    await one.host.add([B])
    await one.backward(uid=B, call_id=numbered(6))
    await two.host.adopt(B, await one.host.snapshot(B), keep_own=True)
    assert len(two.of(VersionSetAside)) == 1


async def test_a_state_is_not_adopted_while_what_was_learnt_here_cannot_be_set_aside(
    settings, tmp_path, nursery, autojump_clock
):
    one, two = Rig(settings), Rig(settings, tmp_path)
    for rig in (one, two):
        await rig.host.add([A])
        await nursery.start(rig.host.run)
    await one.backward(call_id=numbered(1))
    await two.backward(2 * X, call_id=numbered(2))
    expected = await two.forward()
    (tmp_path / "open@digits").write_text("a file")
    with pytest.raises(CheckpointError, match="set ffn"):
        await two.host.adopt(A, await one.host.snapshot(A), keep_own=True)
    assert torch.equal(await two.forward(), expected)
    await two.host.adopt(A, await one.host.snapshot(A))
    assert not torch.equal(await two.forward(), expected)


async def test_a_queued_call_that_the_adopted_state_contains_is_not_applied_again(
    settings, nursery, autojump_clock
):
    one, two = Rig(settings), Rig(settings, compute=Slow())
    for rig in (one, two):
        await rig.host.add([A])
        await nursery.start(rig.host.run)
    await one.backward(call_id=numbered(1))
    state = await one.host.snapshot(A)
    nursery.start_soon(two.forward)
    await trio.sleep(0.1)
    nursery.start_soon(two.host.adopt, A, state)
    await trio.sleep(0.1)
    await two.backward(call_id=numbered(1))
    assert two.steps() == 1
    two.assert_nothing_is_left()


async def test_an_adopted_state_is_saved_though_its_step_count_is_the_old_one(settings, tmp_path):
    one, two = Rig(settings), Rig(settings, tmp_path)
    for rig, seed in ((one, 7), (two, 3)):
        await rig.host.add([A], dataclasses.replace(settings, seed=seed))
    await two.host.save_all()
    await two.host.adopt(A, await one.host.snapshot(A))
    await two.host.save_all()
    other = Rig(settings, tmp_path)
    await other.host.add([A])
    mine = await other.host.snapshot(A)
    torch.testing.assert_close(mine.state.tensors, (await one.host.snapshot(A)).state.tensors)


async def test_a_state_that_does_not_fit_is_not_adopted(settings, autojump_clock):
    one, two = Rig(settings), Rig(dataclasses.replace(settings, layer="linear"))
    for rig in (one, two):
        await rig.host.add([A])
    with pytest.raises(CheckpointError, match="is of a linear"):
        await one.host.adopt(A, await two.host.snapshot(A))
    assert one.of(ExpertAdopted) == []
    with pytest.raises(UnknownExpertError):
        await one.host.adopt(B, await two.host.snapshot(A))


# --- checkpoints ----------------------------------------------------------------------------------


async def test_a_restarted_host_goes_on_from_its_checkpoint(
    settings, tmp_path, nursery, autojump_clock
):
    rig = Rig(settings, tmp_path)
    await rig.host.add([A, B])
    await nursery.start(rig.host.run)
    for number in range(3):
        await rig.backward(call_id=numbered(number))
    await rig.host.save_all()
    expected = await rig.forward()
    await rig.backward(call_id=numbered(9))  # after the checkpoint, and so lost

    other = Rig(settings, tmp_path)
    added = await other.host.add([A, B])
    assert [(status.steps, status.rows, status.restored) for status in added] == [
        (3, 6, True),
        (0, 0, True),
    ]
    assert other.of(ExpertAdded)[0].restored == rig.of(CheckpointSaved)[0].path
    await nursery.start(other.host.run)
    assert torch.equal(await other.forward(), expected)
    await other.backward(call_id=numbered(2))  # the checkpoint contains it
    await other.backward(call_id=numbered(9))
    assert other.steps() == 4


async def test_only_what_has_changed_is_saved(settings, tmp_path, nursery, autojump_clock):
    rig = Rig(settings, tmp_path)
    await rig.host.add([A, B])
    await nursery.start(rig.host.run)
    await rig.host.save_all()
    await rig.backward()
    await rig.host.save_all()
    await rig.host.save_all()
    saved = [(event.uid, event.steps) for event in rig.of(CheckpointSaved)]
    assert saved == [(A, 0), (B, 0), (A, 1)]
    assert rig.host.status()[0].saved_at is not None


async def test_experts_are_saved_regularly(settings, tmp_path, nursery, autojump_clock):
    rig = Rig(dataclasses.replace(settings, checkpoint_interval=10.0), tmp_path)
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    await trio.sleep(5.0)
    for number in range(3):
        await rig.backward(call_id=numbered(number))
        await trio.sleep(10.0)
    assert [event.steps for event in rig.of(CheckpointSaved)] == [1, 2, 3]


async def test_without_an_interval_or_a_directory_nothing_is_saved_by_itself(
    settings, tmp_path, nursery, autojump_clock
):
    silent = Rig(dataclasses.replace(settings, checkpoint_interval=0.0), tmp_path)
    homeless = Rig(settings)
    for rig in (silent, homeless):
        await rig.host.add([A])
        await nursery.start(rig.host.run)
        await rig.backward()
        await trio.sleep(1000.0)
    await homeless.host.save_all()
    assert silent.of(CheckpointSaved) == homeless.of(CheckpointSaved) == []


async def test_a_damaged_checkpoint_is_skipped_and_said_so(
    settings, tmp_path, nursery, autojump_clock
):
    rig = Rig(settings, tmp_path)
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    await rig.host.save_all()
    await rig.backward()
    await rig.host.save_all()
    good, bad = (event.path for event in rig.of(CheckpointSaved))
    bad.write_bytes(bad.read_bytes()[:-1])
    content = bad.read_bytes()

    other = Rig(settings, tmp_path)
    await other.host.add([A])
    (skipped,) = other.of(CheckpointSkipped)
    assert (skipped.uid, skipped.path) == (A, bad)
    assert other.of(ExpertAdded)[0].restored == good
    await nursery.start(other.host.run)
    for number in range(5):
        await other.backward(call_id=numbered(number))
        await other.host.save_all()
    assert bad.read_bytes() == content


async def test_a_checkpoint_of_another_layer_is_not_replaced(settings, tmp_path):
    rig = Rig(settings, tmp_path)
    await rig.host.add([A])
    await rig.host.save_all()
    other = Rig(dataclasses.replace(settings, layer="linear"), tmp_path)
    with pytest.raises(CheckpointError, match="is of a ffn"):
        await other.host.add([A])
    assert other.host.uids == []


async def test_an_expert_that_cannot_be_saved_goes_on_and_is_tried_again(
    settings, tmp_path, nursery, autojump_clock
):
    settings = dataclasses.replace(settings, checkpoint_interval=10.0)
    rig = Rig(settings, tmp_path)
    await rig.host.add([A, B])
    await nursery.start(rig.host.run)
    in_the_way = tmp_path / "open@digits" / A.name
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file")
    with pytest.raises(CheckpointError, match=r"1 experts could not be saved: .*ffn\.0\.0"):
        await rig.host.save_all()
    assert [event.uid for event in rig.of(CheckpointFailed)] == [A]
    assert [event.uid for event in rig.of(CheckpointSaved)] == [B]
    await rig.backward()
    await trio.sleep(15.0)
    assert len(rig.of(CheckpointFailed)) == 2
    in_the_way.unlink()
    await trio.sleep(10.0)
    assert [event.uid for event in rig.of(CheckpointSaved)] == [B, A]


async def test_weights_gone_bad_do_not_push_out_good_checkpoints(
    settings, tmp_path, nursery, autojump_clock
):
    settings = dataclasses.replace(settings, layer="clumsy")
    rig = Rig(settings, tmp_path)
    await rig.host.add([A])
    await nursery.start(rig.host.run)
    await rig.backward()
    rig.host._experts[A].backend.module.scale.data[0] = math.nan
    with pytest.raises(CheckpointError, match="not finite"):
        await rig.host.save_all()
    assert list(tmp_path.rglob("*.safetensors")) == []


async def test_every_checkpoint_holds_whole_steps(settings, tmp_path, nursery, autojump_clock):
    """Weights, step count and applied ids belong together at whatever moment it is taken."""
    settings = dataclasses.replace(
        settings, layer="clumsy", optimizer="sgd", learning_rate=1.0, checkpoints_kept=100
    )
    rig = Rig(settings, tmp_path, compute=Slow(0.3))
    await rig.host.add([A])
    await nursery.start(rig.host.run)

    async def train():
        for number in range(20):
            await rig.backward(torch.ones(1, 8), torch.ones(1, 8), call_id=numbered(number))

    async with trio.open_nursery() as both:
        both.start_soon(train)
        for _ in range(8):
            await trio.sleep(0.5)
            await rig.host.save_all()
    paths = [event.path for event in rig.of(CheckpointSaved)]
    assert len(paths) >= 5
    for path in paths:
        checkpoint = read_checkpoint(path, A)
        steps = checkpoint.state.steps
        assert len(checkpoint.applied) == steps
        assert torch.equal(checkpoint.state.tensors["module.scale"], torch.full((8,), 1.0 - steps))


async def test_calls_are_served_from_real_threads_while_checkpoints_are_written(settings, tmp_path):
    events = EventBus()
    host = ExpertHost(settings, tmp_path, events)
    await host.add([A, B])
    twin = build_backend(A, settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        for number in range(5):
            async with trio.open_nursery() as both:
                both.start_soon(host.save_all)
                (mine,) = await host.backward(
                    A, [X], [G], caller=ALICE, call_id=numbered(number), deadline=math.inf
                )
            torch.testing.assert_close(mine, twin.backward([X], [G])[0])
        await host.drain()
        await host.save_all()
        nursery.cancel_scope.cancel()
    restored = ExpertHost(settings, tmp_path, events)
    assert (await restored.add([A]))[0].steps == 5
