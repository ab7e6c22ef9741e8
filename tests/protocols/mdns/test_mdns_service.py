import contextlib
import random

import pytest
import trio

from p2pnode.config import MdnsSettings
from p2pnode.errors import DialError
from p2pnode.host import ConnectionOpened
from p2pnode.protocols.mdns.core import build_text
from p2pnode.protocols.mdns.service import (
    DiscoveryFailed,
    MdnsService,
    PeerDiscovered,
    draw_label,
)
from p2pnode.testing.hosts import full_hosts
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey


class Cable:
    """A local network in memory: each newcomer hears all, and all hear each newcomer."""

    def __init__(self):
        self.present = {}
        self.sessions = []
        self.labels = []
        self.failures = 0

    async def __call__(self, ours, receive, *, label, close_timeout):
        self.labels.append(label)
        assert close_timeout > 0
        if self.failures:
            self.failures -= 1
            raise OSError("no such device")
        self.sessions.append(ours)
        for other, hear in self.present.items():
            hear([ours.text])
            receive([other.text])
        self.present[ours] = receive
        try:
            await trio.sleep_forever()
        finally:
            del self.present[ours]

    def shout(self, texts):
        for hear in self.present.values():
            hear(texts)


async def start(world, host, cable, seed=0, **settings):
    service = MdnsService(host, MdnsSettings(**settings), random.Random(seed), lan=cable)
    await world.nursery.start(service.run)
    await trio.testing.wait_all_tasks_blocked()
    return service


async def test_nodes_on_one_network_find_and_meet_each_other(autojump_clock):
    cable = Cable()
    async with full_hosts() as world:
        ours, theirs = await world.add_host(), await world.add_host()
        with ours.events.subscribe(PeerDiscovered) as found:
            await start(world, ours, cable, 1)
            await start(world, theirs, cable, 2)
            event = await found.get()
        assert event == PeerDiscovered(peer_id=theirs.peer_id, addresses=tuple(theirs.addresses))
        await trio.sleep(2)
        assert ours.connection_to(theirs.peer_id) is not None
        assert ours.protocols_of(theirs.peer_id)


async def test_nodes_that_meet_at_once_have_one_connection(autojump_clock):
    cable = Cable()
    async with full_hosts() as world:
        hosts = [await world.add_host() for _ in range(6)]
        opened = []
        for number, host in enumerate(hosts):
            host.events.on(ConnectionOpened, opened.append)
            await start(world, host, cable, number)
        await trio.sleep(10)
        for host in hosts:
            assert len({each.peer_id for each in host.connections()}) == 5
        assert len(opened) <= 2 * 15 * 1.3  # of 15 pairs, few dialled each other at once


async def test_a_node_that_listens_nowhere_is_silent_until_it_does(autojump_clock):
    cable = Cable()
    async with full_hosts() as world:
        host = await world.add_host(listen=False)
        await start(world, host, cable)
        await trio.sleep(100)
        assert cable.sessions == []
        await host.listen(tcp_address(host._transports[0].ip, 0))
        await trio.sleep(2)
        (session,) = cable.sessions
        assert session.text == build_text(host.peer_id, host.addresses)


async def test_new_addresses_are_told_in_a_new_session_and_other_changes_are_not(autojump_clock):
    cable = Cable()
    async with full_hosts() as world:
        host = await world.add_host()
        await start(world, host, cable)
        host.set_handler("/test/x", None)
        await trio.sleep(5)
        assert len(cable.sessions) == 1
        await host.listen(tcp_address(host._transports[0].ip, 0))
        await trio.sleep(5)
        assert [each.text for each in cable.present] == [build_text(host.peer_id, host.addresses)]
        assert len(cable.sessions) == 2
        assert len(set(cable.labels)) == 2


async def test_a_network_that_fails_is_told_of_and_tried_again(autojump_clock):
    cable = Cable()
    cable.failures = 2
    async with full_hosts() as world:
        host = await world.add_host()
        with host.events.subscribe(DiscoveryFailed) as failed:
            await start(world, host, cable, retry_interval=60.0)
            assert (await failed.get()).reason == "no such device"
            await failed.get()
            assert trio.current_time() == pytest.approx(60)
        await trio.sleep(60.5)
        assert len(cable.present) == 1
        assert len(set(cable.labels)) == 3  # the name may have been what failed


async def test_a_peer_is_told_of_once_until_its_addresses_change(autojump_clock):
    cable = Cable()
    stranger = PrivateKey.from_seed(b"s" * 32).peer_id
    async with full_hosts() as world:
        host = await world.add_host()
        await start(world, host, cable, dial_tries=1)
        found = []
        host.events.on(PeerDiscovered, found.append)
        for port in (1, 1, 1, 2):
            cable.shout([build_text(stranger, [tcp_address("10.0.0.99", port)])])
            await trio.sleep(20)
        assert [each.addresses for each in found] == [
            (tcp_address("10.0.0.99", 1),),
            (tcp_address("10.0.0.99", 2),),
        ]


async def test_its_own_echo_and_the_loopback_of_others_mean_nothing(autojump_clock):
    cable = Cable()
    async with full_hosts() as world:
        host = await world.add_host()
        await start(world, host, cable)
        found = []
        host.events.on(PeerDiscovered, found.append)
        stranger = PrivateKey.from_seed(b"s" * 32).peer_id
        cable.shout([build_text(host.peer_id, host.addresses)])
        cable.shout([build_text(stranger, [tcp_address("127.0.0.1", 1)])])
        cable.shout([b"nonsense"])
        await trio.sleep(5)
        assert found == []


async def test_an_unwilling_peer_is_tried_a_few_times(autojump_clock, monkeypatch):
    cable = Cable()
    stranger = PrivateKey.from_seed(b"s" * 32).peer_id
    async with full_hosts() as world:
        host = await world.add_host()
        tried = []

        async def refuse(peer_id, addresses):
            tried.append((peer_id, tuple(addresses)))
            raise DialError("nobody answers")

        monkeypatch.setattr(host, "connect", refuse)
        await start(world, host, cable, dial_tries=3)
        cable.shout([build_text(stranger, [tcp_address("10.0.0.99", 1)])])
        await trio.sleep(100)
        assert tried == [(stranger, (tcp_address("10.0.0.99", 1),))] * 3


async def test_a_flood_of_strangers_is_dialled_slowly_and_remembered_in_part(
    autojump_clock, monkeypatch
):
    cable = Cable()
    async with full_hosts() as world:
        host = await world.add_host()
        tried = []

        async def refuse(peer_id, _addresses):
            tried.append(trio.current_time())
            raise DialError("nobody answers")

        monkeypatch.setattr(host, "connect", refuse)
        service = await start(
            world,
            host,
            cable,
            dials_at_once=2,
            dial_tries=1,
            dial_pause=1.0,
            max_waiting=16,
            max_peers=8,
        )
        for number in range(2000):
            peer = PrivateKey.from_seed(number.to_bytes(32, "big")).peer_id
            cable.shout([build_text(peer, [tcp_address("10.0.0.99", 1)])])
            if number % 100 == 99:
                await trio.sleep(1)
        assert len(tried) <= 2 * (trio.current_time() + 1)
        await trio.sleep(100)
        assert len(tried) < 100
        assert len(service._found) == 8


async def test_when_it_ends_it_is_heard_of_no_more(autojump_clock):
    cable = Cable()
    async with full_hosts() as world:
        host = await world.add_host()
        async with trio.open_nursery() as nursery:
            await nursery.start(MdnsService(host, lan=cable).run)
            await trio.testing.wait_all_tasks_blocked()
            assert len(cable.present) == 1
            nursery.cancel_scope.cancel()
        assert cable.present == {}
        with contextlib.suppress(trio.WouldBlock):
            await host.listen(tcp_address(host._transports[0].ip, 0))
        assert len(cable.sessions) == 1


def test_a_label_is_long_random_and_fits_into_dns():
    labels = {draw_label(random.Random(seed)) for seed in range(200)}
    assert len(labels) == 200
    assert all(32 <= len(each) <= 63 and each.isalnum() and each.islower() for each in labels)
