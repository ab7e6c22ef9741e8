"""Replicas, hand-over and return, with real experts, DHT and tensor calls on a light world."""

import contextlib
import random

import pytest
import torch
import trio

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import Settings
from p2pnode.errors import CheckpointError, StorageError, TransferError, UnknownExpertError
from p2pnode.experts.events import VersionSetAside
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.protocols.kad.service import KadDht
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.swarm.announce import Announcer
from p2pnode.swarm.index import IndexValidator
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.swarm.places import NAMESPACE
from p2pnode.swarm.weights.following import ReplicaFailed, ReplicaTookOver
from p2pnode.swarm.weights.gate import Gate
from p2pnode.swarm.weights.handover import CatchUpFailed, ExpertHandedOver, HandoverFailed
from p2pnode.swarm.weights.local import LocalExperts
from p2pnode.swarm.weights.replication import Replication
from p2pnode.swarm.weights.standby import distance
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import Drawn, VirtualNetwork
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.sources import CallPolicy, ExpertCall
from p2pnode.wire.uids import Uid

RUN = Membership.open("test")
UID = Uid(RUN.run_id, "ffn.0")
SETTINGS = Settings().replace(
    hosting={
        "hidden_dim": 8, "update_period": 1.0, "learning_rate": 1e-2, "threads": 1,
        "standby_interval": 2.0, "standby_grace": 1.0,
    },
    swarm={"refresh_interval": 0.5},
    weights={"chunk_bytes": 1024, "snapshot_interval": 0.1},
)  # fmt: skip


def no_members(_token, _run_id, _peer_id, _now):
    raise AssertionError("the run is open")


class Station:
    """A daemon's hosting on a light host."""

    def __init__(self, host, tmp_path, settings, rng):
        self.host = host
        self.settings = settings
        self.scope = trio.CancelScope()
        index = IndexValidator(no_members)
        self.dht = KadDht(host, settings.dht, rng, {NAMESPACE: index})
        self.directory = ExpertDirectory(host, self.dht, index, settings.swarm)
        self.announcer = Announcer(host, self.dht, host.key, settings.hosting, rng=rng)
        self.experts = ExpertHost(
            settings.hosting, tmp_path / "experts", host.events, compute=compute_inline,
            disk=compute_inline,
        )  # fmt: skip
        self.gate = Gate(self.experts)
        authority = Authority({"test": RUN}, 16)
        tensors = TensorServer(host, settings.rpc, self.gate, authority)
        self.access = Access(host, {"test": RUN})
        self.replication = Replication(
            host,
            directory=self.directory,
            announcer=self.announcer,
            experts=self.experts,
            gate=self.gate,
            authority=authority,
            budget=tensors.budget,
            access=self.access,
            states=tmp_path / "weights",
            settings=settings,
            rng=rng,
            disk=compute_inline,
        )

    @property
    def peer_id(self):
        return self.host.peer_id

    @property
    def steps(self):
        return self.experts.steps(UID)

    @property
    def is_serving(self):
        return self.gate.is_open(UID) and UID in self.announcer.uids

    async def run(self, bootstrap, *, task_status):
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.dht.run)
                await self.dht.bootstrap(bootstrap)
                await nursery.start(self.experts.run)
                await nursery.start(self.announcer.run)
                await nursery.start(self.replication.run)
                task_status.started()

    async def serve(self):
        self.gate.close([UID])
        await self.experts.add([UID])
        await self.replication.serve([UID])
        await self.announcer.announce()

    async def stand_by(self):
        self.gate.close([UID])
        (status,) = await self.experts.add([UID])
        self.replication.stand_by(UID, has_state=status.restored)

    def crash(self):
        self.host.world.kill(self.host)
        self.scope.cancel()

    async def state(self):
        return (await self.experts.snapshot(UID)).state


def equal(one, other):
    return one.steps == other.steps and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


class Net:
    def __init__(self, world, nursery, tmp_path):
        self.world = world
        self.nursery = nursery
        self.tmp_path = tmp_path
        self.stations = []

    async def add(self, name=None, **hosting):
        settings = SETTINGS.replace(hosting=hosting)
        number = len(self.stations) + 1
        station = Station(
            await self.world.add_host(),
            self.tmp_path / (name or str(number)),
            settings,
            random.Random(number),
        )
        await self.nursery.start(station.run, self.bootstrap())
        self.stations.append(station)
        return station

    def bootstrap(self):
        return [(each.peer_id, each.host.addresses[0]) for each in self.stations[:1]]

    async def trainer(self):
        """Somebody who steps the expert, wherever it is served."""
        host = await self.world.add_host()
        rng = random.Random(0)
        index = IndexValidator(no_members)
        settings = SETTINGS.replace(dht={"mode": "client"})
        dht = KadDht(host, settings.dht, rng, {NAMESPACE: index})
        await self.nursery.start(dht.run)
        await dht.bootstrap(self.bootstrap())
        directory = ExpertDirectory(host, dht, index, settings.swarm)
        return Trainer(host, ExpertCaller(host, directory, RUN, settings=settings, rng=rng))


class Trainer:
    def __init__(self, host, caller):
        self.host = host
        self.caller = caller
        self.client = caller.client.client
        self.rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
        self.applied = 0
        self.by = []

    async def step(self, timeout=10.0):
        call = ExpertCall(
            name="ffn.0", inputs=(self.rows,), gradients=(self.rows,), answered_by=None
        )
        policy = CallPolicy(
            timeout=timeout, k_min=1, timeout_after_k_min=1.0, detect_anomalies=False
        )
        answer = await self.caller.backward(call, policy)
        self.applied += 1
        self.by.append(answer.by)


@pytest.fixture
def net(tmp_path):
    @contextlib.asynccontextmanager
    async def opened(delay=(0.001, 0.003)):
        bind_wall_time_to_trio(1.8e9)
        rng = random.Random(0)
        latency = Drawn(lambda _source, _target: rng.uniform(*delay))
        async with (
            light_hosts(VirtualNetwork(latency=latency)) as world,
            trio.open_nursery() as nursery,
        ):
            yield Net(world, nursery, tmp_path)
            nursery.cancel_scope.cancel()

    return opened


async def until(condition, within=60.0):
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110  # the virtual clock jumps over the sleep
            await trio.sleep(0.05)


async def test_a_replica_follows_refuses_calls_and_takes_over_when_its_host_is_killed(
    net, autojump_clock
):
    async with net() as here:
        await here.add()  # keeps the DHT alive
        primary, replica = await here.add(), await here.add()
        await primary.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        for _ in range(7):
            await trainer.step()
        await until(lambda: replica.steps == 7, within=4)
        assert equal(await replica.state(), await primary.state())
        assert not replica.is_serving
        with pytest.raises(UnknownExpertError):
            await trainer.client.forward(replica.peer_id, UID, [trainer.rows])
        assert set(trainer.by) == {primary.peer_id}
        with replica.host.events.subscribe(ReplicaTookOver) as took_over:
            killed_at = trio.current_time()
            primary.crash()
            event = await took_over.get()
        assert (event.steps, event.hosts) == (7, (primary.peer_id,))
        # Its announcement lives for three seconds; then comes the grace.
        assert 1.0 <= trio.current_time() - killed_at <= 3.0 + 1.0 + 2 * 1.0
        await until(lambda: replica.is_serving)
        await trainer.step()
        assert trainer.by[-1] == replica.peer_id
        assert replica.steps == 8


async def test_a_host_that_is_alive_but_not_announced_is_not_replaced(net, autojump_clock):
    async with net() as here:
        await here.add()
        primary, replica = await here.add(), await here.add()
        await primary.serve()
        await replica.stand_by()
        await trio.sleep(5)
        primary.announcer.remove([UID])
        await trio.sleep(30)
        assert not replica.is_serving
        primary.crash()
        await until(lambda: replica.is_serving, within=15)


async def test_of_several_replicas_the_closest_one_takes_over_and_the_others_follow_it(
    net, autojump_clock
):
    async with net() as here:
        await here.add()
        primary = await here.add()
        await primary.serve()
        replicas = [await here.add() for _ in range(3)]
        for each in replicas:
            await each.stand_by()
        trainer = await here.trainer()
        await trainer.step()
        await until(lambda: all(each.steps == 1 for each in replicas), within=10)
        await trio.sleep(3)  # they have heard of each other
        primary.crash()
        first, *others = sorted(replicas, key=lambda each: distance(each.peer_id, UID))
        await until(lambda: any(each.is_serving for each in replicas))
        await trio.sleep(20)
        assert [each.is_serving for each in (first, *others)] == [True, False, False]
        await trainer.step()
        await until(lambda: all(each.steps == 2 for each in replicas), within=10)
        first.crash()
        await until(lambda: others[0].is_serving)
        await trio.sleep(20)
        assert not others[1].is_serving


async def test_a_replica_that_never_had_a_state_does_not_serve_fresh_weights(net, autojump_clock):
    async with net() as here:
        await here.add()
        replica = await here.add()
        await replica.stand_by()
        await trio.sleep(60)
        assert not replica.is_serving


async def test_a_call_that_the_state_contains_is_not_applied_again_after_the_take_over(
    net, autojump_clock
):
    async with net() as here:
        await here.add()
        primary, replica = await here.add(), await here.add()
        await primary.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        call_id = bytes(16)
        rows = [trainer.rows]
        await trainer.caller.info("ffn.0", 10.0)
        await trainer.client.backward(primary.peer_id, UID, rows, rows, call_id=call_id)
        await until(lambda: replica.steps == 1, within=4)
        primary.crash()
        await until(lambda: replica.is_serving)
        await trainer.caller.info("ffn.0", 10.0)
        await trainer.client.backward(replica.peer_id, UID, rows, rows, call_id=call_id)
        assert replica.steps == 1


async def test_a_host_that_comes_back_takes_its_expert_from_the_replica_with_all_steps(
    net, autojump_clock
):
    async with net() as here:
        await here.add()
        primary, replica = await here.add("primary"), await here.add()
        await primary.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        await trainer.step()
        await until(lambda: replica.steps == 1, within=4)
        primary.crash()
        await until(lambda: replica.is_serving)
        for _ in range(3):
            await trainer.step()
        again = await here.add("primary")
        with again.host.events.subscribe(CatchUpFailed) as failures:
            await again.serve()
            assert (again.steps, again.is_serving) == (4, True)
            assert equal(await again.state(), await replica.state())
            await until(lambda: not replica.is_serving, within=0.1)
            await trainer.step()
            assert trainer.by[-1] == again.peer_id
            assert again.steps == 5
            await until(lambda: replica.steps == 5, within=5)  # it follows again
            with trio.move_on_after(0):
                pytest.fail(str(await failures.get()))


async def test_a_second_host_starts_with_what_the_first_one_has_learnt(net, autojump_clock):
    async with net() as here:
        await here.add()
        first, second = await here.add(), await here.add()
        await first.serve()
        trainer = await here.trainer()
        for _ in range(3):
            await trainer.step()
        await second.serve()
        assert (first.is_serving, second.is_serving) == (True, True)
        assert equal(await second.state(), await first.state())


async def test_a_host_whose_disk_is_full_serves_no_fresh_weights_until_there_is_room(
    net, monkeypatch, autojump_clock
):
    async with net() as here:
        await here.add()
        first, second = await here.add(), await here.add()
        await first.serve()
        trainer = await here.trainer()
        await trainer.step()
        adopt = LocalExperts.adopt

        async def fail(_self, _uid, *_state, **_options):
            await trio.lowlevel.checkpoint()
            raise StorageError("no space left")

        monkeypatch.setattr(LocalExperts, "adopt", fail)
        with second.host.events.subscribe(CatchUpFailed) as failures:
            await second.serve()
            assert "no space left" in (await failures.get()).reason
        await trio.sleep(60)
        assert (second.steps, second.is_serving) == (0, False)
        monkeypatch.setattr(LocalExperts, "adopt", adopt)
        await until(lambda: second.is_serving, within=20)
        assert first.is_serving
        assert equal(await second.state(), await first.state())
        assert not second.replication._following.stands_in(UID)  # it is a host like others


async def test_a_peer_that_boasts_keeps_no_host_from_the_state_of_another_one(
    net, monkeypatch, autojump_clock
):
    async with net() as here:
        await here.add()
        first, boaster, second = [await here.add() for _ in range(3)]
        await first.serve()
        trainer = await here.trainer()
        await trainer.step()
        await boaster.serve()
        monkeypatch.setattr(boaster.replication.local.experts, "steps", lambda _uid: 10**6)
        adopt = LocalExperts.adopt

        async def distrust(self, uid, name, steps, holders, **options):
            if holders == [boaster.peer_id]:
                raise TransferError("what it gave is not what it said")
            return await adopt(self, uid, name, steps, holders, **options)

        monkeypatch.setattr(LocalExperts, "adopt", distrust)
        await second.serve()
        assert (second.steps, second.is_serving) == (1, True)
        assert equal(await second.state(), await first.state())


@pytest.mark.parametrize("taker", ["replica", "host"])
async def test_a_host_that_leaves_hands_over_and_no_step_is_lost(taker, net, autojump_clock):
    async with net() as here:
        await here.add()
        leaver, other = await here.add(), await here.add()
        await leaver.serve()
        await (other.stand_by() if taker == "replica" else other.serve())
        trainer = await here.trainer()
        if taker == "host":
            trainer.caller.book.candidates = only(leaver, trainer.caller.book.candidates)
        await trainer.caller.info("ffn.0", 10.0)
        done = trio.Event()

        async def train():
            while not done.is_set():
                await trainer.step()
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(train)
            await trio.sleep(3)
            with leaver.host.events.subscribe(ExpertHandedOver) as handed_over:
                assert await leaver.replication.leave([UID]) == [UID]
                event = await handed_over.get()
            trainer.caller.book.__dict__.pop("candidates", None)
            assert not leaver.is_serving
            assert other.is_serving
            given = event.steps
            assert given == leaver.steps > 0
            leaver.crash()
            await trio.sleep(2)
            done.set()
        assert trainer.by[-1] == other.peer_id
        assert other.steps == trainer.applied > given


async def never(_uid, _checkpoint, **_options):
    await trio.sleep_forever()


def only(station, candidates):
    """Let a trainer know no other host."""

    async def found(uid):
        return [each for each in await candidates(uid) if each.peer_id == station.peer_id]

    return found


async def test_an_expert_that_nobody_takes_is_withdrawn_and_goes_on_until_its_host_ends(
    net, autojump_clock
):
    async with net() as here:
        await here.add()
        leaver = await here.add()
        await leaver.serve()
        trainer = await here.trainer()
        await trainer.step()
        assert await leaver.replication.leave([UID]) == []
        assert UID not in leaver.announcer.uids
        await trainer.step()
        assert leaver.steps == 2


async def test_a_hand_over_that_fails_leaves_the_expert_where_it_was(
    net, autojump_clock, monkeypatch
):
    async with net() as here:
        await here.add()
        leaver, replica = await here.add(), await here.add()
        await leaver.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        await trainer.step()
        await until(lambda: replica.steps == 1, within=4)
        await trainer.step()

        async def does_not_fit(_uid, _checkpoint, **_options):
            raise CheckpointError("it does not fit")

        before = await replica.state()
        monkeypatch.setattr(replica.experts, "adopt", does_not_fit)
        with leaver.host.events.subscribe(HandoverFailed) as failures:
            assert await leaver.replication.leave([UID]) == []
            assert "it does not fit" in (await failures.get()).reason
        assert equal(await replica.state(), before)
        assert not replica.is_serving
        await trainer.step()
        assert leaver.steps == 3


@pytest.mark.parametrize("codec", ["none", "bfloat16"])
async def test_who_joins_late_has_the_current_weights_before_it_answers_its_first_call(
    net, autojump_clock, codec
):
    async with net() as here:
        await here.add(weights_codec=codec)
        host = await here.add(weights_codec=codec)
        await host.serve()
        trainer = await here.trainer()
        for _ in range(5):
            await trainer.step()
        joiner = await here.add(weights_codec=codec)
        trainer.host.add_addresses(joiner.peer_id, joiner.host.addresses, 1e6)
        answers = []

        async def call_at_once():
            while not answers:
                with contextlib.suppress(UnknownExpertError):
                    answers.append(
                        await trainer.client.forward(joiner.peer_id, UID, [trainer.rows])
                    )
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_at_once)
            await trio.sleep(0.01)
            await joiner.serve()
        ((first,),) = answers
        (expected,) = await trainer.client.forward(host.peer_id, UID, [trainer.rows])
        mine, theirs = await joiner.state(), await host.state()
        assert mine.steps == theirs.steps == 5
        if codec == "none":
            assert torch.equal(first, expected)
            assert equal(mine, theirs)
            return
        torch.testing.assert_close(first, expected, rtol=0.02, atol=0.02)
        assert not torch.equal(first, expected)
        for name, each in theirs.tensors.items():
            if name.startswith("optimizer."):
                assert torch.equal(mine.tensors[name], each), name
            torch.testing.assert_close(mine.tensors[name], each, rtol=2**-8, atol=0)


async def test_calls_wait_while_an_expert_changes_hands(net, autojump_clock, monkeypatch):
    async with net() as here:
        await here.add()
        leaver, replica = await here.add(), await here.add()
        await leaver.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        await trainer.step()
        await until(lambda: replica.steps == 1, within=4)
        await trainer.step()
        adopt = replica.experts.adopt

        async def slowly(uid, checkpoint, **options):
            await trio.sleep(3)
            await adopt(uid, checkpoint, **options)

        monkeypatch.setattr(replica.experts, "adopt", slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaver.replication.leave, [UID])
            await trio.sleep(1)
            began = trio.current_time()
            await trainer.step()
            assert trio.current_time() - began > 1.5
        assert trainer.by[-1] == replica.peer_id
        assert (leaver.steps, replica.steps) == (2, 3)


async def test_a_replica_that_cannot_be_brought_up_to_date_says_so_and_tries_again(
    net, autojump_clock
):
    async with net() as here:
        await here.add()
        primary = await here.add()
        await primary.serve()
        wider = await here.add(hidden_dim=16)
        with wider.host.events.subscribe(ReplicaFailed) as failures:
            await wider.stand_by()
            for _ in range(2):
                assert "other names or shapes" in (await failures.get()).reason
        primary.crash()
        await trio.sleep(30)
        assert not wider.is_serving


async def test_a_stranger_cannot_push_a_state_to_a_replica(net, autojump_clock):
    async with net() as here:
        await here.add()
        primary, replica, stranger = [await here.add() for _ in range(3)]
        await primary.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        await trainer.step()
        await until(lambda: replica.steps == 1, within=4)
        await stranger.experts.add([UID])
        with stranger.host.events.subscribe(HandoverFailed) as failures:
            followers = stranger.replication._server.followers
            followers.receive(UID, replica.peer_id, 10.0, trio.current_time())
            assert await stranger.replication.leave([UID]) == []
            reasons = [(await failures.get()).reason for _ in range(2)]
        assert any("not known to serve" in reason for reason in reasons)
        assert replica.steps == 1
        assert not replica.is_serving


async def test_a_paused_replica_neither_takes_over_nor_is_handed_to(net, autojump_clock):
    async with net() as here:
        await here.add()
        primary, replica = await here.add(), await here.add()
        await primary.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        await trainer.step()
        await until(lambda: replica.steps == 1, within=4)
        replica.announcer.suspend()
        with primary.host.events.subscribe(HandoverFailed) as failures:
            assert await primary.replication.leave([UID]) == []
            assert "is paused" in (await failures.get()).reason
        primary.crash()
        await trio.sleep(30)
        assert not replica.is_serving
        replica.announcer.go_on()
        await until(lambda: replica.is_serving, within=5)


async def test_a_host_that_was_away_for_a_moment_takes_its_expert_back(net, autojump_clock):
    async with net() as here:
        await here.add()
        primary, replica = await here.add(), await here.add()
        await primary.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        await trainer.step()
        await primary.directory.hosts(UID)  # what it knows now will be old
        assert await primary.replication.leave([UID]) == [UID]
        await until(lambda: trainer.by[-1] == replica.peer_id or replica.is_serving)
        await trainer.step()
        await primary.replication.serve([UID])
        await until(lambda: not replica.is_serving, within=1)
        assert (primary.steps, primary.is_serving) == (2, True)


async def test_who_takes_an_expert_and_dies_leaves_it_where_it_was(
    net, autojump_clock, monkeypatch
):
    async with net() as here:
        await here.add()
        leaver, replica = await here.add(), await here.add()
        await leaver.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        await trainer.step()
        await until(lambda: replica.steps == 1, within=4)
        await trainer.step()
        monkeypatch.setattr(replica.experts, "adopt", never)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaver.replication.leave, [UID])
            await trio.sleep(1)
            replica.crash()
        await trainer.step()
        assert trainer.by[-1] == leaver.peer_id
        assert leaver.steps == 3


async def test_a_host_that_has_to_end_in_the_middle_takes_no_step_after_its_last_version(
    net, autojump_clock, monkeypatch
):
    async with net() as here:
        await here.add()
        leaver, replica = await here.add(), await here.add()
        await leaver.serve()
        await replica.stand_by()
        trainer = await here.trainer()
        await trainer.step()
        await until(lambda: replica.steps == 1, within=4)
        await trainer.step()
        monkeypatch.setattr(replica.experts, "adopt", never)
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1):
                await leaver.replication.leave([UID])
            with pytest.raises(UnknownExpertError):
                await trainer.client.forward(leaver.peer_id, UID, [trainer.rows])
            nursery.cancel_scope.cancel()
        assert leaver.steps == 2


async def test_a_host_that_takes_a_state_over_sets_its_own_aside(net, autojump_clock):
    async with net() as here:
        await here.add()
        ours, other = await here.add(), await here.add()
        for each in (ours, other):  # both serve it from the same start, and learn apart
            await each.serve()
        trainer = await here.trainer()
        rows = [trainer.rows]
        await trainer.caller.info("ffn.0", 10.0)
        await trainer.client.backward(ours.peer_id, UID, rows, rows, call_id=bytes(16))
        for number in range(1, 4):
            await trainer.client.backward(
                other.peer_id, UID, rows, rows, call_id=number.to_bytes(16, "big")
            )
        with ours.host.events.subscribe(VersionSetAside) as set_aside:
            assert await other.replication.leave([UID]) == [UID]
            event = await set_aside.get()
        assert (event.steps, ours.steps) == (1, 3)
        assert event.path.parent == here.tmp_path / "2" / "experts" / "open@test" / "ffn.0"


async def test_a_replica_that_comes_back_sets_nothing_aside_that_it_has_followed(
    net, autojump_clock
):
    async with net() as here:
        await here.add()
        primary, replica = await here.add(), await here.add()
        await primary.serve()
        await replica.stand_by()
        told = []
        replica.host.events.on(VersionSetAside, told.append)
        trainer = await here.trainer()
        for _ in range(3):
            await trainer.step()
            await until(lambda: replica.steps == trainer.applied, within=4)
        assert await primary.replication.leave([UID]) == [UID]
        await until(lambda: replica.is_serving)
        assert told == []
