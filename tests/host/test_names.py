"""Dialling by name: what the resolver finds joins the race of addresses."""

import pytest
import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import DialError
from p2pnode.host.node import NetworkHost
from p2pnode.transport.tcp import TcpTransport
from p2pnode.transport.websocket import WebSocketTransport
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

pytestmark = pytest.mark.real


async def make_hosts(nursery, settings):
    hosts = []
    for _ in range(2):
        transports = [TcpTransport(), WebSocketTransport()]
        hosts.append(NetworkHost(PrivateKey.generate(), transports=transports, settings=settings))
        await nursery.start(hosts[-1].run)
    return hosts


@pytest.mark.parametrize("tail", ["", "/ws"])
async def test_a_peer_is_reached_by_the_name_of_its_machine(nursery, tail):
    ours, theirs = await make_hosts(nursery, NetworkSettings())
    await theirs.listen(parse_address(f"/ip4/127.0.0.1/tcp/0{tail}"))
    named = parse_address(str(theirs.addresses[0]).replace("/ip4/127.0.0.1", "/dns4/localhost"))
    with trio.fail_after(10):
        connection = await ours.connect(theirs.peer_id, [named])
    assert connection.remote_address == theirs.addresses[0]


async def test_a_name_that_does_not_resolve_is_one_failed_address_among_others(nursery):
    nobody = NetworkSettings(dns_servers=("127.0.0.1:9",), dns_timeout=0.2)
    ours, theirs = await make_hosts(nursery, nobody)
    nowhere = parse_address("/dns4/nowhere.invalid/tcp/1")
    with trio.fail_after(20), pytest.raises(DialError, match=r"nowhere\.invalid"):
        await ours.connect(theirs.peer_id, [nowhere])
    await theirs.listen(parse_address("/ip4/127.0.0.1/tcp/0"))
    with trio.fail_after(10):
        await ours.connect(theirs.peer_id, [nowhere, theirs.addresses[0]])
