"""Nodes that place themselves, on a network of the real DHT."""

import random
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from p2pnode.config import PlacementSettings
from p2pnode.errors import ConfigError
from p2pnode.events import EventBus
from p2pnode.swarm.placement.service import (
    PlacedHost,
    Placement,
    PlacementChanged,
    PlacementFailed,
)
from p2pnode.wire.uids import Uid, expand

RUN = "open:lm"
LAYERS = expand("blocks.[0:12]", RUN)
LOADING = 30.0  # seconds
SETTINGS = PlacementSettings(period=20.0, back_off=10.0)


class _Served(PlacedHost):
    """Announces what it is told to serve, after the time it takes to load it."""

    def __init__(self, speed):
        self.speed = speed
        self.announcer = None
        self.loaded = []  # every unit, each time it was loaded
        self.failures = 0
        self.states = []  # from an earlier time

    async def kept(self, units):
        await trio.lowlevel.checkpoint()
        return [uid for uid in units if uid in self.states]

    @property
    def uids(self):
        return sorted(self.announcer.uids, key=lambda uid: uid.coordinates)

    @property
    def throughput(self):
        return self.speed / len(self.announcer.uids) if self.announcer.uids else 0.0

    async def place(self, add, remove):
        if self.failures:
            self.failures -= 1
            raise ConfigError("the disk is full")
        self.announcer.set_loading(add)
        await trio.sleep(1.0)  # to be announced
        self.announcer.remove(remove)
        await trio.sleep(LOADING)
        self.loaded += add
        self.announcer.add(add)
        self.announcer.set_loading([])


@dataclass
class _Placed:
    node: object
    served: _Served
    placement: Placement
    changes: list
    failures: list

    @property
    def units(self):
        return [uid.name for uid in self.served.uids]


class _Volunteers:
    def __init__(self, net, nursery):
        self.net = net
        self.nursery = nursery
        self.all = []
        self.first = None

    async def join(
        self, capacity, speed=1.0, *, units=LAYERS, is_pipeline=True, failures=0, states=()
    ):
        served = _Served(speed)
        served.states = list(states)
        served.failures = failures
        known = [self.first] if self.first else []
        node = await self.net.start(known, throughput=lambda: served.throughput)
        self.first = self.first or node
        served.announcer = node.announcer
        events = EventBus()
        placement = Placement(
            node.directory,
            node.peer_id,
            units,
            is_pipeline=is_pipeline,
            room=capacity,
            settings=SETTINGS,
            host=served,
            events=events,
            rng=random.Random(len(self.all)),
        )
        placed = _Placed(node, served, placement, [], [])
        events.on(PlacementChanged, placed.changes.append)
        events.on(PlacementFailed, placed.failures.append)
        await self.nursery.start(placement.run)
        await trio.sleep(1.0)  # to be announced
        self.all.append(placed)
        return placed


@pytest.fixture
def volunteers(swarm_network):
    """Open a network: `async with volunteers() as join`; needs `autojump_clock` beside it."""

    @asynccontextmanager
    async def opened():
        async with swarm_network(delay=lambda *_: 0.02) as net, trio.open_nursery() as nursery:
            yield _Volunteers(net, nursery).join
            nursery.cancel_scope.cancel()

    return opened


async def test_a_lone_volunteer_with_room_for_all_hosts_all(volunteers, autojump_clock):
    async with volunteers() as join:
        placed = await join(capacity=20)
        assert placed.units == [uid.name for uid in LAYERS]
        assert placed.placement.describe() == {
            "units": 12,
            "capacity": 12,
            "moves": 0,
            "slowest": 0.0,
            "why": ["blocks.0-11: all there is"],
        }
        await trio.sleep(200)
        assert placed.served.loaded == LAYERS  # once each
        assert len(placed.changes) == 1


async def test_volunteers_that_come_one_after_the_other_cover_all_layers(
    volunteers, autojump_clock
):
    async with volunteers() as join:
        placed = [await join(capacity=4) for _ in range(3)]
        assert sorted(name for each in placed for name in each.units) == sorted(
            uid.name for uid in LAYERS
        )
        for each in placed:
            first = each.served.uids[0].coordinate
            assert each.units == [f"blocks.{first + n}" for n in range(4)]
            assert each.placement.describe()["why"] == [
                f"blocks.{first}-{first + 3}: nobody hosted it"
            ]
        fourth = await join(capacity=2, speed=2.0)
        first = fourth.served.uids[0].coordinate
        assert fourth.placement.describe()["why"] == [
            f"blocks.{first}-{first + 1}: slowest, 1 host"
        ]
        await trio.sleep(200)
        everybody = [*placed, fourth]
        assert all(len(each.served.loaded) == len(each.units) for each in everybody)


async def test_the_layers_of_a_host_that_died_are_taken_over_by_one_that_can_be_spared(
    volunteers, autojump_clock
):
    async with volunteers() as join:
        placed = [await join(capacity=4) for _ in range(5)]
        by_units = {}
        for each in placed:
            by_units.setdefault(tuple(each.units), []).append(each)
        (alone,) = next(group for group in by_units.values() if len(group) == 1)
        await alone.node.crash()
        others = [each for each in placed if each is not alone]
        await trio.sleep(120)
        hosted = {name for each in others for name in each.units}
        assert hosted == {uid.name for uid in LAYERS}
        assert sum(each.placement.moves for each in others) == 1
        assert not any(each.failures for each in others)


async def test_of_many_that_see_the_same_need_few_move_and_nothing_is_loaded_twice(
    volunteers, autojump_clock
):
    async with volunteers() as join:
        units = expand("blocks.[0:2]", RUN)
        crowd = [await join(capacity=2, speed=4.0, units=units) for _ in range(1)]
        crowd += [await join(capacity=1, units=units) for _ in range(8)]
        on_first = [each for each in crowd if each.units == ["blocks.0"]]
        on_second = [each for each in crowd if each.units == ["blocks.1"]]
        assert len(on_first) == len(on_second) == 4  # the balance of those who came in turn
        for each in on_second[:3]:
            await each.node.crash()
        await trio.sleep(300)
        alive = [each for each in crowd if each not in on_second[:3]]
        assert sum(each.placement.moves for each in alive) == 1
        for each in alive:
            assert len(each.served.loaded) == len(each.units) + each.placement.moves


async def test_experts_of_a_grid_are_chosen_one_by_one(volunteers, autojump_clock):
    async with volunteers() as join:
        grid = expand("ffn.[0:2].[0:3]", RUN)
        first = await join(capacity=3, units=grid, is_pipeline=False)
        second = await join(capacity=3, units=grid, is_pipeline=False)
        assert sorted(first.units + second.units) == sorted(uid.name for uid in grid)
        third = await join(capacity=6, units=grid, is_pipeline=False)
        assert third.placement.describe()["why"] == [
            "ffn.0.0-2: all there is",
            "ffn.1.0-2: all there is",
        ]


async def test_what_others_host_beside_the_runs_units_does_not_count(volunteers, autojump_clock):
    async with volunteers() as join:
        first = await join(capacity=4)
        first.served.announcer.add([Uid(RUN, "blocks.50"), Uid(RUN, "heads.0")])
        await trio.sleep(2.0)
        second = await join(capacity=12)
        assert len(second.units) == 12


async def test_a_volunteer_that_cannot_host_says_so_at_once(volunteers, autojump_clock):
    async with volunteers() as join:
        with pytest.RaisesGroup(ConfigError, flatten_subgroups=True, allow_unwrapped=True):
            await join(capacity=4, failures=1)


async def test_a_move_that_fails_is_told_and_tried_again(volunteers, autojump_clock):
    async with volunteers() as join:
        placed = [await join(capacity=4) for _ in range(4)]
        other = next(each for each in placed if each.units != placed[3].units)
        twins = [each for each in placed if each.units == placed[3].units]
        for each in twins:
            each.served.failures = 1
        await other.node.crash()
        await trio.sleep(200)
        assert any(each.failures for each in twins)
        assert "disk is full" in next(each for each in twins if each.failures).failures[0].reason
        assert sum(each.placement.moves for each in twins) == 1


async def test_a_volunteer_that_comes_back_goes_to_the_layers_it_has_states_of(
    volunteers, autojump_clock
):
    async with volunteers() as join:
        await join(capacity=12, speed=12.0)
        for first in (0, 3, 6, 9):
            back = await join(capacity=3, speed=0.1, states=LAYERS[first : first + 3])
            assert back.units == [uid.name for uid in LAYERS[first : first + 3]]
            assert back.placement.describe()["why"] == [
                f"blocks.{first}-{first + 2}: its state is here, 1 host"
            ]


async def test_the_units_of_a_run_change_while_they_are_hosted(volunteers, autojump_clock):
    async with volunteers() as join:
        await join(capacity=1)
        placed = await join(capacity=6, units=LAYERS[:8])
        assert len(placed.units) == 6
        assert not placed.placement.renew(LAYERS[:8], is_pipeline=True)
        assert placed.placement.renew(LAYERS[:4], is_pipeline=True)  # the others are no more
        await trio.sleep(120)
        assert placed.units == [uid.name for uid in LAYERS[:4]]
        assert placed.placement.describe()["units"] == 4
        assert placed.placement.renew(LAYERS, is_pipeline=True)  # and here are new ones
        await trio.sleep(120)
        assert len(placed.units) == 6
        assert placed.placement.describe()["units"] == 12
        assert not placed.failures
        with pytest.raises(ConfigError, match="have become experts"):
            placed.placement.renew(LAYERS, is_pipeline=False)


async def test_units_that_could_not_be_left_are_left_at_the_next_look(volunteers, autojump_clock):
    async with volunteers() as join:
        await join(capacity=1)
        placed = await join(capacity=12)
        placed.placement.renew(LAYERS[:4], is_pipeline=True)
        placed.served.failures = 1
        await trio.sleep(120)
        assert len(placed.failures) == 1
        assert placed.units == [uid.name for uid in LAYERS[:4]]
