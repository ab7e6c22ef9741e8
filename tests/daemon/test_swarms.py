"""The daemon's swarms: what the commands are told, by people's names."""

import functools
import random

import pytest
import trio

from p2pnode.config import Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.node import Node
from p2pnode.errors import BadRequestError, InvalidUidError
from p2pnode.swarm.gossip.announcement import Claim
from p2pnode.swarm.gossip.reputation import Offence
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import VirtualNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.uids import Uid

UID = Uid("digits", "ffn.0")


@pytest.fixture
async def daemons(tmp_path, nursery):
    """Start daemons on one network that host these experts; the first one is known to all."""
    network, nodes = VirtualNetwork(), []

    async def start(*experts):
        machine = MemoryTransport(network)
        settings = Settings().replace(
            node={
                "listen": (str(tcp_address(machine.ip, 4001)),),
                "experts": experts,
                "bootstrap": tuple(each.network.full_addresses()[0] for each in nodes[:1]),
            },
            gossip={"look_interval": 0.2},
            hosting={"hidden_dim": 8},
        )
        node = Node(
            DataDir(tmp_path / str(len(nodes))),
            settings,
            transports=[machine],
            rng=random.Random(len(nodes)),
        )
        await nursery.start(node.run)
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        node.request_stop()


async def ask(node, method, **params):
    path = node._data_dir.control_socket
    call = functools.partial(call_daemon, path, method, timeout=20, **params)
    return await trio.to_thread.run_sync(call)


async def test_a_daemon_tells_who_shares_its_layers_and_what_they_announce(daemons):
    first = await daemons("digits/ffn.[0:3]")
    second = await daemons("digits/ffn.0")
    swarm = second.swarms.swarm(UID)
    with trio.fail_after(20):
        await swarm.wait_until(lambda: bool(swarm.members))
        await swarm.announce(Claim(round=2, score=0.75, scored_on=300, weights=b"w" * 32))
        shown = await ask(first, "swarm", uid="digits/ffn.0")
        while not any(each["announcement"] for each in shown["members"]):
            shown = await ask(first, "swarm", uid="digits/ffn.0", since=shown["revision"], wait=5)
        while len((await ask(first, "swarms"))["swarms"]) != 1:
            await first.swarms.swarms.refresh(swarm.uid)
    (member,) = shown["members"]
    assert member["peer_id"] == str(second.network.peer_id)
    said = member["announcement"]
    assert (said["round"], said["score"], said["weights"]) == (2, 0.75, "77" * 32)
    listed = await ask(first, "swarms")
    assert [each["uid"] for each in listed["swarms"]] == ["digits/ffn.0"]
    assert listed["swarms"][0]["best_score"] == 0.75
    assert sorted(listed["alone"]) == ["digits/ffn.1", "digits/ffn.2"]
    status = await ask(first, "status")
    assert (status["swarms"]["joined"], status["swarms"]["members"]) == (1, 1)
    assert status["swarms"]["offenders"] == []


async def test_the_status_tells_what_is_held_against_whom(daemons):
    first, second = await daemons("digits/ffn.0"), await daemons()
    liar = second.network.peer_id
    for _ in range(2):
        first.swarms.swarm(UID).report(liar, Offence.FALSE_SCORE, "it claims 1.0 and has 0.1")
    (offender,) = (await ask(first, "status"))["swarms"]["offenders"]
    assert offender["peer_id"] == str(liar)
    assert offender["is_blacklisted"]
    assert offender["offences"] == {"false score": 2}
    assert offender["last_reason"] == "it claims 1.0 and has 0.1"


async def test_whoever_looks_waits_no_longer_than_asked_for_changes(daemons):
    node = await daemons()
    shown = await ask(node, "swarm", uid="digits/ffn.0")
    again = await ask(node, "swarm", uid="digits/ffn.0", since=shown["revision"], wait=0.05)
    assert again == shown
    assert not again["hosted"]


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        ({}, BadRequestError, "uid must be a text"),
        ({"uid": "ffn.0"}, InvalidUidError, "does not say its run"),
        ({"uid": "digits/ffn"}, InvalidUidError, "names a block"),
        ({"uid": "digits/ffn.0", "wait": 1e9}, BadRequestError, "at most 30"),
    ],
)
async def test_a_malformed_question_is_refused(daemons, params, error, says):
    node = await daemons()
    with pytest.raises(error, match=says):
        await ask(node, "swarm", **params)


async def test_a_node_without_gossip_has_no_swarms(tmp_path, nursery):
    settings = Settings().replace(node={"listen": ()}, gossip={"enabled": False})
    node = Node(DataDir(tmp_path), settings, transports=[MemoryTransport(VirtualNetwork())])
    await nursery.start(node.run)
    assert (await ask(node, "swarms")) == {"swarms": [], "alone": []}
    with pytest.raises(BadRequestError, match="takes part in no gossip"):
        await ask(node, "swarm", uid="digits/ffn.0")
    node.request_stop()
