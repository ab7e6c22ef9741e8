"""The DHT over real hosts: Noise, Yamux, multistream and identify on a network in memory."""

import random
from contextlib import asynccontextmanager

import pytest
import trio

from p2pnode.config import DhtSettings
from p2pnode.errors import DialError, NoPeersError, NotFoundError, StreamResetError
from p2pnode.host import PeerMisbehaved
from p2pnode.protocols.kad.service import KadDht
from p2pnode.protocols.kad.validators import PublicKeyValidator
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey

DELAY = 0.01


@asynccontextmanager
async def _swarm(count, *, client=False):
    """Run `count` servers, and maybe a client that does not listen; each knows the first."""
    async with (
        full_hosts(VirtualNetwork(latency=Fixed(DELAY))) as net,
        trio.open_nursery() as nursery,
    ):
        nodes = []
        for number in range(count + client):
            server = number < count
            host = await net.add_host(listen=server)
            dht = KadDht(
                host,
                DhtSettings(mode="server" if server else "client"),
                random.Random(number),
                {"pk": PublicKeyValidator()},
            )
            await nursery.start(dht.run)
            nodes.append((host, dht))
            if number:
                first = nodes[0][0]
                assert await dht.bootstrap([(first.peer_id, each) for each in first.addresses]) == 1
        yield nodes
        nursery.cancel_scope.cancel()


def _record(host):
    return b"/pk/" + host.peer_id, host.key.public_key.protobuf


async def test_values_are_found_by_servers_and_clients(autojump_clock):
    async with _swarm(5, client=True) as nodes:
        for host, dht in nodes[:3]:
            assert await dht.put_value(*_record(host)) == 5
        client_host, client = nodes[-1]
        assert await client.put_value(*_record(client_host)) == 5
        for host, _ in (*nodes[:3], nodes[-1]):
            key, value = _record(host)
            for _, dht in nodes:
                assert await dht.get_value(key) == value
        assert all(client_host.peer_id not in dht.peers for _, dht in nodes)
        assert {len(dht.peers) for _, dht in nodes[:5]} == {4}
        assert len(client.peers) == 5
        assert client.record_count == 0
        with pytest.raises(NotFoundError):
            await client.get_value(b"/pk/" + bytes(nodes[4][0].peer_id))


async def test_peers_are_found_by_their_id(autojump_clock):
    async with _swarm(4, client=True) as nodes:
        for host, _ in nodes[:4]:
            assert await nodes[-1][1].find_peer(host.peer_id) == host.addresses


async def test_what_a_server_knows_by_hearsay_alone_it_does_not_tell_on(autojump_clock):
    """Or one liar could have all of a network knock at the door of a victim."""
    ghost = PrivateKey.from_seed(b"g" * 32).peer_id
    async with _swarm(3) as nodes:
        nodes[0][0].add_addresses(ghost, [tcp_address("192.0.2.1", 7)], 600)
        with pytest.raises(NotFoundError):
            await nodes[1][1].find_peer(ghost)
        assert nodes[1][0].addresses_of(ghost) == []
        assert nodes[0][0].addresses_of(ghost)


async def test_a_server_that_starts_late_is_noticed_by_those_connected(autojump_clock):
    async with full_hosts() as net, trio.open_nursery() as nursery:
        early, late = await net.add_hosts(2)
        one, other = KadDht(early), KadDht(late)
        await nursery.start(one.run)
        await trio.sleep(5)
        assert one.peers == []
        await nursery.start(other.run)  # identify push tells of the new protocol
        await trio.sleep(5)
        assert one.peers == [late.peer_id]
        assert other.peers == [early.peer_id]
        nursery.cancel_scope.cancel()


async def _unplugged(*_args, **_kwargs):
    raise DialError("the cable is out")


async def test_a_node_that_went_is_dropped_and_the_rest_goes_on(autojump_clock, monkeypatch):
    async with _swarm(4) as nodes:
        (leaver, leaving), *others = nodes
        key, value = _record(leaver)
        await leaving.put_value(key, value)
        for listener in leaver._local.listeners:
            await listener.aclose()
        for connection in leaver.connections():
            await connection.aclose()
        monkeypatch.setattr(leaver, "connect", _unplugged)
        for _, dht in others:
            assert await dht.get_value(key) == value
        await trio.sleep(2 * DhtSettings().liveness_interval)
        for _, dht in others:
            assert len(dht.peers) == 2
            assert leaver.peer_id not in dht.peers


async def test_an_unreachable_bootstrap_address_is_named(autojump_clock):
    async with full_hosts() as net, trio.open_nursery() as nursery:
        host, other = await net.add_host(), await net.add_host()
        peer, address = other.peer_id, other.addresses[0]
        for listener in other._local.listeners:
            await listener.aclose()
        dht = KadDht(host)
        await nursery.start(dht.run)
        with pytest.raises(NoPeersError, match=str(peer)) as caught:
            await dht.bootstrap([(peer, address)])
        assert str(address) in str(caught.value)
        nursery.cancel_scope.cancel()


async def test_a_request_that_breaks_a_rule_is_reported_once(autojump_clock):
    async with _swarm(2) as nodes:
        (asker, _), (server, _) = nodes
        stream = await asker.open_stream(server.peer_id, [DhtSettings().protocol])
        with server.events.subscribe(PeerMisbehaved) as events:
            await stream.send_all(b"\x02\xff\xff")
            with pytest.raises(StreamResetError):
                await stream.receive_some()
            event = await events.get()
            assert event.peer_id == asker.peer_id
            assert DhtSettings().protocol in event.reason
            with trio.move_on_after(1) as scope:
                await events.get()
            assert scope.cancelled_caught


async def test_cancelled_calls_leave_no_stream(autojump_clock):
    async with _swarm(3) as nodes:
        _, dht = nodes[0]
        await trio.sleep(1)  # those that joined fill their tables in the background
        for _, each in nodes:
            each._peers.reset_idle()
        await trio.sleep(1)
        tasks = dht.busy
        assert all(each.info().streams == 0 for each in nodes[0][0].connections())
        with trio.move_on_after(DELAY) as scope:
            await dht.closest_peers(b"key")
        assert scope.cancelled_caught
        await trio.sleep(1)
        assert dht.busy == tasks
        assert all(each.info().streams == 0 for each in nodes[0][0].connections())
