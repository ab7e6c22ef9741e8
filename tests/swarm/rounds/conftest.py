"""Participants in one process: what they say and give is handed on at once, and can be spoilt."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import trio

from p2pnode.config import RoundsSettings
from p2pnode.errors import TransferError
from p2pnode.events import Event, EventBus
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.states import ExpertState
from p2pnode.swarm.gossip.announcement import Announcement, Claim
from p2pnode.swarm.gossip.core import Member
from p2pnode.swarm.rounds.service import Rounds
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

UID = Uid("open:test", "ffn.0")
HELD_OUT = 1000


def state_of(value):
    """A state whose weights are worth `value`."""
    tensors = {"module.weight": torch.tensor([float(value)], dtype=torch.float64)}
    state = ExpertState(tensors=tensors, steps=1, rows=1, layer="ffn", optimizer="sgd")
    return Checkpoint(state=state, applied=(), complete=False)


def value_of(checkpoint):
    return float(checkpoint.state.tensors["module.weight"])


def name_of(value):
    return repr(float(value)).encode().ljust(32, b".")


class Hub:
    """What all have said and published."""

    def __init__(self):
        self.participants = []
        self.said = {}
        self.states = {}
        self.versions = 0
        self.changed = trio.Event()

    def announce(self, peer_id, claim):
        self.versions += 1
        self.said[peer_id] = Announcement(
            uid=UID, peer_id=peer_id, claim=claim, version=self.versions, issued=0.0, lifetime=90.0
        )
        self.wake()

    def wake(self):
        self.changed.set()
        self.changed = trio.Event()


class Swarm:
    """One participant's `LayerSwarm`."""

    def __init__(self, hub, peer_id):
        self.peer_id = peer_id
        self.reports = []
        self.claims = []
        self.gone = frozenset()
        self._hub = hub

    @property
    def own(self):
        return self._hub.said.get(self.peer_id)

    @property
    def members(self):
        return [
            Member(peer_id=each, announcement=self._hub.said.get(each))
            for each in sorted({*self._hub.said, *(one.peer_id for one in self._hub.participants)})
            if each != self.peer_id
        ]

    @property
    def announcements(self):
        return {
            peer_id: each
            for peer_id, each in sorted(self._hub.said.items())
            if peer_id != self.peer_id and not self.is_shunned(peer_id)
        }

    def is_shunned(self, peer_id):
        return any(peer_id == blamed for blamed, _, _ in self.reports)

    async def announce(self, claim):
        await trio.lowlevel.checkpoint()
        self.claims.append(claim)
        self._hub.announce(self.peer_id, claim)

    async def wait_until(self, holds):
        while not holds():
            await self._hub.changed.wait()

    def report(self, peer_id, offence, reason):
        self.reports.append((peer_id, offence, reason))


class Weights:
    """One participant's `WeightsExchange`; its layer is worth `value`."""

    def __init__(self, hub, value):
        self.value = value
        self.codec = "none"
        self.adopted = []
        self.fetched = []
        self.failures = {}  # what to raise, or for how long to sleep, by the operation
        self._hub = hub

    async def _maybe_fail(self, operation):
        await trio.lowlevel.checkpoint()
        failure = self.failures.get(operation)
        if isinstance(failure, Exception):
            raise failure
        if failure is not None:
            await trio.sleep(failure)

    async def publish(self, uid):
        await self._maybe_fail("publish")
        given = self.value if self.codec == "none" else round(self.value, 1)
        self._hub.states[name_of(given)] = given
        return SimpleNamespace(name=name_of(given), steps=1, size=4, codec=self.codec)

    async def fetch(self, uid, name, holders):
        await self._maybe_fail("fetch")
        self.fetched.append((name, tuple(holders)))
        if name not in self._hub.states:
            raise TransferError("nobody has it")
        return state_of(self._hub.states[name])

    async def adopt(self, uid, checkpoint, *, source, optimizer=None):
        await self._maybe_fail("adopt")
        self.value = value_of(checkpoint)
        self.adopted.append((self.value, source))


class TeachableLearner:
    """Learns what it is told to, by round, and scores weights by what they are worth."""

    held_out = HELD_OUT
    data_digest = b"\x05" * 32
    is_lasting = True

    def __init__(self, weights, lessons, seconds):
        self.samples = []
        self.scored = []
        self.bias = 0.0
        self.failures = []
        self._weights = weights
        self._lessons = iter(lessons)
        self._seconds = seconds

    async def train(self, samples):
        await trio.sleep(self._seconds)
        if self.failures:
            raise self.failures.pop(0)
        self.samples.append(samples)
        self._weights.value = next(self._lessons, self._weights.value)

    async def score(self, checkpoint):
        await trio.lowlevel.checkpoint()
        value = self._weights.value if checkpoint is None else value_of(checkpoint)
        self.scored.append(value)
        return value + self.bias


@dataclass
class Participant:
    """All of one participant."""

    peer_id: object
    swarm: Swarm
    weights: Weights
    learner: TeachableLearner
    events: EventBus
    rounds: Rounds
    seen: list = field(default_factory=list)
    ended: object = None

    async def run(self):
        self.ended = await self.rounds.run()

    def saw(self, kind):
        return [each for each in self.seen if type(each) is kind]


@pytest.fixture
def make_state():
    """A function that makes a state whose weights are worth something."""
    return state_of


@pytest.fixture
def hub():
    """What all have said."""
    return Hub()


@pytest.fixture
def add(hub):
    """A function that adds a participant, and tells what its weights are worth after training."""

    def added(*lessons, seconds=1.0, averaging=None, value=0.1, **settings):
        number = len(hub.participants) + 1
        peer_id = PrivateKey.from_seed(bytes([number]) * 32).peer_id
        swarm, weights, events = Swarm(hub, peer_id), Weights(hub, value), EventBus()
        learner = TeachableLearner(weights, lessons, seconds)
        rounds = Rounds(
            UID,
            learner,
            swarm=swarm,
            weights=weights,
            settings=RoundsSettings(**{"rounds": max(1, len(lessons)), **settings}),
            events=events,
            averaging=averaging,
        )
        found = Participant(peer_id, swarm, weights, learner, events, rounds)
        events.on(Event, found.seen.append)
        hub.participants.append(found)
        return found

    return added


@pytest.fixture
def run_all(hub):
    """A function that runs all participants to their end."""

    async def run():
        async with trio.open_nursery() as nursery:
            for each in hub.participants:
                nursery.start_soon(each.run)

    return run


@pytest.fixture
def lie(hub):
    """A function by which somebody else claims something of weights that are worth `value`."""

    def lied(claimed, value, *, number=1, seed=99, scored_on=1000):
        peer_id = PrivateKey.from_seed(bytes([seed]) * 32).peer_id
        hub.states[name_of(value)] = value
        claim = Claim(
            round=number,
            score=claimed,
            scored_on=scored_on,
            weights=name_of(value),
            size=4,
            mode="best",
        )
        hub.announce(peer_id, claim)
        return peer_id

    return lied
