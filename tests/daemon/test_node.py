import functools
import random

import pytest
import trio

from p2pnode.config import Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir, write_secret
from p2pnode.daemon.node import Node
from p2pnode.errors import BadRequestError, ConfigError, KeyFileError
from p2pnode.transport.memory import MemoryNetwork
from p2pnode.wire.addresses import tcp_address


def make_node(path):
    machine = MemoryNetwork().add_machine()
    settings = Settings().replace(node={"listen": (str(tcp_address(machine.ip, 4001)),)})
    return Node(DataDir(path), settings, transports=[machine], rng=random.Random(0))


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


async def test_host_may_repeat_what_the_daemon_was_started_with(node, tmp_path):
    """As when both are given the same config file."""
    ask = functools.partial(call_daemon, tmp_path / "control.sock", timeout=20)
    same = {"listen": list(node.settings.node.listen), "experts": ["digits/ffn.0"]}
    hosting = {"layer": "nop"}
    (added,) = await trio.to_thread.run_sync(
        functools.partial(ask, "host", node=same, hosting=hosting)
    )
    assert (added["uid"], added["layer"]) == ("digits/ffn.0", "nop")
