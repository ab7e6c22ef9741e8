"""Descriptions of runs, on their way from the owner to a volunteer that knows the run's id only."""

import random

import pytest
import trio

from p2pnode.clock import bind_wall_time_to_trio, wall_time
from p2pnode.config import DhtSettings
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.descriptions import Descriptions
from p2pnode.daemon.runs import RunStore
from p2pnode.protocols.kad.service import KadDht
from p2pnode.security.tokens import Membership
from p2pnode.swarm.description import NAMESPACE, DescriptionValidator, Kind
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import VirtualNetwork


class _Members:
    """Nodes with a DHT and a data directory each."""

    def __init__(self, world, nursery, path):
        self.world = world
        self.nursery = nursery
        self.path = path
        self.known = []

    async def start(self, name):
        store = RunStore(DataDir(self.path / name))
        key = DataDir(self.path / name).load_or_create_identity()
        host = await self.world.add_host(key)
        validators = {NAMESPACE: DescriptionValidator()}
        dht = KadDht(host, DhtSettings(mode="server"), random.Random(0), validators)
        await self.nursery.start(dht.run)
        if self.known:
            await dht.bootstrap(self.known)
        self.known.append((host.peer_id, host.addresses[0]))
        descriptions = Descriptions(store, dht)
        scope = trio.CancelScope()

        async def run(task_status):
            with scope:
                await descriptions.run(task_status=task_status)

        await self.nursery.start(run)
        return store, descriptions, scope


@pytest.fixture
def members(tmp_path):
    """Start nodes: `async for start in members`; needs `autojump_clock` beside it."""

    async def opened(story):
        bind_wall_time_to_trio(1_700_000_000.0)
        async with light_hosts(VirtualNetwork()) as world, trio.open_nursery() as nursery:
            await story(_Members(world, nursery, tmp_path).start)
            nursery.cancel_scope.cancel()

    return opened


def _invite(store, name="lm"):
    return store.invite(name, scopes=["host"], expires_at=wall_time() + 1e6, peer=None)


def _describe(store, count):
    return store.describe("lm", kind=Kind.LAYERS, patterns=[f"blocks.[0:{count}]"], now=wall_time())


async def test_a_volunteer_finds_what_the_owner_said_and_keeps_it(members, autojump_clock):
    async def story(start):
        owners, owner, _ = await start("owner")
        owners.create("lm")
        first = _describe(owners, 4)
        assert await owner.methods()["run.publish"]({"run": "lm"}) == {"stored": 1}
        ours, volunteer, _ = await start("volunteer")
        membership = ours.accept(_invite(owners))
        assert await volunteer.find(membership) == first
        assert ours.description("lm") == first
        await trio.sleep(1)
        second = _describe(owners, 6)
        await owner.methods()["run.publish"]({"run": "lm"})
        await trio.sleep(200)  # what is known of the key is forgotten
        assert await volunteer.find(membership) == second

    await members(story)


async def test_what_was_described_without_a_daemon_is_published_when_it_starts(
    members, autojump_clock, tmp_path
):
    async def story(start):
        offline = RunStore(DataDir(tmp_path / "owner"))
        offline.create("lm")
        described = _describe(offline, 4)
        owners, _, _ = await start("owner")
        await trio.sleep(100)
        ours, volunteer, _ = await start("volunteer")
        assert await volunteer.find(ours.accept(_invite(owners))) == described

    await members(story)


async def test_a_run_stays_described_after_its_owner_has_left(members, autojump_clock):
    async def story(start):
        owners, owner, scope = await start("owner")
        owners.create("lm")
        described = _describe(owners, 4)
        await owner.methods()["run.publish"]({"run": "lm"})
        ours, volunteer, _ = await start("volunteer")
        assert await volunteer.find(ours.accept(_invite(owners))) == described
        await trio.sleep(1)  # the volunteer publishes it, too
        scope.cancel()
        owner._dht.unpublish(b"/p2pnode-run/" + described.run_id.encode())
        await trio.sleep(60 * 3600)
        theirs, newcomer, _ = await start("newcomer")
        assert await newcomer.find(theirs.accept(_invite(owners))) == described

    await members(story)


async def test_nothing_is_known_of_open_runs_and_of_those_nobody_described(members, autojump_clock):
    async def story(start):
        store, descriptions, _ = await start("alone")
        assert await descriptions.find(Membership.open("lm")) is None
        assert await descriptions.find(store.create("lm")) is None
        assert await descriptions.methods()["run.publish"]({"run": "lm"}) == {"stored": 0}

    await members(story)
