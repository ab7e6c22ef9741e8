import pytest
import torch
import trio

from p2pnode.experts.backend import build_backend
from p2pnode.trainer.sequential.chain import Chain
from p2pnode.trainer.sequential.planner import Pass
from p2pnode.trainer.sources import CallPolicy
from p2pnode.wire.uids import Uid


class Twin:
    """The same blocks in this process; backward steps them as their hosts step theirs."""

    def __init__(self, hosting, count):
        self.backends = [build_backend(Uid("test", f"blocks.{n}"), hosting) for n in range(count)]

    def forward(self, inputs):
        for backend in self.backends:
            (inputs,) = backend.forward([inputs])
        return inputs

    def backward(self, inputs, gradients):
        kept = [inputs]
        for backend in self.backends[:-1]:
            kept += backend.forward([kept[-1]])
        for backend, given in zip(reversed(self.backends), reversed(kept), strict=True):
            (gradients,) = backend.backward([given], [gradients])
        return gradients


class Lab:
    """Light swarms with a trainer whose chains lead through their blocks."""

    def __init__(self, open_swarm, settings):
        self.open = open_swarm
        self.settings = settings
        self.policy = CallPolicy(timeout=30.0)
        torch.manual_seed(1)
        self.inputs, self.upstream = torch.randn(6, 8), torch.randn(6, 8)

    def twin(self, count):
        """Build the local twin of `blocks.[0:count]`."""
        return Twin(self.settings.hosting, count)

    async def chain(self, swarm, stop, start=0):
        """Start a trainer, with a chain through the swarm's blocks."""
        caller = await swarm.session()
        return Chain(caller.client, "blocks", start, stop, settings=swarm.settings)

    async def look(self, chain):
        """Let a chain find out who hosts its blocks by now."""
        for _ in range(2):
            await chain._planner.route(chain._start, chain._stop, Pass.begin(self.policy))
            await trio.sleep(1)

    async def forward(self, chain, inputs=None, keep=True):
        """Run one micro-batch."""
        batch = [self.inputs if inputs is None else inputs]
        ((outputs, passage),) = await chain.forward(batch, self.policy, keep)
        return outputs, passage

    async def backward(self, chain, passage):
        """Go back."""
        (found,) = await chain.backward([passage], [self.inputs], [self.upstream], self.policy)
        return found

    def steps(self, servers, blocks):
        """List how often each block has stepped, over these servers."""
        status = [each for server in servers for each in server.experts.status()]
        return [
            sum(each.steps for each in status if each.uid.name == f"blocks.{number}")
            for number in range(blocks)
        ]

    def stages(self, servers, passage):
        """Tell which server ran each stage of a passage, with its blocks."""
        peers = [server.host.peer_id for server in servers]
        hops = [stage.hop for stage in passage.stages]
        return [(peers.index(hop.peer_id), hop.start, hop.stop) for hop in hops]


@pytest.fixture
def lab(open_swarm, trainer_settings):
    """Light swarms with a trainer whose chains lead through their blocks."""
    return Lab(open_swarm, trainer_settings)
