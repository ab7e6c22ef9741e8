"""Batches that the device's memory does not take."""

import dataclasses

import pytest
import torch
from torch import nn

from p2pnode.errors import ExpertFailedError
from p2pnode.experts import layers
from p2pnode.experts.backend import ExpertBackend
from p2pnode.experts.batches import compute_batch
from p2pnode.experts.failures import OutOfDeviceMemoryError
from p2pnode.experts.layers import Layer
from p2pnode.experts.pool import Call
from p2pnode.experts.row_limits import RowLimits
from p2pnode.rpc.schema import TensorSpec
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

ALICE = PrivateKey.from_seed(b"a" * 32).peer_id
UID = Uid("open:r", "ffn.1.2")
ROWS = TensorSpec("float32", (None, 8))
MESSAGES = [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 MiB."),
]


class Narrow(nn.Module):
    """Has memory for so many rows at once."""

    def __init__(self, room, error=MESSAGES[0]):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.room = room
        self.error = error
        self.seen = []
        self.refused = 0

    def forward(self, x):
        if len(x) > self.room:
            self.refused += 1
            raise self.error
        if len(x) != 3 or x.any():  # not the probe
            self.seen.append(len(x))
        return self.linear(x)


def narrow(settings, room, *error, **changes):
    layer = Layer(name="narrow", build=nn.Identity, inputs=layers.hidden_rows)
    settings = dataclasses.replace(settings, optimizer="sgd", learning_rate=0.1, **changes)
    torch.manual_seed(1)
    module = Narrow(max(room, 3), *error)
    backend = ExpertBackend(UID, layer, module, settings, inputs=(ROWS,))
    module.room = room
    return backend


def call(kind, x, g=None):
    return Call(
        uids=(UID,),
        kind=kind,
        caller=ALICE,
        rows=len(x),
        inputs=[x],
        gradients=[] if g is None else [g],
        arrived=0.0,
        deadline=9.0,
    )


@pytest.mark.parametrize("error", MESSAGES, ids=str)
def test_a_lack_of_memory_is_told_from_other_failures(settings, error):
    with pytest.raises(OutOfDeviceMemoryError):
        narrow(settings, 4, error).forward([torch.ones(5, 8)])


def test_any_other_failure_is_no_lack_of_memory(settings):
    with pytest.raises(ExpertFailedError) as caught:
        narrow(settings, 4, RuntimeError("bad shapes")).forward([torch.ones(5, 8)])
    assert type(caught.value) is ExpertFailedError


def test_a_batch_that_does_not_fit_is_halved_by_calls_and_the_size_is_remembered(settings):
    backend, limits = narrow(settings, 4), RowLimits(100)
    calls = [call("forward", torch.randn(2, 8)) for _ in range(8)]
    expected = [backend.forward(each.inputs)[0] for each in calls]
    backend.module.seen.clear()
    outcomes = compute_batch([backend], calls, limits)
    torch.testing.assert_close([outcome[0] for outcome in outcomes], expected)
    assert backend.module.seen == [4, 4, 4, 4]
    assert limits.of((UID,)) == 4
    refused = backend.module.refused
    compute_batch([backend], [call("forward", torch.randn(2, 8)) for _ in range(8)], limits)
    assert backend.module.refused == refused  # what is known is not tried again


def test_a_single_forward_call_that_does_not_fit_is_computed_in_pieces(settings):
    backend, limits, x = narrow(settings, 4), RowLimits(100), torch.randn(13, 8)
    ((y,),) = compute_batch([backend], [call("forward", x)], limits)
    torch.testing.assert_close(y, backend.module.linear(x).detach())
    assert backend.module.seen == [3, 3, 3, 3, 1]
    backend.module.seen.clear()
    compute_batch([backend], [call("forward", x)], limits)  # now without trying more
    assert backend.module.seen == [3, 3, 3, 3, 1]


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_backward_call_in_pieces_takes_the_one_step_of_the_whole(settings, clip):
    whole = narrow(settings, 100, clip_grad_norm=clip)
    backend = narrow(settings, 4, clip_grad_norm=clip)
    x, g = torch.randn(13, 8), torch.randn(13, 8)
    ((gx,),) = compute_batch([backend], [call("backward", x, g)], RowLimits(100))
    torch.testing.assert_close(gx, whole.backward([x], [g])[0])
    for mine, theirs in zip(backend.module.parameters(), whole.module.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert (backend.steps, backend.rows) == (1, 13)


def test_a_backward_call_that_fails_in_its_last_piece_has_not_stepped(settings):
    backend, limits = narrow(settings, 4), RowLimits(100)
    before = backend.module.linear.weight.detach().clone()
    g = torch.ones(13, 8)
    g[12] = torch.nan
    (outcome,) = compute_batch([backend], [call("backward", torch.ones(13, 8), g)], limits)
    assert isinstance(outcome, ExpertFailedError)
    assert torch.equal(backend.module.linear.weight, before)
    assert backend.steps == 0
    x = torch.ones(2, 8)
    compute_batch([backend], [call("backward", x, x)], limits)
    expected = narrow(settings, 4)
    expected.backward([x], [x])
    torch.testing.assert_close(backend.module.linear.weight, expected.module.linear.weight)


def test_a_row_for_which_there_is_no_room_fails_alone(settings):
    backend, limits = narrow(settings, 0), RowLimits(100)
    calls = [call("forward", torch.randn(2, 8)) for _ in range(3)]
    outcomes = compute_batch([backend], calls, limits)
    assert [type(outcome) for outcome in outcomes] == [ExpertFailedError] * 3
    assert "can't allocate memory" in str(outcomes[0])
    assert limits.of((UID,)) == 1
    backend.module.room = 100  # memory has come back
    for _ in range(300):
        compute_batch([backend], [call("forward", torch.randn(64, 8))], limits)
    assert limits.of((UID,)) == 100
    assert backend.module.seen[-1] == 64


def test_a_failure_keeps_no_tensor_alive(settings):
    backend = narrow(settings, 4, RuntimeError("bad shapes"))
    (outcome,) = compute_batch([backend], [call("forward", torch.ones(5, 8))], RowLimits(100))
    assert (outcome.__traceback__, outcome.__cause__, outcome.__context__) == (None, None, None)


@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True), (False, False)])
def test_who_wants_no_gradients_of_inputs_gets_none_and_the_step_is_the_same(settings, wants):
    torch.manual_seed(2)
    given = [(torch.randn(rows, 8), torch.randn(rows, 8)) for rows in (3, 5)]
    calls = [call("backward", *each) for each in given]
    for each, wanted in zip(calls, wants, strict=True):
        each.wants_gradients = wanted
    expert, other = narrow(settings, 100), narrow(settings, 100)
    found = compute_batch([expert], calls, RowLimits(100))
    expected = compute_batch([other], [call("backward", *each) for each in given], RowLimits(100))
    for got, wanted, whole in zip(found, wants, expected, strict=True):
        torch.testing.assert_close(got, whole if wanted else [])
    for one, two in zip(expert.parameters, other.parameters, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("room", [100, 2])
def test_gradients_of_inputs_that_nobody_wants_are_not_computed(settings, room):
    expert = narrow(settings, room)
    seen = []
    expert.module.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    unwanted = call("backward", torch.ones(4, 8), torch.ones(4, 8))
    unwanted.wants_gradients = False
    assert compute_batch([expert], [unwanted], RowLimits(100)) == [[]]
    assert expert.steps == 1
    assert not any(each.requires_grad for each in seen)
    compute_batch([expert], [call("backward", torch.ones(4, 8), torch.ones(4, 8))], RowLimits(100))
    assert seen[-1].requires_grad
