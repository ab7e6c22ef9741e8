"""Daemons that choose what they host, from the owner's word to the experts they serve."""

import contextlib
import functools
import random
from collections import Counter

import pytest
import trio

from p2pnode.clock import wall_time
from p2pnode.config import HostingSettings, Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.node import Node
from p2pnode.daemon.owner.limits import expert_bytes
from p2pnode.daemon.placing import units_of
from p2pnode.daemon.renewing import DescriptionNotTaken, DescriptionTaken
from p2pnode.daemon.runs import RunStore
from p2pnode.errors import CheckpointError, ConfigError
from p2pnode.experts.events import ExpertAdded, ExpertRemoved
from p2pnode.security.tokens import Membership
from p2pnode.swarm.description import Kind, RunDescription
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import VirtualNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.uids import Uid, expand

pytestmark = pytest.mark.real  # experts are computed in threads, which no virtual clock moves

PATIENCE = 100.0  # seconds of real time, as experts are computed in threads


class _Volunteers:
    """Starts daemons on one network; the first one owns the run `lm`."""

    def __init__(self, path, nursery):
        self.path = path
        self.nursery = nursery
        self.network = VirtualNetwork()
        self.first = None
        self.count = 0

    async def start(
        self, *, placement=None, owner=None, again=None, limits=None, hosting=None, **node
    ):
        self.count += 1
        directory = DataDir(self.path / str(again or self.count))
        if self.first is None:
            runs = RunStore(directory)
            runs.create("lm")
            self.invite = functools.partial(
                runs.invite, "lm", scopes=["host"], expires_at=wall_time() + 1000, peer=None
            )
            self.runs = runs
        else:
            node["bootstrap"] = self.first.network.full_addresses()
            node.setdefault("invite", self.invite())
        machine = MemoryTransport(self.network)
        settings = Settings().replace(
            node={"listen": (str(tcp_address(machine.ip, 4001)),), **({"run": "lm"} | node)},
            hosting={"update_period": 0.5, "hidden_dim": 8, "threads": 1, **(hosting or {})},
            placement={"period": 0.3, "back_off": 0.1, **(placement or {})},
            owner=owner or {},
            limits=limits or {},
            dht={"rejoin_interval": 600.0},
        )
        started = Node(directory, settings, transports=[machine], rng=random.Random(self.count))
        started.added, started.removed = [], []
        started.events.on(ExpertAdded, lambda event: started.added.append(event.uid.name))
        started.events.on(ExpertRemoved, lambda event: started.removed.append(event.uid.name))
        scope = started.scope = trio.CancelScope()
        started.ended = trio.Event()

        async def run(*, task_status):
            with scope:
                await started.run(task_status=task_status)
            started.ended.set()

        await self.nursery.start(run)
        self.first = self.first or started
        return started

    async def describe(self, *patterns, **options):
        """Say as the owner what there is, and have it published."""
        self.runs.describe(
            "lm", kind=Kind.LAYERS, patterns=patterns, options=options, now=wall_time()
        )
        assert (await self.ask(1, "run.publish", run="lm"))["stored"] >= 1

    async def ask(self, number, command, **params):
        """Send a command to the daemon that was started as the `number`th."""
        socket = self.path / str(number) / "control.sock"
        return await trio.to_thread.run_sync(
            functools.partial(call_daemon, socket, command, timeout=PATIENCE, **params)
        )


@contextlib.asynccontextmanager
async def volunteers(path):
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            yield _Volunteers(path, nursery)
            nursery.cancel_scope.cancel()


def names(node):
    return [expert["uid"].removeprefix("lm/") for expert in node.hosted()]


def covered(nodes):
    return {name for node in nodes for name in names(node)} == {f"blocks.{n}" for n in range(4)}


async def test_volunteers_host_what_the_owner_says_there_is_without_any_flag(tmp_path):
    async with volunteers(tmp_path) as crowd:
        owner = await crowd.start()
        await crowd.describe("blocks.[0:4]", layer="nop", seed=3)
        auto = {"auto": True, "max_layers": 2}
        placed = [await crowd.start(placement=auto) for _ in range(2)]
        assert sorted(names(placed[0]) + names(placed[1])) == [f"blocks.{n}" for n in range(4)]
        assert {each["layer"] for node in placed for each in node.hosted()} == {"nop"}
        assert owner.hosted() == []
        (shown,) = (await crowd.ask(2, "status"))["placement"]
        assert (shown["run"], shown["units"], shown["capacity"]) == ("lm", 4, 2)
        first = names(placed[0])
        assert shown["why"] == [f"{first[0]}-{first[1][-1]}: nobody hosted it"]


async def test_a_daemon_moves_to_layers_that_have_lost_their_host_and_loads_nothing_twice(tmp_path):
    async with volunteers(tmp_path) as crowd:
        await crowd.start()
        await crowd.describe("blocks.[0:4]", layer="nop")
        two = {"auto": True, "max_layers": 2}
        placed = [await crowd.start(placement=two) for _ in range(3)]
        pairs = [tuple(names(each)) for each in placed]
        (alone,) = (
            each for each, pair in zip(placed, pairs, strict=True) if pairs.count(pair) == 1
        )
        twins = [each for each in placed if each is not alone]
        alone.scope.cancel()
        while not covered(twins):  # noqa: ASYNC110  # real time
            await trio.sleep(0.1)
        assert any(each.removed for each in twins)
        for each in twins:
            # Also where both went, and one came back: what is loaded was not there.
            assert Counter(each.added) - Counter(each.removed) == Counter(names(each))


async def test_a_daemon_that_is_started_again_hosts_what_it_has_checkpoints_of(tmp_path):
    async with volunteers(tmp_path) as crowd:
        await crowd.start()
        await crowd.describe("blocks.[0:4]", layer="nop")
        await crowd.start(placement={"auto": True})  # all of them
        one = {"auto": True, "max_layers": 1, "period": 60.0}
        node = await crowd.start(placement=one)
        node.scope.cancel()
        await node.ended.wait()
        again = await crowd.start(placement=one, again=3)
        assert names(again) == node.added
        (shown,) = (await crowd.ask(3, "status"))["placement"]
        assert shown["why"] == [f"{node.added[0]}: its state is here, 1 host"]


async def test_a_running_daemon_takes_what_the_owner_says_anew_without_a_restart(tmp_path):
    async with volunteers(tmp_path) as crowd:
        await crowd.start()
        await crowd.describe("blocks.[0:4]", layer="nop", learning_rate=0.5)
        node = await crowd.start(placement={"auto": True, "renewal_period": 0.2})
        named = await crowd.start(
            placement={"renewal_period": 0.2},
            experts=("blocks.0",),
            hosting={"learning_rate": 0.0625},
        )
        told = []
        for each in (node, named):
            each.events.on(DescriptionTaken, told.append)
            each.events.on(DescriptionNotTaken, told.append)
        await trio.sleep(1)
        assert told == []

        def rates(each):
            experts = each._hosting.experts
            return {experts.settings(uid).learning_rate for uid in experts.uids}

        assert rates(node) == rates(named) == {0.5}
        await crowd.describe("blocks.[0:6]", layer="nop", learning_rate=0.25)
        while len(names(node)) < 6 or rates(named) != {0.25}:  # noqa: ASYNC110  # real time
            await trio.sleep(0.1)
        assert rates(node) == {0.25}
        assert names(named) == ["blocks.0"]  # as its flags say
        assert Counter(node.added) == Counter(f"blocks.{n}" for n in range(6))
        assert [type(each) for each in told] == [DescriptionTaken] * 2
        told.clear()
        # What the owner says no more is each host's own again.
        await crowd.describe("blocks.[0:6]", layer="nop", learning_rate=None, beta1=0.75)
        while len(told) < 2:  # noqa: ASYNC110  # real time
            await trio.sleep(0.1)
        assert rates(node) == {HostingSettings().learning_rate}
        assert rates(named) == {0.0625}
        await crowd.describe("blocks.[0:6]", layer="nop", learning_rate=0.25, beta1=None)
        while len(told) < 4:  # noqa: ASYNC110  # real time
            await trio.sleep(0.1)
        assert rates(node) == rates(named) == {0.25}
        assert [type(each) for each in told] == [DescriptionTaken] * 4
        await crowd.describe("blocks.[0:6]", layer="ffn", learning_rate=0.125)
        while len(told) < 6:  # noqa: ASYNC110  # real time
            await trio.sleep(0.1)
        assert "another layer" in told[-1].reason
        assert rates(node) == rates(named) == {0.25}


async def test_options_that_need_more_memory_than_allowed_wait_until_there_is_room(tmp_path):
    async with volunteers(tmp_path) as crowd:
        await crowd.start()
        plain = {"layer": "linear", "hidden_dim": 64, "optimizer": "sgd"}
        await crowd.describe("blocks.[0:2]", **plain)
        small = expert_bytes(Uid("open:r", "blocks.0"), HostingSettings(**plain))
        node = await crowd.start(
            placement={"renewal_period": 0.2},
            experts=("blocks.[0:2]",),
            owner={"max_memory": int(2.75 * small)},  # momentum takes half as much again
        )
        told = []
        node.events.on(DescriptionTaken, told.append)
        node.events.on(DescriptionNotTaken, told.append)
        await crowd.describe("blocks.[0:2]", **plain, momentum=0.9)
        while not told:  # noqa: ASYNC110  # real time
            await trio.sleep(0.1)
        await trio.sleep(1)
        experts = node._hosting.experts
        momenta = [experts.settings(uid).momentum for uid in experts.uids]
        assert sorted(momenta) == [0.0, 0.9]
        assert "raise the limit" in told[0].reason
        assert [type(each) for each in told] == [DescriptionNotTaken, DescriptionTaken]
        learning = next(uid for uid in experts.uids if experts.settings(uid).momentum)
        await node._hosting._remove([learning])
        while experts.settings(experts.uids[0]).momentum != 0.9:  # noqa: ASYNC110  # real time
            await trio.sleep(0.1)
        assert [type(each) for each in told[2:]] == [DescriptionTaken]


async def test_where_one_block_does_not_fit_here_none_of_those_asked_for_is_hosted(tmp_path):
    async with volunteers(tmp_path) as crowd:
        await crowd.start()
        await crowd.describe("blocks.0", "wide.0", layer="nop", **{"wide:layer": "theirs:Wide"})
        node = await crowd.start()
        what = {"node": {"run": "lm", "experts": ["blocks.0", "wide.0"]}}
        with pytest.raises(ConfigError, match="--layer wide="):
            await crowd.ask(2, "host", **what)
        assert node.hosted() == []
        await crowd.ask(2, "host", **what, hosting={"layer": "wide=torch.nn:Identity"})
        assert {each["uid"]: each["layer"] for each in node.hosted()} == {
            "lm/blocks.0": "nop",
            "lm/wide.0": "Identity",
        }


async def test_layers_that_are_not_alike_are_placed_by_their_size_and_cost(tmp_path):
    async with volunteers(tmp_path) as crowd:
        await crowd.start()
        # With its optimiser each linear layer takes some 300 KiB, and the wide one some 6 MiB.
        await crowd.describe(
            "blocks.[0:2]", "wide.0", "blocks.[2:4]", hidden_dim=128, layer="linear",
            **{"wide:layer": "ffn"},
        )  # fmt: skip
        small = await crowd.start(placement={"auto": True}, owner={"max_memory": 2**20})
        assert names(small) in (["blocks.0", "blocks.1"], ["blocks.2", "blocks.3"])
        large = await crowd.start(placement={"auto": True}, owner={"max_memory": 2**23})
        layers = {each["uid"].removeprefix("lm/"): each["layer"] for each in large.hosted()}
        assert layers["wide.0"] == "ffn"
        assert {layer for name, layer in layers.items() if name != "wide.0"} == {"linear"}
        (shown,) = (await crowd.ask(3, "status"))["placement"]
        assert (shown["units"], shown["capacity"]) == (5, len(layers))
        hosting = large._hosting
        await trio.sleep(0.5)  # both kinds have been measured by then

        def cost(name):
            uid = expand(name, large.membership_of("lm").run_id)[0]
            return hosting.cost(uid, hosting.experts.weights(uid))

        seconds = [cost(name) for name in layers]
        assert hosting.throughput == pytest.approx(1 / sum(seconds))


async def test_a_daemon_tells_no_speed_that_its_line_does_not_carry(tmp_path):
    async with volunteers(tmp_path) as crowd:
        await crowd.start()
        await crowd.describe("ffn.[0:2]", layer="nop")
        node = await crowd.start(
            placement={"auto": True}, limits={"max_upload": 64_000, "max_download": 1_000_000}
        )
        hosting = node._hosting
        while not hosting.throughput:  # noqa: ASYNC110  # real time
            await trio.sleep(0.05)
        assert hosting.throughput == pytest.approx(64_000 / (8 * 4))  # rows of 8 float32


async def test_experts_are_chosen_in_a_running_daemon_too_and_its_speed_is_told(tmp_path):
    async with volunteers(tmp_path) as crowd:
        node = await crowd.start()
        what = {"node": {"run": "lm", "experts": ["ffn.[0:2].[0:2]"]}, "placement": {"auto": True}}
        added = await crowd.ask(1, "host", **what)
        assert [each["uid"] for each in added] == [
            f"lm/ffn.{row}.{column}" for row in range(2) for column in range(2)
        ]
        with pytest.raises(ConfigError, match="chooses already"):
            await crowd.ask(1, "host", **what)
        watcher = await crowd.start()
        uid = expand("ffn.0.0", node.membership_of("lm").run_id)[0]
        while True:
            hosts = await watcher.network.directory.hosts(uid)
            if hosts and hosts[0].throughput > 0:
                break
            await trio.sleep(0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"placement": {"auto": True}}, "has not said yet what it consists of"),
        (
            {"placement": {"auto": True}, "run": "open-one", "invite": ""},
            "the open run open-one has no owner",
        ),
        (
            {"placement": {"auto": True}, "layers": ["blocks.0"], "experts": ["ffn.0"]},
            "and not both",
        ),
        ({"placement": {"auto": True}, "run": "", "invite": ""}, "say in which run"),
        (
            {
                "placement": {"auto": True},
                "layers": ["blocks.0"],
                "owner": {"max_memory": 1},
            },
            "no memory for even one",
        ),
    ],
)
async def test_a_daemon_that_cannot_choose_says_what_to_do(tmp_path, settings, message):
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigError, match=message), flatten_subgroups=True, allow_unwrapped=True
    ):
        async with volunteers(tmp_path) as crowd:
            await crowd.start()
            await crowd.start(**settings)


async def test_what_could_not_be_saved_before_a_move_is_served_on(tmp_path, monkeypatch):
    async def refuse(_uids):
        raise CheckpointError("the disk is full")

    async with volunteers(tmp_path) as crowd:
        auto = {"auto": True, "max_layers": 1, "period": 1000.0}
        node = await crowd.start(placement=auto, layers=["blocks.[0:2]"])
        (held,) = names(node)
        membership = node.membership_of("lm")
        here, there = expand("blocks.[0:2]", membership.run_id)
        if held != here.name:
            here, there = there, here
        hosting = node._hosting
        monkeypatch.setattr(hosting._experts, "remove", refuse)
        with pytest.raises(CheckpointError):
            await hosting.exchange(
                membership, node.settings.hosting, None, add=[there], remove=[here]
            )
        assert names(node) == [held]
        watcher = await crowd.start()
        while not await watcher.network.directory.hosts(here):  # noqa: ASYNC110  # real time
            await trio.sleep(0.1)
        assert not await watcher.network.directory.hosts(there)


async def test_a_daemon_that_stops_moves_no_more(tmp_path):
    async with volunteers(tmp_path) as crowd:
        node = await crowd.start(placement={"auto": True}, layers=["blocks.[0:2]"])
        assert names(node) == ["blocks.0", "blocks.1"]
        await crowd.ask(1, "stop")
        assert node.added == ["blocks.0", "blocks.1"]


def test_flags_count_more_than_what_the_owner_says():
    membership = Membership.open("lm")
    said = RunDescription(
        run_id=membership.run_id, sequence=0, kind=Kind.LAYERS, patterns=("blocks.[0:3]",)
    )
    flags = expand("lm/ffn.[0:2]")
    assert units_of(membership, said, experts=flags, layers=[]) == (Kind.EXPERTS, flags)
    assert units_of(membership, said, experts=[], layers=[]) == (
        Kind.LAYERS,
        expand("lm/blocks.[0:3]"),
    )
