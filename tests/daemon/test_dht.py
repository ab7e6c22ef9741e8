"""The commands that ask a running daemon's DHT, over its control socket."""

import base64
import random

import pytest
import trio

from p2pnode.config import Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.dht import key_of
from p2pnode.daemon.node import Node
from p2pnode.errors import BadRequestError, InvalidKeyError, NotFoundError, ProtocolError
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import VirtualNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

KEY = PrivateKey.from_seed(bytes(32)).public_key
NAME = f"/pk/{KEY.peer_id}"
VALUE = base64.b64encode(KEY.protobuf).decode()


@pytest.fixture
async def nodes(tmp_path, nursery):
    """Two nodes of one DHT."""
    network = VirtualNetwork()
    started = []
    for name in ("first", "second"):
        machine = MemoryTransport(network)
        bootstrap = tuple(started[0].network.full_addresses()) if started else ()
        settings = Settings().replace(
            node={"listen": (str(tcp_address(machine.ip, 4001)),), "bootstrap": bootstrap}
        )
        node = Node(DataDir(tmp_path / name), settings, transports=[machine], rng=random.Random(0))
        node.socket = DataDir(tmp_path / name).control_socket
        await nursery.start(node.run)
        started.append(node)
    return started


async def ask(node, method, **params):
    return await trio.to_thread.run_sync(lambda: call_daemon(node.socket, method, **params))


async def test_what_one_daemon_stores_another_one_finds(nodes):
    first, second = nodes
    put = await ask(first, "dht.put", key=NAME, value=VALUE)
    assert put["stored"] >= 1
    got = await ask(second, "dht.get", key=NAME)
    assert got["value"] == VALUE
    assert put["seconds"] >= 0 <= got["seconds"]


async def test_the_table_and_a_peers_addresses_are_told(nodes):
    first, second = nodes
    (peer,) = await ask(first, "dht.peers")
    assert peer["peer_id"] == str(second.network.peer_id)
    assert peer["connected"]
    found = await ask(first, "dht.find", peer=str(second.network.peer_id))
    assert found["addresses"] == [str(each) for each in second.network.host.addresses]


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("dht.get", {"key": NAME}, NotFoundError),
        ("dht.get", {"key": "/pk/nobody"}, InvalidKeyError),
        ("dht.get", {}, BadRequestError),
        ("dht.put", {"key": NAME, "value": "?"}, BadRequestError),
        ("dht.put", {"key": NAME, "value": "AAAA"}, ProtocolError),
        ("dht.put", {"key": "/other/x", "value": VALUE}, ProtocolError),
        ("dht.find", {"peer": "nobody"}, InvalidKeyError),
    ],
)
async def test_what_cannot_be_is_an_error_that_says_why(nodes, method, params, error):
    with pytest.raises(error):
        await ask(nodes[0], method, **params)


def test_a_key_is_read_as_people_write_it():
    assert key_of(NAME) == b"/pk/" + bytes(KEY.peer_id)
    index = "/p2pnode-index/open:digits/hosts/ffn/0"
    assert key_of(index) == index.encode()
