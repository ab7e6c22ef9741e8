"""A virtual network whose clock the test moves, and wires that write down what happens to them."""

import heapq
import itertools
import random

import pytest

from p2pnode.testing.network import Endpoint, VirtualNetwork, Wire


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Loop:
    """Runs knocks against each other in order of time."""

    def __init__(self, network, clock):
        self.network = network
        self.clock = clock
        self.knocks = []
        self._numbers = itertools.count()

    def dial(self, source, port, target):
        knock = self.network.dial(source, port, Endpoint(*target))
        self.knocks.append(knock)
        return knock

    def run(self, until=30.0):
        """Advance all knocks until they are answered, or it is `until`."""
        heap = [(each.next_at, next(self._numbers), each) for each in self.knocks]
        heapq.heapify(heap)
        while heap:
            at, _, knock = heapq.heappop(heap)
            if at > until:
                break
            if knock.answer is not None:
                continue
            self.clock.now = max(self.clock.now, at)
            if knock.next_at <= self.clock.now:
                knock.advance(self.clock.now)
            heapq.heappush(heap, (knock.next_at, next(self._numbers), knock))
        for knock in self.knocks:
            knock.end()
        self.knocks.clear()


class NotingWire(Wire):
    """Keeps the bytes that were held, and sends them again."""

    def __init__(self, network, one, other):
        super().__init__(network, (one, other), (Endpoint(one.ip, 1), Endpoint(other.ip, 2)))
        self.notes = []

    def receive_held(self, now):
        self.notes.append(("held", now))

    def receive_resumed(self, now):
        self.notes.append(("resumed", now))

    def receive_reset(self, end, at):
        self.notes.append(("reset", end, at))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_network(clock):
    def make(seed=0, **options):
        return VirtualNetwork(random.Random(seed), clock=clock, **options)

    return make


@pytest.fixture
def make_loop(clock):
    return lambda network: Loop(network, clock)


@pytest.fixture
def wire_between():
    return NotingWire
