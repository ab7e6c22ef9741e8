"""Remote blocks as ordinary modules, in ordinary synchronous code."""

import copy
import pickle

import pytest
import torch
from torch import nn

from p2pnode.errors import NoLiveExpertError, NonFiniteError, SchemaError
from p2pnode.experts.backend import build_backend
from p2pnode.models.building import Model
from p2pnode.trainer.sequential.chain import Chain
from p2pnode.trainer.sequential.language import RemoteLanguageModel
from p2pnode.trainer.sequential.module import RemoteSequential
from p2pnode.trainer.sequential.remote import RemoteChain
from p2pnode.wire.uids import Uid

BLOCKS = 4


@pytest.fixture
def remote(portal_to, trainer_settings):
    """A function that hosts blocks on two servers; returns them as a module, and the servers."""

    def make(stop=BLOCKS, hosting=None, **options):
        settings = trainer_settings.replace(
            hosting={"optimizer": "sgd", **(hosting or {})}, sequential={"patience": 0.5}
        )

        async def set_up(swarm):
            servers = [
                await swarm.serve("blocks.[0:2]"),
                await swarm.serve(f"blocks.[2:{BLOCKS}]"),
            ]
            caller = await swarm.session()
            chain = Chain(caller.client, "blocks", 0, stop, settings=settings)
            return servers, chain

        portal, (servers, chain) = portal_to(set_up, settings)
        options = {
            "micro_batches": 1,
            "forward_timeout": 20.0,
            "backward_timeout": 20.0,
            **options,
        }
        module = RemoteSequential(RemoteChain(portal, chain), **options)
        local = nn.Sequential(
            *(
                build_backend(Uid("test", f"blocks.{n}"), settings.hosting).module
                for n in range(BLOCKS)
            )
        )
        return module, local, servers

    return make


def steps(servers):
    return [each.steps for server in servers for each in server.experts.status()]


def test_outputs_gradients_and_weights_are_those_of_the_local_blocks(remote):
    module, local, servers = remote()
    optimizer = torch.optim.SGD(local.parameters(), lr=1e-2)
    below = nn.Linear(8, 8)
    twin = copy.deepcopy(below)
    inputs = torch.randn(5, 8)
    for _ in range(3):
        below.zero_grad()
        twin.zero_grad()
        optimizer.zero_grad()
        outputs, expected = module(below(inputs)), local(twin(inputs))
        torch.testing.assert_close(outputs, expected)
        outputs.square().mean().backward()
        expected.square().mean().backward()
        optimizer.step()
        torch.testing.assert_close(below.weight.grad, twin.weight.grad)
    hosted = [
        server.experts._experts[uid].backend.module
        for server in servers
        for uid in server.experts.uids
    ]
    torch.testing.assert_close(
        [each for block in hosted for each in block.parameters()], list(local.parameters())
    )
    assert steps(servers) == [3] * BLOCKS


@pytest.mark.parametrize("micro_batches", [2, 5, 9])
def test_micro_batches_have_the_outputs_and_gradients_of_the_whole_batch(remote, micro_batches):
    module, local, servers = remote(
        micro_batches=micro_batches,
        hosting={"learning_rate": 0.0},  # so that all meet one model
    )
    ours = torch.randn(5, 8, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    outputs, expected = module(ours), local(theirs)
    torch.testing.assert_close(outputs, expected)
    outputs.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert all(1 <= each <= min(micro_batches, 5) for each in steps(servers))


def test_the_blocks_learn_only_under_autograd(remote):
    module, local, servers = remote()
    with torch.no_grad():
        torch.testing.assert_close(module(torch.ones(2, 8)), local(torch.ones(2, 8)))
    assert steps(servers) == [0] * BLOCKS
    module(torch.ones(2, 8)).sum().backward()  # the batch itself requires no gradient
    assert steps(servers) == [1] * BLOCKS


def test_a_copy_calls_the_same_blocks_and_nothing_is_pickled(remote):
    module, _, _ = remote()
    again = copy.deepcopy(module)
    inputs = torch.randn(2, 8)
    torch.testing.assert_close(again(inputs), module(inputs))
    assert str(module) == "RemoteSequential(blocks.[0:4], micro_batches=1)"
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(module)


def test_mistakes_are_typed_errors(remote):
    module, _, _ = remote(stop=BLOCKS + 1, detect_anomalies=True)
    with pytest.raises(NoLiveExpertError, match=r"blocks\.4"):
        module(torch.ones(2, 8))
    with pytest.raises(SchemaError, match="at least one row"):
        module(torch.ones(0, 8))
    with pytest.raises(NonFiniteError, match=r"blocks\.\[0:5\]"):
        module(torch.full((2, 8), torch.inf))
    with pytest.raises(ValueError, match="micro-batch"):
        remote(micro_batches=0)
    with pytest.raises(ValueError, match="one position"):
        module.session(0)


def test_a_language_model_learns_and_continues_a_text(remote):
    blocks, local, servers = remote(hosting={"model": "tiny"}, micro_batches=2)
    ends = Model.find("tiny").build_ends()
    model = RemoteLanguageModel(ends, blocks)
    tokens = torch.randint(256, (4, 17))
    expected = ends.loss(local(ends.embed(tokens[:, :-1])), tokens[:, 1:])
    loss = model.loss(tokens)
    torch.testing.assert_close(loss, expected)
    prompt = torch.randint(256, (2, 5))
    found = prompt
    for _ in range(6):
        with torch.no_grad():
            scores = ends.logits(local(ends.embed(found)))[:, -1]
            torch.testing.assert_close(model(found)[:, -1], scores)
        found = torch.cat([found, scores.argmax(-1, keepdim=True)], 1)
    greedy = list(model.generate(prompt, 6, temperature=0))
    torch.testing.assert_close(torch.stack(greedy, 1), found[:, 5:])

    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.stack(list(model.generate(prompt, 6, generator=generator)), 1)

    torch.testing.assert_close(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    with pytest.raises(ValueError, match="prompt"):
        next(model.generate(prompt[:, :0], 1))
    loss.backward()
    assert all(steps(servers))
    assert ends.embed_tokens.weight.grad is not None
