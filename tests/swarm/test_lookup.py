import pytest
import trio
import trio.testing

from p2pnode.clock import wall_time
from p2pnode.config import HostingSettings, SwarmSettings
from p2pnode.errors import NoPeersError
from p2pnode.swarm.places import SPAN, Kind, host_place
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

RUN = "open:digits"
UID = Uid(RUN, "blocks.0")


async def _hosts(node, prefix):
    """Map each coordinate under a prefix to the hosts of the expert there."""
    (listing,) = await node.directory.listings(RUN, Kind.HOSTS, [prefix], SPAN)
    return listing


def _count_gets(node):
    """Count the searches that a node's directory starts."""
    counts = []

    def counted(name, original):
        def call(key):
            counts.append(name)
            return original(key)

        return call

    for name in ("get_value", "begin_get"):
        setattr(node.dht, name, counted(name, getattr(node.dht, name)))
    return counts


async def test_a_prefix_in_use_is_answered_from_memory_and_refreshed_in_the_background(
    swarm_network, autojump_clock
):
    async with swarm_network(delay=lambda _a, _b: 0.1) as net:
        host = await net.start(experts=["blocks.[0:2]"])
        trainer = await net.start([host], server=False)
        await _hosts(trainer, "blocks")
        counts = _count_gets(trainer)
        for _ in range(200):
            before = trio.current_time()
            assert set(await _hosts(trainer, "blocks")) == {0, 1}
            assert trio.current_time() == before
            await trio.sleep(0.1)
        assert set(counts) == {"begin_get"}
        assert 4 <= len(counts) <= 10


async def test_who_looks_now_and_then_sees_what_is_renewed_all_the_time(
    swarm_network, autojump_clock
):
    async with swarm_network(delay=lambda _a, _b: 0.1) as net:
        period = 2 * SwarmSettings().refresh_interval
        hosting = HostingSettings(update_period=period)
        host = await net.start(experts=["blocks.0"], hosting=hosting)
        await net.start([host], experts=["blocks.1"], hosting=hosting)
        trainer = await net.start([host], server=False)
        await _hosts(trainer, "blocks")
        for _ in range(100):
            await trio.sleep(0.55 * period)  # what is found lives for at least a period more
            assert set(await _hosts(trainer, "blocks")) == {0, 1}


async def test_concurrent_first_lookups_share_one_search(swarm_network, autojump_clock):
    async with swarm_network(delay=lambda _a, _b: 0.1) as net:
        host = await net.start(experts=["blocks.0"])
        trainer = await net.start([host], server=False)
        streams = net.world.streams_served
        found = []

        async def look_up():
            found.append(await trainer.directory.hosts(UID))

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(look_up)
        assert [hosts[0].peer_id for hosts in found] == [host.peer_id] * 30
        assert net.world.streams_served - streams <= 2


async def test_an_expired_entry_never_shows_even_when_no_refresh_succeeds(
    swarm_network, autojump_clock
):
    async with swarm_network() as net:
        host = await net.start(experts=["blocks.0"])
        trainer = await net.start([host], server=False)
        await trainer.directory.hosts(UID)
        await host.crash()
        saw_error = False
        for _ in range(200):
            try:
                hosts = await trainer.directory.hosts(UID)
            except NoPeersError:
                saw_error = True
            else:
                assert all(entry.expiry > wall_time() for entry in hosts)
            await trio.sleep(0.1)
        assert saw_error


async def test_an_absent_prefix_is_asked_for_less_and_less_often(swarm_network, autojump_clock):
    async with swarm_network() as net:
        host = await net.start()
        trainer = await net.start([host], server=False)
        counts = _count_gets(trainer)
        for _ in range(600):
            assert await _hosts(trainer, "blocks") == {}
            await trio.sleep(0.1)
        assert len(counts) <= 11  # at 0, 0.5, 1.5, 3.5, 7.5, 15.5, then every 10 s
        host.announcer.add([UID])
        await trio.sleep(SwarmSettings().max_absent_time)
        assert set(await _hosts(trainer, "blocks")) == {0}


async def test_without_peers_it_says_so_at_once(swarm_network, autojump_clock):
    async with swarm_network() as net:
        trainer = await net.start(server=False)
        before = trio.current_time()
        with pytest.raises(NoPeersError):
            await trainer.directory.hosts(UID)
        with pytest.raises(NoPeersError):
            await trainer.directory.listings(RUN, Kind.HOSTS, ["ffn0", "ffn1"], 4)
        assert trio.current_time() == before


async def test_a_failed_host_is_left_out_for_a_time_that_doubles(swarm_network, autojump_clock):
    async with swarm_network() as net:
        good = await net.start(experts=["blocks.0"])
        bad = await net.start([good], experts=["blocks.[0:2]"])
        trainer = await net.start([good], server=False)
        directory = trainer.directory

        async def shown():
            return bad.peer_id in [each.peer_id for each in await directory.hosts(UID)]

        assert await shown()
        for ban in (2.0, 4.0, 8.0):
            directory.mark_failed(bad.peer_id)
            directory.mark_failed(bad.peer_id)  # of a call at the same time: not twice as long
            failed = trio.current_time()
            assert not await shown()
            assert set(await _hosts(trainer, "blocks")) == {0}
            await trio.sleep_until(failed + ban - 0.01)
            assert not await shown()
            await trio.sleep_until(failed + ban)
            assert await shown()
        directory.mark_failed(bad.peer_id)
        directory.mark_alive(bad.peer_id)
        assert await shown()
        directory.mark_alive(good.peer_id)
        assert len(await directory.hosts(UID)) == 2


async def test_a_host_that_vanished_and_came_back_is_trusted_again_at_once(
    swarm_network, autojump_clock
):
    async with swarm_network() as net:
        first = await net.start()
        key = PrivateKey.from_seed(b"\7" * 32)
        host = await net.start([first], key=key, experts=["blocks.0"])
        trainer = await net.start([first], server=False)
        assert len(await trainer.directory.hosts(UID)) == 1
        await host.crash()
        for _ in range(30):  # calls go on failing until the host is no longer listed
            trainer.directory.mark_failed(host.peer_id)
            await trainer.directory.hosts(UID)
            await trio.sleep(1)
        await net.start([first], key=key, experts=["blocks.0"])
        await trio.sleep(SwarmSettings().max_absent_time)
        assert len(await trainer.directory.hosts(UID)) == 1


async def test_memory_is_bounded(swarm_network, autojump_clock):
    async with swarm_network() as net:
        host = await net.start()
        trainer = await net.start([host], server=False, swarm=SwarmSettings(max_cached_prefixes=10))
        prefixes = [f"ffn0.{n}" for n in range(50)]
        await trainer.directory.listings(RUN, Kind.HOSTS, prefixes, 4)
        assert len(trainer.directory._records) == 10


async def test_lookups_at_once_are_bounded(swarm_network, autojump_clock):
    async with swarm_network(delay=lambda _a, _b: 0.1) as net:
        host = await net.start()
        trainer = await net.start([host], server=False, swarm=SwarmSettings(lookups_at_once=3))
        prefixes = [f"ffn0.{n}" for n in range(9)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trainer.directory.listings, RUN, Kind.HOSTS, prefixes, 4)
            await trio.sleep(0.15)
            assert len(trainer.dht._searches) == 3


async def test_a_cancelled_lookup_leaves_nothing_behind(swarm_network, autojump_clock):
    async with swarm_network(delay=lambda _a, _b: 0.1) as net:
        host = await net.start(experts=["blocks.0"])
        trainer = await net.start([host], server=False)
        await trio.testing.wait_all_tasks_blocked()
        tasks = trainer.dht.busy
        with trio.move_on_after(0.05) as scope:
            await trainer.directory.listings(RUN, Kind.HOSTS, ["blocks", "ffn0", "ffn1"], 4)
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert trainer.dht.busy == tasks
        assert len(trainer.dht._searches) == 0
        assert len(await trainer.directory.hosts(UID)) == 1


async def test_a_stale_answer_does_not_take_hosts_away(swarm_network, autojump_clock):
    async with swarm_network() as net:
        nodes = [await net.start(experts=["blocks.0"])]
        nodes += [await net.start(nodes[:1], experts=["blocks.0"]) for _ in range(2)]
        trainer = await net.start(nodes[:1], server=False)
        assert len(await trainer.directory.hosts(UID)) == 3
        for node in nodes:  # every holder forgets; the trainer's copy lives until it expires
            node.dht._core.records.remove(host_place(UID).key)
        await trio.sleep(2.6)
        await trainer.directory.hosts(UID)
        await trio.testing.wait_all_tasks_blocked()
        assert len(await trainer.directory.hosts(UID)) == 3


async def test_an_absent_row_is_asked_for_again_as_soon_as_its_branch_is_announced(
    swarm_network, autojump_clock
):
    async with swarm_network(delay=lambda _a, _b: 0.01) as net:
        host = await net.start(experts=["ffn0.0.0"])
        trainer = await net.start([host], server=False)

        async def rows():
            (listing,) = await trainer.directory.listings(RUN, Kind.BRANCHES, ["ffn0"], SPAN)
            return set(listing)

        for _ in range(300):  # until the row is asked for every ten seconds only
            assert await _hosts(trainer, "ffn0.1") == {}
            await rows()
            await trio.sleep(0.1)
        host.announcer.add([Uid(RUN, "ffn0.1.2")])
        announced = trio.current_time()
        for _ in range(100):
            if 1 in await rows():
                break
            await trio.sleep(0.1)
        assert trio.current_time() - announced <= SwarmSettings().refresh_interval
        assert set(await _hosts(trainer, "ffn0.1")) == {2}


async def test_what_was_prefetched_is_there_when_it_is_wanted(swarm_network, autojump_clock):
    async with swarm_network(delay=lambda _a, _b: 0.1) as net:
        host = await net.start(experts=["ffn0.[0:3].[0:2]"])
        trainer = await net.start([host], server=False)
        directory = trainer.directory
        assert not directory.knows(RUN, Kind.BRANCHES, "ffn0", 3)
        counts = _count_gets(trainer)
        directory.prefetch(RUN, Kind.HOSTS, ["ffn0.0", "ffn0.1", "ffn0.9"], 2)
        await trio.sleep(5)
        before = trio.current_time()
        for prefix, found in (("ffn0.0", {0, 1}), ("ffn0.1", {0, 1}), ("ffn0.9", set())):
            assert set(await _hosts(trainer, prefix)) == found
        assert trio.current_time() == before
        assert counts[:3] == ["begin_get"] * 3
        assert "get_value" not in counts


async def test_prefetching_takes_no_more_than_there_is_room_for(swarm_network, autojump_clock):
    async with swarm_network(delay=lambda _a, _b: 0.1) as net:
        host = await net.start()
        trainer = await net.start([host], server=False, swarm=SwarmSettings(lookups_at_once=3))
        counts = _count_gets(trainer)
        trainer.directory.prefetch(RUN, Kind.HOSTS, [f"ffn0.{n}" for n in range(9)], SPAN)
        assert counts == ["begin_get"] * 3


async def test_an_entry_that_is_not_renewed_is_not_chased_ever_faster(
    swarm_network, autojump_clock
):
    async with swarm_network(delay=lambda _a, _b: 0.001) as net:
        alive = await net.start(experts=["blocks.0"])
        dead = await net.start([alive], experts=["blocks.1"])
        trainer = await net.start([alive], server=False)
        await _hosts(trainer, "blocks")
        await dead.crash()
        counts = _count_gets(trainer)
        for _ in range(200):
            await _hosts(trainer, "blocks")
            await trio.sleep(0.05)
        assert len(counts) <= 11  # in ten seconds: once a second at most, and less at first


async def test_a_wide_prefix_is_looked_up_in_all_its_records(swarm_network, autojump_clock):
    async with swarm_network() as net:
        far = 3 * SPAN + 5
        host = await net.start(experts=["ffn0.1", f"ffn0.{far}"])
        trainer = await net.start([host], server=False)
        (listing,) = await trainer.directory.listings(RUN, Kind.HOSTS, ["ffn0"], 4 * SPAN)
        assert set(listing) == {1, far}
        assert len(await trainer.directory.hosts(Uid(RUN, f"ffn0.{far}"))) == 1
