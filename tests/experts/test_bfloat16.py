"""Experts whose tensors and weights are bfloat16, over the wire and through a checkpoint."""

import contextlib
import dataclasses
import math

import pytest
import torch
import trio
from torch import nn

from p2pnode.config import RpcSettings
from p2pnode.experts.backend import build_backend
from p2pnode.experts.layers import register_layer
from p2pnode.experts.passes import backward_through, forward_through
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.schema import TensorSpec
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.testing.light import light_hosts
from p2pnode.wire.uids import Uid

UID = Uid("open:test", "half.0")
MEMBERSHIPS = {"test": Membership.open("test")}


def _bfloat16_rows(hidden_dim):
    return (TensorSpec("bfloat16", (None, hidden_dim)),)


@register_layer("test-bfloat16", inputs=_bfloat16_rows)
def _half_linear(hidden_dim):
    return nn.Linear(hidden_dim, hidden_dim, dtype=torch.bfloat16)


@contextlib.asynccontextmanager
async def hosted(settings, directory):
    async with light_hosts() as world, trio.open_nursery() as nursery:
        far, near = await world.add_host(), await world.add_host()
        near.add_addresses(far.peer_id, far.addresses, math.inf)
        rpc = RpcSettings()
        experts = ExpertHost(
            settings, directory, far.events, rpc=rpc, compute=compute_inline, disk=compute_inline
        )
        TensorServer(far, rpc, experts, Authority(MEMBERSHIPS, 8))
        await experts.add([UID])
        await nursery.start(experts.run)
        yield TensorClient(near, rpc, MEMBERSHIPS), far.peer_id
        await experts.save_all()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("codec", ["none", "blockwise-int8"])
async def test_it_trains_as_it_would_locally_and_goes_on_after_a_restart(
    settings, optimizer, codec, tmp_path, autojump_clock
):
    settings = dataclasses.replace(settings, layer="test-bfloat16", optimizer=optimizer)
    twin = build_backend(UID, settings)
    exact = codec == "none"
    for life in range(2):
        async with hosted(settings, tmp_path) as (client, peer_id):
            info = await client.info(peer_id, UID)
            for number in range(2):
                x, g = (torch.randn(6, 8).to(torch.bfloat16) for _ in range(2))
                (y,) = await client.forward(peer_id, UID, [x], info=info, codec=codec)
                call_id = bytes([life, number]).rjust(16)
                (gx,) = await client.backward(
                    peer_id, UID, [x], [g], call_id=call_id, info=info, codec=codec
                )
                (local,) = forward_through([twin], [x])
                (local_gradient,) = backward_through([twin], [x], [g])
                for ours, theirs in ((y, local), (gx, local_gradient)):
                    assert ours.dtype == theirs.dtype == torch.bfloat16
                    assert torch.equal(ours, theirs) == exact
                    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
