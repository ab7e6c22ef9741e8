"""Nodes of a simulation live, join, die, come back and lie as the scenario says."""

import gc
import random
import weakref
from functools import partial

import numpy as np
import pytest
import trio

from p2pnode.errors import P2PNodeError
from p2pnode.protocols.kad.messages import Message, MessageType, Record
from p2pnode.testing.network import Nat
from p2pnode.wire.uids import Uid
from simulations.churn import Churn
from simulations.conditions import CHURN, LIARS, NETWORK, draw_machine
from simulations.determinism import seeded_scheduler, virtual_clock
from simulations.errors import SimulationFailedError
from simulations.event_log import EventLog
from simulations.experts import Experts
from simulations.hops import Hops
from simulations.liars import KINDS, Liar
from simulations.probes import Probes, percentile
from simulations.simulation import Simulation
from simulations.truth import begins_with, closest_to
from simulations.values import Values
from simulations.world import BOOTSTRAP_PEERS, open_world


def defaults(*groups):
    return {name: each.default for group in groups for name, each in group.items()}


@pytest.fixture
def clocked():
    """A function that runs a story in a world, by a virtual clock, and returns what it returns."""
    return simulate


def simulate(story, fidelity="light", **parameters):
    chosen = defaults(NETWORK, CHURN, LIARS) | {"network.latency": "fixed", **parameters}

    async def tell():
        async with trio.open_nursery() as nursery:
            sim = Simulation(
                parameters=chosen,
                seed=1,
                fidelity=fidelity,
                nursery=nursery,
                log=EventLog(),
                on_phase=lambda _phase: None,
            )
            async with open_world(sim, trace=False):
                result = await story(sim)
                nursery.cancel_scope.cancel()
        return result

    with seeded_scheduler(1):
        return trio.run(tell, clock=virtual_clock())


both = pytest.mark.parametrize("fidelity", ["light", "full"])


@both
def test_nodes_join_one_dht_through_the_first_ones(fidelity, clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(8, over=2.0)
        await trio.sleep(10)
        assert sim.world.bootstrap == nodes[:BOOTSTRAP_PEERS]
        assert sim.world.joined == nodes
        return [len(each.dht.peers) for each in nodes]

    assert clocked(story, fidelity) == [7] * 8


@both
def test_a_crash_tells_nobody_and_an_orderly_leave_everybody(fidelity, clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(8)
        await trio.sleep(10)
        sim.world.crash(nodes[6])
        await sim.world.leave(nodes[7])
        await trio.sleep(0.5)
        known = [
            [each.host.connection_to(nodes[number].peer_id) is not None for each in nodes[:6]]
            for number in (6, 7)
        ]
        assert [each.is_up for each in nodes] == [True] * 6 + [False] * 2
        assert sim.log.count["node-crashed"] == sim.log.count["node-left"] == 1
        sim.world.crash(nodes[6])  # it is down already
        await sim.world.leave(nodes[6])
        assert sim.world.nodes_up == 6
        return known

    crashed, left = clocked(story, fidelity)
    assert any(crashed)
    assert not any(left)


def test_a_node_comes_back_with_its_key_its_name_and_its_machine(clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(6)
        sim.world.crash(nodes[5])
        await trio.sleep(30)
        again = await sim.world.add_node(again=nodes[5])
        await trio.sleep(10)
        assert again.joined_at is not None
        assert (again.peer_id, again.name) == (nodes[5].peer_id, nodes[5].name)
        assert again.machine is nodes[5].machine
        return len(again.dht.peers)

    assert clocked(story) == 5


def test_a_node_whose_bootstrap_peers_are_all_down_fails_the_simulation(clocked):
    async def story(sim):
        for node in await sim.world.add_nodes(2):
            await sim.world.leave(node)
        with pytest.raises(SimulationFailedError, match="are the bootstrap peers up"):
            await sim.world.add_node()

    clocked(story)


def test_an_expert_is_found_until_its_host_leaves(clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(6)
        uid = Uid.parse("open/ffn.0.1").in_run("open:test")
        nodes[5].announce([uid])
        await trio.sleep(10)
        found = [host.peer_id for host in await nodes[4].directory.hosts(uid)]
        assert nodes[5].experts == {uid}
        await sim.world.leave(nodes[5])
        return found == [nodes[5].peer_id], list(await nodes[3].directory.hosts(uid))

    assert clocked(story) == (True, [])


def test_a_node_that_waits_for_its_bootstrap_peers_joins_when_they_are_back(clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(5)
        everyone = [each.machine for each in nodes]
        late = sim.world.draw_machine()
        sim.world.partition(everyone, [late])
        node = await sim.world.add_node(machine=late, wait=False)
        await trio.sleep(60)
        assert node.joined_at is None
        sim.world.heal()
        assert await node.wait_joined()
        return sim.now

    assert 60 < clocked(story) < 120


@pytest.mark.parametrize("kind", [each for each in Nat if each is not Nat.NONE])
def test_a_node_behind_a_nat_asks_and_does_not_serve(kind, clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(8)
        await trio.sleep(10)
        hidden = nodes[BOOTSTRAP_PEERS:]
        assert {each.machine.nat for each in hidden} == {kind}
        return [len(each.dht.peers) for each in nodes]

    parameters = {"network.nats": 100.0, "network.nat": kind.value}
    assert clocked(story, **parameters) == [3] * 4 + [4] * 4


def test_changing_one_share_leaves_the_rest_of_a_machine_as_it_was():
    base = defaults(NETWORK)
    plain = [draw_machine(base, random.Random(seed)) for seed in range(50)]
    slow = [draw_machine(base | {"stragglers.share": 50.0}, random.Random(s)) for s in range(50)]
    assert [each["region"] for each in plain] == [each["region"] for each in slow]
    delays = [each["grade"].delay for each in slow]
    assert set(delays) == {0.0, 1.0}
    assert 10 < delays.count(1.0) < 40


def test_churn_keeps_the_number_of_nodes_and_spares_the_bootstrap_peers(clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(10)
        first = list(sim.world.bootstrap)
        replaced = []
        churn = Churn(sim, on_start=replaced.append)
        sim.nursery.start_soon(churn.run, nodes)
        await trio.sleep(600)
        assert churn.ended == len(replaced) > 20
        assert all(each.is_up for each in first)
        log = sim.log.count
        assert log["node-crashed"] + log["node-left"] == churn.ended
        assert min(log["node-crashed"], log["node-left"]) > 3
        return sim.world.nodes_up

    parameters = {"churn.median": 60.0, "churn.crash": 50.0}
    assert clocked(story, **parameters) == 10


def test_nodes_that_return_are_the_same_peers_again(clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(6)
        sim.nursery.start_soon(Churn(sim).run, nodes)
        await trio.sleep(600)
        return {each.name for each in sim.world.nodes.values()} <= {each.name for each in nodes}

    parameters = {"churn.median": 60.0, "churn.return": 100.0, "churn.downtime": 5.0}
    assert clocked(story, **parameters)


EIGHT_OF_TWO = {"experts.each": 2, "experts.columns": 4, "experts.period": 10.0}


def test_a_census_counts_only_who_was_there_all_the_time(clocked):
    async def story(sim):
        sim.world.settings = sim.world.settings.replace(hosting={"update_period": 10.0})
        nodes = await sim.world.add_nodes(8)
        experts = Experts(sim, 8)
        experts.host_on(nodes)
        await trio.sleep(30)
        assert len(experts.live) == 16
        taken = []

        async def take_census():
            taken.append(await experts.take_census(nodes[1]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_census)
            await trio.sleep(0.001)
            for node in nodes[6:]:
                sim.world.crash(node)
            back = await sim.world.add_node(again=nodes[7], wait=False)
            experts.host_on([back])
            # It has the name of one that had announced, and has announced nothing.
            assert len(experts.live) == 12
        assert (taken[0].live, taken[0].found) == (12, 12)
        await trio.sleep(30)
        return len(experts.live)

    assert clocked(story, **EIGHT_OF_TWO, **{"experts.placement": "rows"}) == 14


def test_a_search_when_nothing_lives_finds_nothing(clocked):
    async def story(sim):
        (node, *_) = await sim.world.add_nodes(4)
        scores = [np.zeros((1, size), dtype=np.float32) for size in (2, 4)]
        return await Experts(sim, 4).search(node, scores, 4, Probes())

    assert clocked(story, **EIGHT_OF_TWO, **{"experts.placement": "rows"}) is None


def test_a_network_on_which_nobody_can_join_ends_the_run(clocked):
    async def story(sim):
        sim.world.network.loss = 1.0
        with pytest.raises(SimulationFailedError, match="only 1 of 3 nodes"):
            await sim.world.add_nodes(3)

    clocked(story)


def test_values_that_nobody_can_store_end_the_run(clocked):
    async def story(sim):
        _, *clients = (await sim.world.add_nodes(6))[3:]  # who keep nothing for themselves
        sim.world.partition(*([each.machine] for each in sim.world.nodes.values()))
        with pytest.raises(SimulationFailedError, match="2 of 2 values"):
            await Values(sim).publish(clients)

    clocked(story, **{"network.nats": 100.0})


def test_values_are_found_and_live_as_long_as_their_publisher(clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(8)
        values = Values(sim)
        await values.publish([*nodes[:2], nodes[7]])
        sim.world.crash(nodes[7])
        assert len(values.stored) == 3
        assert {each.publisher for each in values.live} == {"n1", "n2"}
        assert [each.publisher for each in values.orphaned] == ["n8"]
        dead = weakref.ref(nodes.pop())
        await trio.sleep(600)
        gc.collect()
        assert dead() is None
        await values.look_up_some(10, sim.rng, over=20.0, among=lambda: values.stored)
        assert len(values.probes.all) == 10
        return values.probes.found

    assert clocked(story) == 100.0


def test_a_probe_of_a_node_that_dies_meanwhile_counts_for_nothing(clocked):
    async def story(sim):
        (node,) = await sim.world.add_nodes(1)
        probes = Probes()
        sim.nursery.start_soon(probes.ask, node, partial(trio.sleep, 10), lambda _: True)
        await trio.sleep(5)
        sim.world.crash(node)
        await trio.sleep(10)
        return probes.all

    assert clocked(story) == []


def test_an_error_and_a_wrong_answer_are_missed_and_so_is_what_takes_too_long(clocked):
    async def fail():
        raise P2PNodeError("no")

    async def story(sim):
        (node,) = await sim.world.add_nodes(1)
        probes = Probes()
        for question in (fail, trio.sleep_forever, partial(trio.sleep, 1)):
            await probes.ask(node, question, lambda got: got is None)
        return [(each.found, each.seconds) for each in probes.all]

    assert clocked(story) == [(False, 0.0), (False, 60.0), (True, 1.0)]


def test_percentiles_lie_between_the_values():
    assert [percentile([3, 1, 2], share) for share in (0, 0.25, 0.5, 1)] == [1, 1.5, 2, 3]
    assert str(percentile([], 0.5)) == "nan"


def test_look_ups_end_at_the_closest_node_and_tell_their_hops(clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(8)
        await trio.sleep(10)
        hops = Hops(sim.world)
        hops.watch(b"key")
        closest = closest_to(sim.world, b"key", nodes[0])
        assert begins_with(sim.world, closest)(await nodes[0].dht.closest_peers(b"key"))
        await nodes[0].dht.closest_peers(b"another")
        return hops.seen

    assert clocked(story) == [1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_liars_do_not_hide_the_closest_node_nor_a_value(kind, clocked):
    async def story(sim):
        await sim.world.add_nodes(4)
        sim.parameters |= {"liars.share": 100.0, "liars.kind": kind}
        await sim.world.add_nodes(4)
        sim.parameters["liars.share"] = 0.0
        asker, publisher = await sim.world.add_nodes(2)
        await trio.sleep(30)
        assert sim.log.count["node-lies"] == 4
        values, probes = Values(sim), Probes()
        await values.publish([publisher])
        await values.look_up(values.stored[0], asker)
        for number in range(5):
            key = bytes([number])
            is_right = begins_with(sim.world, closest_to(sim.world, key, asker))
            await probes.ask(asker, partial(asker.dht.closest_peers, key), is_right)
        return values.probes.found, probes.found

    assert clocked(story) == (100.0, 100.0)


@pytest.mark.parametrize("kind", ["strangers", "accomplices", "forgeries"])
def test_a_lie_looks_like_an_answer(kind, clocked):
    async def story(sim):
        nodes = await sim.world.add_nodes(3)
        liar = Liar(nodes[0], kind, sim.rng, lambda: nodes)
        stored = Record(b"/pk/x", b"value")
        put = Message(type=MessageType.PUT_VALUE, key=stored.key, record=stored)
        assert liar.lie(put).record == stored
        answers = [liar.lie(Message(type=MessageType.GET_VALUE, key=b"/pk/x")) for _ in range(20)]
        assert {each.type for each in answers} == {MessageType.GET_VALUE}
        if kind == "accomplices":
            assert {peer.peer_id for each in answers for peer in each.closer} == {
                each.peer_id for each in nodes[1:]
            }
        if kind == "forgeries":
            given = {each.record.value for each in answers}
            assert b"value" in given
            assert len(given) > 1
        return True

    assert clocked(story)
