"""How a node ends: withdrawn while it can still be heard, with its experts saved."""

import functools
import random

import pytest
import trio

from p2pnode.config import Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.node import Node
from p2pnode.errors import CheckpointError, LocalError
from p2pnode.swarm.entries import open_entry
from p2pnode.swarm.index import decode_index
from p2pnode.swarm.places import Kind, Place, bits_of
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire.addresses import tcp_address

RUN = "open:digits"
PLACE = Place(RUN, Kind.HOSTS, "ffn", 0)


def node_on(network, data_dir, **node):
    machine = MemoryTransport(network)
    listen = (str(tcp_address(machine.ip, 4001)),)
    settings = Settings().replace(
        node={"listen": listen, **node}, hosting={"hidden_dim": 4, "update_period": 60.0}
    )
    return Node(DataDir(data_dir), settings, transports=[machine], rng=random.Random(0))


@pytest.fixture
async def first(tmp_path, nursery):
    """The node that others join, and that keeps what they announce."""
    network = VirtualNetwork(latency=Fixed(0.01))
    node = node_on(network, tmp_path / "first")
    node.machines = network
    await nursery.start(node.run)
    return node


def host_of(first, tmp_path, **node):
    bootstrap = tuple(first.network.full_addresses())
    return node_on(
        first.machines,
        tmp_path / "host",
        bootstrap=bootstrap,
        experts=("digits/ffn.[0:2]",),
        **node,
    )


async def announced(node):
    value = await node.network.dht.get_value(PLACE.key)
    (entry,) = decode_index(PLACE, value)
    return list(bits_of(open_entry(PLACE, entry).served))


def saved(tmp_path):
    return list((tmp_path / "host/experts").rglob("*.safetensors"))


async def run_until_announced(host, first, nursery):
    scope = trio.CancelScope()
    ended = trio.Event()

    async def run(task_status):
        with scope:
            await host.run(task_status=task_status)
        ended.set()

    await nursery.start(run)
    with trio.fail_after(10):
        while first.network.dht.record_count == 0:
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert await announced(first) == [0, 1]
    return scope, ended


@pytest.mark.real
@pytest.mark.parametrize("how", ["stopped", "cancelled"])
async def test_a_node_that_ends_has_withdrawn_and_saved_its_experts(how, first, tmp_path, nursery):
    host = host_of(first, tmp_path)
    scope, ended = await run_until_announced(host, first, nursery)
    host.request_stop() if how == "stopped" else scope.cancel()
    with trio.fail_after(20):
        await ended.wait()
    assert await announced(first) == []
    assert len(saved(tmp_path)) == 2


@pytest.mark.real
async def test_a_stopping_node_withdraws_before_it_waits_for_its_calls(
    first, tmp_path, nursery, monkeypatch
):
    host = host_of(first, tmp_path)
    _, ended = await run_until_announced(host, first, nursery)
    busy = trio.Event()
    monkeypatch.setattr(host._hosting._experts, "drain", busy.wait)
    host.request_stop()
    with trio.fail_after(5):
        while await announced(first):
            await trio.testing.wait_all_tasks_blocked(0.001)
    assert not ended.is_set()
    busy.set()
    with trio.fail_after(20):
        await ended.wait()


@pytest.mark.real
async def test_experts_added_by_a_start_that_fails_are_saved(first, tmp_path):
    (tmp_path / "host/control.sock/taken").mkdir(parents=True)
    with pytest.RaisesGroup(LocalError, flatten_subgroups=True) as raised:
        await host_of(first, tmp_path).run()
    assert "control socket" in str(raised.value.exceptions)
    assert len(saved(tmp_path)) == 2


@pytest.mark.real
async def test_who_stops_a_node_hears_that_its_experts_could_not_be_saved(first, tmp_path, nursery):
    host = host_of(first, tmp_path)

    async def full_disk():
        raise CheckpointError("the disk is full")

    with pytest.RaisesGroup(CheckpointError, flatten_subgroups=True):
        async with trio.open_nursery() as daemon:
            await daemon.start(host.run)
            host._hosting._experts.save_all = full_disk
            ask = functools.partial(call_daemon, DataDir(tmp_path / "host").control_socket, "stop")
            with pytest.raises(CheckpointError, match="the disk is full"):
                await trio.to_thread.run_sync(ask)
