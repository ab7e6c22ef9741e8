"""What a participant makes of the aggregate of all weights."""

from types import SimpleNamespace

import pytest
import torch
import trio

from p2pnode.config import RoundsSettings
from p2pnode.errors import AveragingError
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.states import ExpertState
from p2pnode.swarm.averaging.group import TrimmedMean
from p2pnode.swarm.averaging.matchmaking import Candidate
from p2pnode.swarm.averaging.terms import Terms
from p2pnode.swarm.gossip.announcement import Claim
from p2pnode.swarm.rounds.averaging import SwarmAveraging
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

UID = Uid("open:test", "ffn.0")
TERMS = Terms(training=1).encode()
OWN, OTHER = (PrivateKey.from_seed(bytes([n]) * 32).peer_id for n in (9, 3))


class Experts:
    """A host of one layer."""

    def __init__(self, weight):
        self.weight = weight

    async def snapshot(self, uid, *, complete=True):
        await trio.lowlevel.checkpoint()
        tensors = {"module.weight": self.weight.clone(), "module.count": torch.tensor(7)}
        state = ExpertState(tensors=tensors, steps=3, rows=9, layer="ffn", optimizer="sgd")
        return Checkpoint(state=state, applied=(), complete=False)


class Reducer:
    """Gives the mean of what it is given and of what the other one has."""

    def __init__(self, others):
        self.others = others
        self.groups = []
        self.absent = None
        self.relayed = None
        self.upload = 0

    def candidates(self, peer_ids):
        return [Candidate(peer_id=each, is_reachable=each != self.relayed) for each in peer_ids]

    async def reduce(self, group, tensors, *, timeout):
        await trio.lowlevel.checkpoint()
        self.groups.append(group)
        other = self.others.pop(0)
        mean = [(each + other) / 2 for each in tensors]
        contributors = tuple(each.peer_id for each in group.members if each.peer_id != self.absent)
        return SimpleNamespace(tensors=mean, contributors=contributors)


class Swarm:
    """The others as they say they are; nobody says anything new of itself."""

    def __init__(self):
        self.peer_id = OWN
        self.gone = frozenset()
        self.announcements = {}
        self._changed = trio.Event()

    def hear(self, **claim):
        self.announcements = {OTHER: SimpleNamespace(claim=Claim(extra=TERMS, **claim))}
        self._changed.set()
        self._changed = trio.Event()

    async def wait_until(self, holds):
        await trio.lowlevel.checkpoint()
        while not holds():
            await self._changed.wait()


def say(swarm, peer_id, *, training=1, upload=0, extra=None):
    """Let a member announce how it takes part."""
    extra = Terms(training=training, upload=upload).encode() if extra is None else extra
    swarm.announcements[peer_id] = SimpleNamespace(claim=Claim(extra=extra))


def averaging_of(weight, others, **settings):
    experts, reducer = Experts(weight), Reducer(others)
    swarm = Swarm()
    say(swarm, OTHER)
    averaging = SwarmAveraging(UID, experts, swarm, reducer, RoundsSettings(**settings))
    return averaging, experts, reducer


async def test_the_average_takes_the_place_of_the_weights_and_of_nothing_else():
    averaging, _, reducer = averaging_of(
        torch.tensor([1.0, 2.0]), [torch.tensor([3.0, 6.0])], mode="average"
    )
    await averaging.begin()
    mixture = await averaging.average(4, [OTHER])
    state = mixture.checkpoint.state
    assert torch.equal(state.tensors["module.weight"], torch.tensor([2.0, 4.0]))
    assert (state.tensors["module.count"], state.steps, mixture.checkpoint.complete) == (
        7,
        3,
        False,
    )
    assert sorted(mixture.contributors) == sorted([OWN, OTHER])
    (group,) = reducer.groups
    assert sorted(each.peer_id for each in group.members) == sorted([OWN, OTHER])


@pytest.mark.parametrize("elsewhere", [{"round": 5}, {"round": 4, "is_final": True}])
async def test_nobody_waits_for_those_who_say_they_are_elsewhere(autojump_clock, elsewhere):
    averaging, _, reducer = averaging_of(torch.ones(1), [], mode="average")
    swarm = averaging._swarm
    swarm.hear(round=4)

    async def wait_in_vain(group, tensors, *, timeout):
        await trio.sleep(timeout)
        raise AveragingError("nobody came")

    reducer.reduce = wait_in_vain
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def average():
            with pytest.raises(AveragingError, match="gone on"):
                await averaging.average(4, [OTHER])

        nursery.start_soon(average)
        await trio.sleep(2)
        swarm.hear(**elsewhere)
    assert trio.current_time() - began == pytest.approx(3.0)


async def test_who_cannot_be_dialled_reduces_nothing():
    averaging, _, reducer = averaging_of(torch.ones(1), [torch.ones(1)], mode="average")
    reducer.relayed = OTHER
    await averaging.average(1, [OTHER])
    (group,) = reducer.groups
    assert {each.peer_id: each.bandwidth for each in group.members} == {OWN: 1, OTHER: 0}


async def test_all_members_name_a_round_alike_and_each_round_anew():
    names = []
    for number in (1, 2, 2):
        averaging, _, reducer = averaging_of(torch.ones(1), [torch.ones(1)], mode="average")
        await averaging.average(number, [OTHER])
        names.append(reducer.groups[0].round_id)
    assert names[0] != names[1] == names[2]


async def test_who_trains_anew_names_the_same_round_anew_and_others_know_how():
    names = []
    for training in (1, 2, 2):
        averaging, _, reducer = averaging_of(torch.ones(1), [torch.ones(1)], mode="average")
        say(averaging._swarm, OTHER, training=training)
        await averaging.average(1, [OTHER])
        names.append(reducer.groups[0].id_at(OTHER))
    assert names[0] != names[1] == names[2]


async def test_parts_are_shared_out_by_what_members_have_announced():
    averaging, _, reducer = averaging_of(torch.ones(1), [torch.ones(1)], mode="average")
    reducer.upload = 2**20
    announced = Terms.decode(averaging.extra())
    assert announced.upload == 2**20
    reducer.upload = 2**30  # measured since, and not announced yet
    say(averaging._swarm, OTHER, upload=2**21)
    await averaging.average(1, [OTHER])
    (group,) = reducer.groups
    assert {each.peer_id: each.bandwidth for each in group.members} == {OWN: 2**20, OTHER: 2**21}


async def test_who_does_not_say_how_it_takes_part_is_left_out():
    averaging, _, _ = averaging_of(torch.ones(1), [torch.ones(1)], mode="average")
    say(averaging._swarm, OTHER, extra=b"?")
    with pytest.raises(AveragingError, match="nobody to average with"):
        await averaging.average(1, [OTHER])


async def test_a_run_chooses_the_aggregator_and_the_codec():
    averaging, _, reducer = averaging_of(
        torch.ones(1),
        [torch.ones(1)],
        mode="average",
        aggregator="trimmed-mean",
        codec="float16",
    )
    await averaging.average(1, [OTHER])
    assert reducer.groups[0].aggregator == TrimmedMean()
    assert reducer.groups[0].codec == "float16"


async def test_diloco_steps_as_torch_does_with_nesterovs_momentum():
    torch.manual_seed(3)
    first = torch.randn(5)
    reference = torch.nn.Parameter(first.clone())
    optimizer = torch.optim.SGD([reference], lr=0.7, momentum=0.9, nesterov=True)
    others = [torch.randn(5) for _ in range(4)]
    averaging, experts, _ = averaging_of(first.clone(), list(others), mode="diloco")
    for number, other in enumerate(others, 1):
        await averaging.begin()
        anchor = experts.weight
        experts.weight = anchor + torch.randn(5)  # what it has learnt in the round
        reference.grad = anchor - (experts.weight + other) / 2
        optimizer.step()
        mixture = await averaging.average(number, [OTHER])
        experts.weight = mixture.checkpoint.state.tensors["module.weight"]
        torch.testing.assert_close(experts.weight, reference.detach())


async def test_diloco_draws_weights_together_that_began_a_round_apart():
    mine, theirs = torch.zeros(1), torch.ones(1)
    apart, _, _ = averaging_of(mine, [theirs], mode="diloco", outer_momentum=0.0)
    await apart.begin()
    mixture = await apart.average(1, [OTHER])
    # The mean is 0.5, and the outer rate 0.7.
    assert mixture.checkpoint.state.tensors["module.weight"].item() == pytest.approx(0.35)


async def test_diloco_cannot_step_from_a_round_that_has_not_begun_here():
    averaging, _, _ = averaging_of(torch.ones(1), [torch.ones(1)], mode="diloco")
    with pytest.raises(AveragingError, match="has not begun"):
        await averaging.average(1, [OTHER])


async def test_who_did_not_come_is_left_out_for_one_round_then_two_until_he_comes():
    averaging, _, reducer = averaging_of(torch.ones(1), [torch.ones(1)] * 20, mode="average")
    third = PrivateKey.from_seed(bytes([5]) * 32).peer_id
    say(averaging._swarm, third)

    async def is_asked(number):
        await averaging.average(number, [OTHER, third])
        return third in [each.peer_id for each in reducer.groups[-1].members]

    reducer.absent = third
    assert [await is_asked(number) for number in range(1, 7)] == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    reducer.absent = None
    assert [await is_asked(number) for number in range(7, 13)] == [False] * 4 + [True] * 2


async def test_who_is_alone_averages_with_nobody():
    averaging, _, reducer = averaging_of(torch.ones(1), [], mode="average")
    with pytest.raises(AveragingError, match="nobody"):
        await averaging.average(1, [])
    assert reducer.groups == []
