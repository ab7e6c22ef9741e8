import contextlib
import functools
import random

import pytest
import trio

from p2pnode.config import Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir, write_secret
from p2pnode.daemon.node import BootstrapFailed, Node
from p2pnode.errors import BadRequestError, ConfigError, KeyFileError, NoPeersError
from p2pnode.protocols.kad.peers import DhtPeerAdded
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import VirtualNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey


def make_node(path, machine=None, **settings):
    machine = machine or MemoryTransport(VirtualNetwork())
    listen = (str(tcp_address(machine.ip, 4001)),)
    settings = Settings().replace(
        node={"listen": listen, **settings},
        dht={"rejoin_interval": 600.0},  # so that nobody else looks for a node that comes back
    )
    return Node(DataDir(path), settings, transports=[machine], rng=random.Random(0))


@contextlib.asynccontextmanager
async def running(node):
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        node.request_stop()


@pytest.fixture
async def node(tmp_path, nursery):
    node = make_node(tmp_path)
    await nursery.start(node.run)
    return node


async def test_a_corrupt_membership_is_told_at_the_start_and_left_as_it_is(tmp_path):
    path = tmp_path / "runs" / "digits.json"
    write_secret(path, b"junk", replace=False)
    with pytest.raises(KeyFileError, match="move it away"):
        await make_node(tmp_path).run()
    assert path.read_bytes() == b"junk"


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"node": 5}, BadRequestError, "node must be a table"),
        ({"node": ["experts"]}, BadRequestError, "node must be a table"),
        ({"node": {"experts": 5}}, ConfigError, "node.experts must be a list"),
        ({"node": {"listen": []}}, ConfigError, "cannot change node.listen"),
        ({"node": {"layers": ["lm/blocks.0"]}}, ConfigError, "of which model the layers are"),
        ({"hosting": 5}, BadRequestError, "hosting must be a table"),
        ({"hosting": {"layer": 5}}, ConfigError, "hosting.layer must be a text"),
    ],
)
async def test_a_malformed_request_to_host_is_refused_and_the_node_goes_on(
    node, tmp_path, params, error, message
):
    ask = functools.partial(call_daemon, tmp_path / "control.sock", timeout=20)
    with pytest.raises(error, match=message):
        await trio.to_thread.run_sync(functools.partial(ask, "host", **params))
    status = await trio.to_thread.run_sync(ask, "status")
    assert status["peer_id"] == str(node.network.peer_id)
    assert status["listening"] == [str(each) for each in node.network.host.listening] != []
    assert status["observed"] == []


async def test_experts_and_layers_of_a_model_are_hosted_side_by_side(node, tmp_path):
    ask = functools.partial(
        call_daemon,
        tmp_path / "control.sock",
        "host",
        timeout=20,
        node={"experts": ["lm/gates.0"], "layers": ["lm/blocks.[1:3]"]},
        hosting={"layer": "nop", "model": "tiny"},
    )
    added = await trio.to_thread.run_sync(ask)
    layers = {each["uid"]: each["layer"].partition("-")[0] for each in added}
    assert layers == {"lm/gates.0": "nop", "lm/blocks.1": "block", "lm/blocks.2": "block"}


async def test_host_may_repeat_what_the_daemon_was_started_with(node, tmp_path):
    """As when both are given the same config file."""
    ask = functools.partial(call_daemon, tmp_path / "control.sock", timeout=20)
    same = {"listen": list(node.settings.node.listen), "experts": ["digits/ffn.0"]}
    hosting = {"layer": "nop"}
    (added,) = await trio.to_thread.run_sync(
        functools.partial(ask, "host", node=same, hosting=hosting)
    )
    assert (added["uid"], added["layer"]) == ("digits/ffn.0", "nop")


@pytest.fixture
def two_machines():
    network = VirtualNetwork()
    return MemoryTransport(network), MemoryTransport(network)


async def test_a_node_that_comes_back_finds_the_peers_it_met_before(tmp_path, two_machines):
    first, second = two_machines
    async with running(make_node(tmp_path / "1", first)) as other:
        async with running(make_node(tmp_path / "2", second)) as node:
            await node.network.join(other.network.full_addresses())
        node = make_node(tmp_path / "2", second)
        with node.events.subscribe(DhtPeerAdded) as added, trio.fail_after(10):
            async with running(node):
                assert (await added.get()).peer_id == other.network.peer_id


async def test_a_node_that_was_only_ever_dialled_finds_its_peers_again_too(tmp_path, two_machines):
    first, second = two_machines
    async with running(make_node(tmp_path / "1", first)) as other:
        node = make_node(tmp_path / "2", second)
        with node.events.subscribe(DhtPeerAdded) as added, trio.fail_after(10):
            async with running(node):
                await other.network.join(node.network.full_addresses())
                await added.get()
        node = make_node(tmp_path / "2", second)
        with node.events.subscribe(DhtPeerAdded) as added, trio.fail_after(10):
            async with running(node):
                assert (await added.get()).peer_id == other.network.peer_id


async def test_dead_bootstrap_addresses_are_told_where_peers_met_before_do(tmp_path, two_machines):
    first, second = two_machines
    dead = f"{tcp_address('10.9.9.9', 1)}/p2p/{PrivateKey.generate().peer_id}"
    with pytest.RaisesGroup(NoPeersError, flatten_subgroups=True):
        async with running(make_node(tmp_path / "2", second, bootstrap=(dead,))):
            pass
    async with running(make_node(tmp_path / "1", first)) as old:
        (address,) = old.network.full_addresses()
        async with running(make_node(tmp_path / "2", second, bootstrap=(address,))):
            pass
        node = make_node(tmp_path / "2", second, bootstrap=(dead,))
        with node.events.subscribe(BootstrapFailed) as failures:
            async with running(node):
                assert "10.9.9.9" in (await failures.get()).reason
                assert old.network.peer_id in node.network.dht.peers
