"""What the doctor sees of daemons that run."""

import random
import shutil
from pathlib import Path

import pytest
import trio

from p2pnode.clock import wall_time
from p2pnode.config import Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.doctor.examination import examine
from p2pnode.daemon.node import Node
from p2pnode.host import Reachability
from p2pnode.host.connections import Way
from p2pnode.protocols.clock.core import PROTOCOL, QUESTION_BYTES, encode_answer
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import VirtualNetwork
from p2pnode.wire.addresses import tcp_address


@pytest.fixture
async def nodes(tmp_path, nursery):
    """Three nodes of one DHT."""
    network, started = VirtualNetwork(), []
    for number in range(3):
        machine, data_dir = MemoryTransport(network), DataDir(tmp_path / str(number))
        bootstrap = tuple(started[0].network.full_addresses()) if started else ()
        settings = Settings().replace(
            node={"listen": (str(tcp_address(machine.ip, 4001)),), "bootstrap": bootstrap}
        )
        node = Node(data_dir, settings, transports=[machine], rng=random.Random(number))
        node.data_dir = data_dir
        await nursery.start(node.run)
        started.append(node)
    return started


async def _examine(node):
    return await examine(node.network, node.settings, node.data_dir.path, random.Random(0))


async def test_it_sees_peers_the_dht_the_time_and_the_disk(nodes):
    facts = await _examine(nodes[2])
    assert {each.way for each in facts.ways} == {Way.DIRECT}
    assert facts.ports == (4001,)
    assert facts.reachability.state is Reachability.UNKNOWN  # these addresses are nobody's
    assert facts.dht.peers >= 1
    assert facts.dht.lookup_seconds >= 0
    assert facts.clock.asked >= 1
    assert abs(facts.clock.offset.seconds) < 1  # all of them run here
    disk = shutil.disk_usage(nodes[2].data_dir.path)
    assert facts.disk.total == disk.total
    assert facts.disk.used_by_node > 0
    assert facts.disk.is_writable
    assert facts.device.name == "cpu"
    assert facts.device.cores >= 1
    assert facts.device.free_memory is None or facts.device.free_memory > 0
    assert facts.listening == tuple(map(str, nodes[2].network.host.listening))
    assert facts.bootstrap == tuple(nodes[0].network.full_addresses())


async def test_a_clock_that_is_wrong_is_noticed(nodes):
    # All others tell a time that is a minute ahead: it is ours that is late.
    for node in nodes[:2]:
        node.network.host.set_handler(PROTOCOL, _tell_later)
    reply = await _doctor(nodes[2])
    finding = reply["findings"][0]
    assert (finding["level"], finding["subject"]) == ("problem", "clock")
    assert "60.0 s behind" in finding["says"]


async def _tell_later(stream):
    question = await stream.receive_exactly(QUESTION_BYTES)
    await stream.send_all(encode_answer(question, wall_time() + 60))


async def _doctor(node):
    socket = node.data_dir.control_socket
    return await trio.to_thread.run_sync(lambda: call_daemon(socket, "doctor"))


async def test_the_control_socket_tells_findings_and_facts(nodes):
    reply = await _doctor(nodes[1])
    assert {each["subject"] for each in reply["findings"]} >= {"peers", "DHT", "clock", "disk"}
    assert all(set(each) == {"level", "subject", "says", "advice"} for each in reply["findings"])
    assert reply["facts"]["dht"]["mode"] == "server"


async def test_a_data_directory_that_cannot_be_written_is_noticed(nodes, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path) != nodes[1].data_dir.path)
    assert not (await _examine(nodes[1])).disk.is_writable
