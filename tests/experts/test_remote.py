"""Experts called over the wire: authorised, authenticated, equal to local ones."""

import contextlib
import dataclasses
import math

import pytest
import torch
import trio

from p2pnode.config import HostingSettings, RpcSettings
from p2pnode.errors import (
    ExpertFailedError,
    HostLostError,
    OverloadedError,
    SchemaError,
    UnknownExpertError,
)
from p2pnode.experts.backend import build_backend
from p2pnode.experts.events import BatchComputed
from p2pnode.experts.passes import backward_through, forward_through
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership, RunKey, issue_invite
from p2pnode.testing.light import light_hosts
from p2pnode.wire.uids import Uid

KEY = RunKey.from_bytes(bytes(range(32)))
UID = Uid("digits", "ffn.1.2")


class Remote:
    def __init__(self, far, near, settings, directory=None, compute=compute_inline):
        self.settings = settings
        self.far, self.near = far, near
        self.experts = ExpertHost(
            settings, directory, self.far.events, compute=compute, disk=compute_inline
        )
        rpc = RpcSettings()
        authority = Authority({"digits": self.member(self.far)}, rpc.token_cache_size)
        self.server = TensorServer(self.far, rpc, self.experts, authority)
        self.client = TensorClient(self.near, rpc, {"digits": self.member(self.near)})
        self.near.add_addresses(self.far.peer_id, self.far.addresses, math.inf)

    def member(self, host):
        invite = issue_invite(KEY, "digits", scopes=("host", "train"), expires_at=2**33)
        return Membership.accept(invite, host.peer_id)

    async def forward(self, *inputs, uid=UID, span=1):
        return await self.client.forward(self.far.peer_id, uid, inputs, span=span)

    async def backward(self, inputs, gradients, call_id, uid=UID, span=1):
        return await self.client.backward(
            self.far.peer_id, uid, inputs, gradients, call_id=call_id, span=span
        )


@contextlib.asynccontextmanager
async def remote(settings, uids=(UID,), **options):
    async with light_hosts() as world, trio.open_nursery() as nursery:
        made = Remote(await world.add_host(), await world.add_host(), settings, **options)
        await made.experts.add([uid.in_run(KEY.run_id) for uid in uids])
        await nursery.start(made.experts.run)
        yield made
        await trio.testing.wait_all_tasks_blocked()
        assert made.server.budget.bytes_in_flight == 0
        assert made.server.budget.calls_in_flight == 0
        nursery.cancel_scope.cancel()


class Slow:
    """Inline compute that takes a virtual second."""

    async def __call__(self, work):
        await trio.sleep(1.0)
        return work()


def numbered(number):
    return number.to_bytes(16, "big")


@pytest.mark.parametrize(("layer", "rows"), [("ffn", 5), ("ffn", 4000), ("transformer", 3)])
async def test_remote_training_equals_local_training(settings, layer, rows, autojump_clock):
    settings = dataclasses.replace(settings, layer=layer, optimizer="sgd")
    twin = build_backend(UID, settings)
    async with remote(settings) as it:
        info = await it.client.info(it.far.peer_id, UID)
        for number in range(3):
            x = torch.randn(info.inputs[0].with_rows(rows).shape)
            g = torch.randn(x.shape)
            (y,) = await it.forward(x)
            torch.testing.assert_close(y, twin.forward([x])[0])
            (gx,) = await it.backward([x], [g], numbered(number))
            torch.testing.assert_close(gx, twin.backward([x], [g])[0])
        assert it.experts.status()[0].steps == 3


async def test_concurrent_trainers_each_get_their_own_rows(settings, autojump_clock):
    twin = build_backend(UID, settings)
    async with remote(settings) as it:
        answers = {}

        async def call(number, x):
            answers[number] = (await it.forward(x))[0]

        xs = [torch.randn(number % 5 + 1, 8) for number in range(30)]
        async with trio.open_nursery() as nursery:
            for number, x in enumerate(xs):
                nursery.start_soon(call, number, x)
        for number, x in enumerate(xs):
            torch.testing.assert_close(answers[number], twin.forward([x])[0])


async def test_a_backward_call_whose_reply_was_lost_steps_once(settings, autojump_clock):
    async with remote(settings) as it:
        x = torch.randn(2, 8)
        await it.forward(x)
        cut = it.near.connection_to(it.far.peer_id)
        undo = it.far.events.on(BatchComputed, lambda _: cut.close("the cable was pulled"))
        with pytest.raises(HostLostError):
            await it.backward([x], [x], numbered(1))
        undo()
        assert it.experts.status()[0].steps == 1
        twin = build_backend(UID, settings)
        (gx,) = await it.backward([x], [x], numbered(1))
        torch.testing.assert_close(gx, twin.backward([x], [x])[0])
        assert it.experts.status()[0].steps == 1


async def test_a_nan_gradient_is_refused_across_the_wire(settings, autojump_clock):
    async with remote(settings) as it:
        x = torch.ones(2, 8)
        with pytest.raises(ExpertFailedError, match="not finite"):
            await it.backward([x], [x * torch.nan], numbered(1))
        assert it.experts.status()[0].steps == 0


async def test_a_wrong_shape_is_refused_across_the_wire(settings, autojump_clock):
    async with remote(settings) as it:
        with pytest.raises(SchemaError, match=r"float32 of shape \(rows, 8\)"):
            await it.forward(torch.ones(2, 9))


async def test_a_cancelled_call_frees_its_place_in_the_queue(settings, autojump_clock):
    settings = dataclasses.replace(settings, max_queued_calls=1, batch_window=10.0)
    async with remote(settings) as it:
        for _ in range(3):
            with trio.move_on_after(1.0) as scope:
                await it.forward(torch.zeros(1, 8))
            assert scope.cancelled_caught
            await trio.testing.wait_all_tasks_blocked()
            assert it.experts.queued == 0


async def test_each_settings_default_serves(autojump_clock):
    async with remote(HostingSettings()) as it:
        (y,) = await it.forward(torch.zeros(1, 64))
        assert y.shape == (1, 64)


async def test_a_span_called_from_afar_equals_its_layers_called_here(settings, autojump_clock):
    twin = [build_backend(uid, settings) for uid in UID.span(3)]
    async with remote(settings, uids=UID.span(3)) as it:
        x, g = torch.randn(2, 8), torch.randn(2, 8)
        (y,) = await it.forward(x, span=3)
        torch.testing.assert_close(y, forward_through(twin, [x])[0])
        for _ in range(2):  # the second time it is answered, not applied
            (gx,) = await it.backward([x], [g], numbered(1), span=3)
            if not twin[0].steps:
                expected = backward_through(twin, [x], [g])[0]
            torch.testing.assert_close(gx, expected)
        assert [status.steps for status in it.experts.status()] == [1, 1, 1]
        assert await it.client.info(it.far.peer_id, UID, span=3)
        with pytest.raises(UnknownExpertError, match=r"ffn\.1\.5"):
            await it.forward(x, span=4)


async def test_a_peer_over_its_share_is_refused_before_its_tensors_come(settings, autojump_clock):
    """Only while another waits: a peer that is alone has all of the device."""
    settings = dataclasses.replace(
        settings, device_seconds_per_peer=2.0, device_window=100.0, tolerated_wait=0.5
    )
    x = torch.zeros(1000, 8)  # 32 000 bytes
    async with light_hosts() as world, trio.open_nursery() as nursery:
        far, busy, other = [await world.add_host() for _ in range(3)]
        it = Remote(far, busy, settings, compute=Slow())
        await it.experts.add([UID.in_run(KEY.run_id)])
        await nursery.start(it.experts.run)
        other.add_addresses(far.peer_id, far.addresses, math.inf)
        second = TensorClient(other, RpcSettings(), {"digits": it.member(other)})
        for _ in range(4):
            await it.forward(x)  # four seconds of the device, with nobody else there
        nursery.start_soon(it.forward, x)  # is computed first
        await trio.sleep(0.1)
        nursery.start_soon(second.forward, far.peer_id, UID, [x])
        await trio.sleep(0.6)
        held = it.server.budget.bytes_in_flight
        with pytest.raises(OverloadedError, match="your share of this device"):
            await it.forward(x)
        assert it.server.budget.bytes_in_flight == held == 2 * 2 * x.nbytes
        await trio.sleep(3.0)
        await it.forward(x)  # nobody waits any more
        nursery.cancel_scope.cancel()
