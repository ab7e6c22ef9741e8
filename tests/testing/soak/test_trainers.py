"""Trainers on loopback, around experts that are served in this process."""

import contextlib
import random

import pytest
import torch
import trio

from p2pnode.config import Settings
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.host.node import NetworkHost
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.testing.soak.trainers import FFN, NOP, RUN, WIDTH, Outcomes, come_and_go
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

pytestmark = pytest.mark.real
CALLS = 400


class Wrong(ExpertHost):
    """Answers something else than was computed."""

    async def forward(self, uid, inputs, **options):
        return [each + 1 for each in await super().forward(uid, inputs, **options)]


@contextlib.asynccontextmanager
async def served(kind=ExpertHost):
    member = Membership.open(RUN)
    settings = Settings().replace(hosting={"hidden_dim": WIDTH})
    async with trio.open_nursery() as nursery:
        host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
        await nursery.start(host.run)
        experts = kind(settings.hosting, None, host.events, compute=compute_inline)
        await nursery.start(experts.run)
        for uid, layer in ((NOP, "nop"), (FFN, "ffn")):
            chosen = settings.replace(hosting={"layer": layer}).hosting
            await experts.add([uid.in_run(member.run_id)], chosen)
        authority = Authority({member.run_id: member}, 16)
        server = TensorServer(host, settings.rpc, experts, authority)
        yield host.peer_id, await host.listen(tcp_address("127.0.0.1", 0))
        with trio.fail_after(5):
            while server.budget.calls_in_flight:  # noqa: ASYNC110  # of trainers that hung up
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def soaked(malformed, kind=ExpertHost):
    torch.set_num_threads(1)
    outcomes = Outcomes(wanted=CALLS)
    async with served(kind) as (peer_id, (address,)):
        await come_and_go(peer_id, address, outcomes, random.Random(1), malformed=malformed)
    return outcomes


async def test_every_call_is_accounted_for():
    outcomes = await soaked(malformed=0.1)
    assert outcomes.faults == {}
    assert outcomes.valid.total() + outcomes.spoilt.total() == CALLS
    assert outcomes.valid["answered"] > CALLS / 2
    assert outcomes.spoilt["refused"] > 10
    assert outcomes.spoilt["hung up"] > 0


async def test_wrong_answers_are_faults():
    outcomes = await soaked(malformed=0.0, kind=Wrong)
    assert outcomes.faults["a wrong answer"] > CALLS / 4
