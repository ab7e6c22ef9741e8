import itertools
from dataclasses import replace

import pytest
import trio
import trio.testing

from p2pnode.clock import wall_time
from p2pnode.config import DhtSettings, HostingSettings
from p2pnode.errors import InvalidUidError
from p2pnode.swarm.announce import (
    JITTER,
    WITHDRAWAL_TIMEOUT,
    Announcer,
    ExpertsAnnounced,
    Proof,
)
from p2pnode.swarm.places import SPAN, Kind
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid, expand

RUN = "open:digits"
CLOSED = "7Zb1"


def _peers(hosts):
    return {host.peer_id for host in hosts}


async def _hosts(directory, prefix, run_id=RUN):
    """Map each coordinate under a prefix to the hosts of the expert there."""
    (listing,) = await directory.listings(run_id, Kind.HOSTS, [prefix], SPAN)
    return listing


async def _branches(directory, prefix):
    """List the coordinates under which something lives."""
    (listing,) = await directory.listings(RUN, Kind.BRANCHES, [prefix], SPAN)
    return set(listing)


async def _grid(directory, block="ffn0"):
    """Map each coordinate pair that is listed to the peers listed there."""
    found = {}
    for row in await _branches(directory, block):
        for column, hosts in (await _hosts(directory, f"{block}.{row}")).items():
            found[row, column] = _peers(hosts)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 5])
async def test_a_trainer_finds_every_expert_of_a_small_swarm(swarm_network, autojump_clock, count):
    async with swarm_network(delay=lambda _a, _b: 0.01) as net:
        nodes = []
        for number in range(count):
            pattern = f"ffn0.[0:4].{number}"
            nodes.append(await net.start(nodes[:1], experts=[pattern]))
        trainer = await net.start(nodes[:1], server=False)
        await trio.sleep(1)
        expected = {(row, n): {nodes[n].peer_id} for row in range(4) for n in range(count)}
        assert await _grid(trainer.directory) == expected
        for node in nodes:
            assert await _grid(node.directory) == expected


async def test_a_first_node_is_found_by_those_who_join_later(swarm_network, autojump_clock):
    async with swarm_network() as net:
        first = await net.start(experts=["blocks.[0:3]"])
        await trio.sleep(60)
        trainer = await net.start([first], server=False)
        children = await _hosts(trainer.directory, "blocks")
        assert {n: _peers(hosts) for n, hosts in children.items()} == {
            n: {first.peer_id} for n in range(3)
        }


async def test_a_uid_hosted_by_several_peers_resolves_to_all_of_them_the_idlest_first(
    swarm_network, autojump_clock
):
    async with swarm_network() as net:
        loads = [5, 0, 3]
        nodes = []
        for load in loads:
            nodes.append(
                await net.start(nodes[:1], experts=["blocks.1"], load=lambda load=load: load)
            )
        trainer = await net.start(nodes[1:2], server=False)
        hosts = await trainer.directory.hosts(Uid(RUN, "blocks.1"))
        assert [host.peer_id for host in hosts] == [nodes[n].peer_id for n in (1, 2, 0)]
        assert [host.load for host in hosts] == [0, 3, 5]
        assert list(hosts[0].addresses) == nodes[1].host.addresses
        assert not await trainer.directory.hosts(Uid(RUN, "blocks.2"))
        assert trainer.host.addresses_of(nodes[2].peer_id) == nodes[2].host.addresses


async def test_a_host_whose_addresses_change_says_so_at_once_and_relayed_ones_first(
    swarm_network, monkeypatch, autojump_clock
):
    async with swarm_network(delay=lambda _a, _b: 0.01) as net:
        host = await net.start(experts=["blocks.1"], hosting=HostingSettings(update_period=600.0))
        await trio.sleep(100)
        relay = PrivateKey.from_seed(bytes(32)).peer_id
        relayed = parse_address(f"/ip4/52.0.0.9/tcp/4001/p2p/{relay}/p2p-circuit")
        announced = [*host.host.addresses, relayed]
        monkeypatch.setattr(type(host.host), "addresses", property(lambda _: announced))
        host.host.note_change()
        await trio.sleep(1)
        trainer = await net.start([host], server=False)
        (found,) = await trainer.directory.hosts(Uid(RUN, "blocks.1"))
        assert list(found.addresses) == [relayed, *announced[:-1]]
        assert found.has_relays
        assert not trainer.directory.needs_relay(found)  # since they are connected directly
        assert trainer.directory.needs_relay(replace(found, peer_id=relay))


@pytest.mark.parametrize(("period", "lifetime"), [(0.5, 3.0), (5.0, 10.0)])
async def test_a_dead_host_disappears_within_its_records_lifetime(
    swarm_network, autojump_clock, period, lifetime
):
    async with swarm_network(delay=lambda _a, _b: 0.01) as net:
        hosting = HostingSettings(update_period=period)
        alive = await net.start(experts=["ffn0.0.[0:2]"], hosting=hosting)
        dead = await net.start([alive], experts=["ffn0.0.[1:3]"], hosting=hosting)
        trainer = await net.start([alive], server=False)
        await trio.sleep(3.7 * period)
        assert set(await _hosts(trainer.directory, "ffn0.0")) == {0, 1, 2}
        died = trio.current_time()
        await dead.crash()
        while 2 in (listed := await _hosts(trainer.directory, "ffn0.0")):
            assert trio.current_time() - died < lifetime
            await trio.sleep(0.1)
        assert trio.current_time() - died <= lifetime + 0.1
        assert {n: _peers(hosts) for n, hosts in listed.items()} == {
            0: {alive.peer_id},
            1: {alive.peer_id},
        }


async def test_live_hosts_never_flicker_also_while_others_are_silent(swarm_network, autojump_clock):
    async with swarm_network(delay=lambda _a, _b: 0.02) as net:
        first = await net.start(experts=["ffn0.0.0"])
        nodes = [await net.start([first], experts=[f"ffn0.0.{n}"]) for n in range(1, 4)]
        trainer = await net.start([first], server=False)

        async def mute(_stream):
            await trio.sleep_forever()

        nodes[2].host.set_handler(DhtSettings().protocol, mute)
        for _ in range(400):
            listed = await _hosts(trainer.directory, "ffn0.0")
            assert {0, 1, 2} <= set(listed)
            await trio.sleep(0.25)


async def test_a_host_that_stops_withdraws_at_once(swarm_network, autojump_clock):
    async with swarm_network() as net:
        staying = await net.start(experts=["ffn0.0.0"])
        leaving = await net.start([staying], experts=["ffn0.0.1", "ffn1.2.3"])
        await leaving.stop()
        trainer = await net.start([staying], server=False)
        assert set(await _hosts(trainer.directory, "ffn0.0")) == {0}
        assert await _hosts(trainer.directory, "ffn1.2") == {}


async def test_experts_may_be_added_and_removed_at_any_time(swarm_network, autojump_clock):
    async with swarm_network() as net:
        node = await net.start(experts=["ffn0.0.[0:2]"])
        other = await net.start([node])
        node.announcer.add(expand("ffn0.[1:3].0", RUN))
        await trio.testing.wait_all_tasks_blocked()
        assert await _branches(other.directory, "ffn0") == {0, 1, 2}
        node.announcer.remove(expand("ffn0.1.0", RUN))
        await trio.testing.wait_all_tasks_blocked()
        trainer = await net.start([other], server=False)
        assert await _branches(trainer.directory, "ffn0") == {0, 1, 2}  # it may be others' too
        assert await _hosts(trainer.directory, "ffn0.1") == {}
        assert set(node.announcer.uids) == set(expand("ffn0.0.[0:2]", RUN)) | {Uid(RUN, "ffn0.2.0")}
        await trio.sleep(2 * HostingSettings().update_period + 0.1)
        assert await _branches(trainer.directory, "ffn0") == {0, 2}


async def test_experts_too_scattered_to_be_announced_are_refused_before_anything_changes(
    swarm_network, autojump_clock, monkeypatch
):
    monkeypatch.setattr("p2pnode.swarm.announce.MAX_PLACES", 4)
    async with swarm_network() as net:
        node = await net.start(experts=["ffn0.0"])
        node.announcer.check([Uid(RUN, f"ffn0.{n * SPAN}") for n in range(4)])
        with pytest.raises(InvalidUidError, match="neighbouring"):
            node.announcer.add([Uid(RUN, f"ffn0.{n * SPAN}") for n in range(5)])
        assert node.announcer.uids == {Uid(RUN, "ffn0.0")}


async def test_an_announcer_without_peers_says_so_and_goes_on(swarm_network, autojump_clock):
    async with swarm_network() as net:
        node = await net.start(server=False)
        with node.host.events.subscribe(ExpertsAnnounced) as events:
            node.announcer.add(expand("ffn0.0", RUN))
            event = await events.get()
            assert (event.records, len(event.failures)) == (1, 1)
            assert "ffn0" in event.failures[0]
            other = await net.start()
            await node.dht.bootstrap([(other.peer_id, other.host.addresses[0])])
            await trio.sleep(HostingSettings().update_period + 0.1)
        assert set(await _hosts(other.directory, "ffn0")) == {0}


async def test_announcements_end_with_the_membership(swarm_network, autojump_clock):
    async with swarm_network() as net:
        key = PrivateKey.from_seed(b"\7" * 32)
        expires = wall_time() + 30
        proof = Proof(f"{CLOSED} {key.peer_id} {expires}".encode(), expires)
        first = await net.start()
        node = await net.start(
            [first], key=key, run_id=CLOSED, experts=["ffn0.0"], proof_of=lambda _run: proof
        )
        await trio.sleep(29)
        (host,) = (await _hosts(first.directory, "ffn0", CLOSED))[0]
        assert host.expiry <= expires
        with node.host.events.subscribe(ExpertsAnnounced) as events:
            await trio.sleep(6)
            assert "expired" in (await events.get()).failures[0]
        assert await _hosts(first.directory, "ffn0", CLOSED) == {}


async def test_an_outsider_cannot_announce_in_a_closed_run(swarm_network, autojump_clock):
    async with swarm_network() as net:
        first = await net.start()
        node = await net.start([first], run_id=CLOSED)
        with node.host.events.subscribe(ExpertsAnnounced) as events:
            node.announcer.add(expand("ffn0.0", CLOSED))
            (failure,) = (await events.get()).failures
        assert "no membership" in failure
        assert await _hosts(first.directory, "ffn0", CLOSED) == {}


async def test_withdrawing_is_bounded_when_nobody_answers(swarm_network, autojump_clock):
    async with swarm_network() as net:
        first = await net.start()
        key = PrivateKey.from_seed(b"\7" * 32)
        node = await net.start([first], key=key, server=False)
        announcer = Announcer(node.host, node.dht, key)
        announcer.add(expand("ffn0.0", RUN))
        async with trio.open_nursery() as nursery:
            await nursery.start(announcer.run)
            await trio.testing.wait_all_tasks_blocked()
            assert set(await _hosts(first.directory, "ffn0")) == {0}

            async def mute(_stream):
                await trio.sleep_forever()

            first.host.set_handler(DhtSettings().protocol, mute)
            for connection in first.host.connections():
                for stream in list(connection._streams):
                    stream.reset()
            before = trio.current_time()
            nursery.cancel_scope.cancel()
        assert 0 < trio.current_time() - before <= WITHDRAWAL_TIMEOUT


async def test_after_a_restart_what_is_said_anew_counts_and_the_rest_expires(
    swarm_network, autojump_clock
):
    async with swarm_network() as net:
        first = await net.start()
        key = PrivateKey.from_seed(b"\7" * 32)
        node = await net.start([first], key=key, experts=["ffn0.[0:2]"])
        await node.crash()
        await trio.sleep(1)
        await net.start([first], key=key, experts=["ffn0.[1:3]"])
        restarted = wall_time()
        assert set(await _hosts(first.directory, "ffn0")) == {0, 1, 2}
        assert (await _hosts(first.directory, "ffn0"))[1][0].expiry == restarted + 10
        await trio.sleep(9)
        assert set(await _hosts(first.directory, "ffn0")) == {1, 2}


async def test_a_steady_swarm_costs_few_requests(swarm_network, autojump_clock):
    async with swarm_network(delay=lambda _a, _b: 0.005) as net:
        nodes = []
        for number in range(4):
            patterns = [f"ffn0.{number}.[0:4]", f"ffn1.{number}.[0:4]"]
            nodes.append(await net.start(nodes[:1], experts=patterns))
        trainer = await net.start(nodes[:1], server=False)
        await trio.sleep(30)
        counts = []
        for node in nodes:
            core = node.dht._core

            def counted(sender, request, *rest, original=core.receive_request):
                counts.append(request.type.name)
                return original(sender, request, *rest)

            core.receive_request = counted
        for _ in range(200):  # ten seconds of training steps
            for block in ("ffn0", "ffn1"):
                assert len(await _grid(trainer.directory, block)) == 16
            await trio.sleep(0.05)
        # Each host has 4 records to put at 3 others every 4 to 5 s; the trainer has 10 records,
        # each asked for by two requests every 2.5 to 5 s.
        assert counts.count("PUT_VALUE") <= 4 * 4 * 3 * 3
        assert counts.count("GET_VALUE") <= 10 * 2 * 5
        assert counts.count("FIND_NODE") == 0


async def test_announcing_is_cancelled_cleanly(swarm_network, autojump_clock):
    async with swarm_network(delay=lambda _a, _b: 0.1) as net:
        first = await net.start()
        key = PrivateKey.from_seed(b"\7" * 32)
        node = await net.start([first], key=key)
        other = Announcer(node.host, node.dht, key)
        other.add(expand("ffn0.0", RUN))
        tasks = node.dht.busy
        with trio.move_on_after(0.05) as scope:
            await other.announce()
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert node.dht.busy == tasks


async def test_a_round_longer_than_the_period_still_reaches_every_record(
    swarm_network, autojump_clock, monkeypatch
):
    period, records = 2.0, 48
    async with swarm_network() as net:
        node = await net.start()
        put_many = node.dht.put_many

        async def slowly(values, *, copies):
            await trio.sleep(period * 3)
            return await put_many(values, copies=copies)

        monkeypatch.setattr(node.dht, "put_many", slowly)
        settings = HostingSettings(update_period=period)
        announcer = Announcer(node.host, node.dht, PrivateKey.from_seed(bytes(32)), settings)
        announcer.add([Uid(RUN, f"b{number}.0") for number in range(records)])
        async with trio.open_nursery() as nursery:
            await nursery.start(announcer.run)
            with trio.fail_after(60), node.host.events.subscribe(ExpertsAnnounced) as rounds:
                event = await rounds.get()
            assert (event.records, event.failures) == (records, ())
            nursery.cancel_scope.cancel()


async def test_only_what_has_changed_is_announced_before_its_time(swarm_network, autojump_clock):
    async with swarm_network() as net:
        node = await net.start(experts=["ffn0.0.[0:4]"])
        with node.host.events.subscribe(ExpertsAnnounced) as rounds:
            await trio.sleep(1)
            node.announcer.add(expand("ffn1.0", RUN))
            await trio.testing.wait_all_tasks_blocked()
            assert (await rounds.get()).records == 1
            node.announcer.remove(expand("ffn0.0.0", RUN))
            await trio.testing.wait_all_tasks_blocked()
            assert (await rounds.get()).records == 1  # the row; its branch lives on
            changed = trio.current_time()
            await rounds.get()
            period = HostingSettings().update_period
            assert trio.current_time() - changed < period


async def test_renewals_come_before_an_update_period_has_passed_and_not_in_step(
    swarm_network, autojump_clock
):
    period = HostingSettings().update_period
    async with swarm_network() as net:
        first = await net.start()
        nodes = [await net.start([first], experts=[f"ffn0.{n}"]) for n in range(4)]
        moments = [[], [], [], []]
        for node, seen in zip(nodes, moments, strict=True):
            node.host.events.on(
                ExpertsAnnounced, lambda _event, seen=seen: seen.append(trio.current_time())
            )
        await trio.sleep(10 * period)
        for seen in moments:
            gaps = [after - before for before, after in itertools.pairwise(seen)]
            assert period * (1 - JITTER) <= min(gaps) <= max(gaps) <= period
            assert max(gaps) - min(gaps) > 0.05 * period
        assert len({round(seen[-1], 3) for seen in moments}) == 4


async def test_what_was_removed_while_it_was_announced_is_withdrawn(
    swarm_network, autojump_clock, monkeypatch
):
    async with swarm_network(delay=lambda _a, _b: 0.5) as net:
        first = await net.start()
        node = await net.start([first], experts=["ffn0.[0:2]"])
        await trio.sleep(0.1)  # the announcement is on its way
        node.announcer.remove(expand("ffn0.[0:2]", RUN))
        await trio.sleep(10)
        assert await _hosts(first.directory, "ffn0") == {}


async def test_what_is_wrong_in_one_run_does_not_keep_others_from_being_announced(
    swarm_network, autojump_clock
):
    async with swarm_network() as net:
        first = await net.start()
        node = await net.start([first])
        with node.host.events.subscribe(ExpertsAnnounced) as rounds:
            node.announcer.add([*expand("ffn0.0", CLOSED), *expand("ffn0.0", RUN)])
            assert len((await rounds.get()).failures) == 1
        assert set(await _hosts(first.directory, "ffn0")) == {0}


async def test_what_was_cut_off_while_it_was_announced_is_still_due(
    swarm_network, autojump_clock, monkeypatch
):
    async with swarm_network() as net:
        first = await net.start()
        key = PrivateKey.from_seed(b"\7" * 32)
        node = await net.start([first], key=key, server=False)
        announcer = Announcer(node.host, node.dht, key)
        announcer.add(expand("ffn0.0", RUN))
        await announcer.announce()
        announcer.remove(expand("ffn0.0", RUN))

        async def hang(_values, *, copies):
            await trio.sleep_forever()

        with monkeypatch.context() as stuck, trio.move_on_after(1) as scope:
            stuck.setattr(node.dht, "put_many", hang)
            await announcer.announce()
        assert scope.cancelled_caught
        await announcer.announce()
        assert await _hosts(first.directory, "ffn0") == {}


async def test_what_is_being_loaded_is_listed_apart_and_is_not_hosted(
    swarm_network, autojump_clock
):
    async def loading(fresh=True):
        (listing,) = await watcher.directory.listings(
            RUN, Kind.LOADING, ["blocks"], SPAN, fresh=fresh
        )
        return {coordinate: _peers(hosts) for coordinate, hosts in listing.items()}

    async with swarm_network(delay=lambda _a, _b: 0.01) as net:
        node = await net.start(experts=["blocks.0"], throughput=lambda: 7.0)
        watcher = await net.start([node])
        node.announcer.set_loading(expand("blocks.[1:3]", RUN))
        await trio.sleep(1)
        assert await loading() == {1: {node.peer_id}, 2: {node.peer_id}}
        assert set(await _hosts(watcher.directory, "blocks")) == {0}
        await trio.sleep(60)  # it may take long
        assert set(await loading()) == {1, 2}
        node.announcer.add(expand("blocks.[1:3]", RUN))
        node.announcer.set_loading([])
        await trio.sleep(1)
        assert await loading() == {}
        (listing,) = await watcher.directory.listings(RUN, Kind.HOSTS, ["blocks"], SPAN, fresh=True)
        assert sorted(listing) == [0, 1, 2]
        assert listing[2][0].throughput == pytest.approx(7.0, rel=0.025)


async def test_a_suspended_host_is_not_listed_until_it_goes_on(swarm_network, autojump_clock):
    async with swarm_network() as net:
        node = await net.start(experts=["ffn.[0:2]"])
        trainer = await net.start([node], server=False)
        await trio.sleep(1)
        assert set(await _hosts(trainer.directory, "ffn")) == {0, 1}
        node.announcer.suspend()
        node.announcer.remove([Uid(RUN, "ffn.1")])
        node.announcer.add([Uid(RUN, "ffn.2")])
        await trio.sleep(20)
        assert await _hosts(trainer.directory, "ffn") == {}
        assert node.announcer.uids == {Uid(RUN, "ffn.0"), Uid(RUN, "ffn.2")}
        node.announcer.go_on()
        await trio.sleep(20)
        assert set(await _hosts(trainer.directory, "ffn")) == {0, 2}
