import contextlib
import dataclasses
import errno
import os

import pytest
import trio

from p2pnode.config import RpcSettings
from p2pnode.errors import (
    NotAMemberError,
    PermissionDeniedError,
    StorageError,
    TransferError,
    UnknownExpertError,
)
from p2pnode.host import PeerMisbehaved
from p2pnode.security.tokens import Membership, RunKey, issue_invite
from p2pnode.swarm.gossip.reputation import Offence, OffenceSeen
from p2pnode.swarm.weights.client import WeightsFetched
from p2pnode.swarm.weights.files import StateFile
from p2pnode.swarm.weights.messages import MAX_MESSAGE_BYTES, ChunkRequest
from p2pnode.swarm.weights.server import WeightsGiven
from p2pnode.swarm.weights.transfer import BUFFERS
from p2pnode.wire.uids import Uid

RUN = Membership.open("test")
UID = Uid(RUN.run_id, "ffn.0")
KEY = RunKey.from_bytes(bytes(range(32)))
CHUNK = 16 * 1024  # more than a manifest
MANIFEST_ROOM = CHUNK // 2


async def test_a_state_arrives_as_it_was_with_optimiser_and_applied_calls(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders() as net:
        one, two = await net.add(), await net.add()
        sent = make_checkpoint()
        await one.has(sent)
        with two.host.events.subscribe(WeightsFetched) as fetched:
            head = await two.client.head(one.peer_id, UID)
            state = await two.client.fetch(UID, head.name, [one.peer_id])
            event = await fetched.get()
        assert is_same(await two.store.load(state), sent)
        assert (head.steps, event.steps, event.bytes, event.reused) == (3, 3, head.size, 0)
        # Who has fetched it gives it, too.
        three = await net.add()
        again = await three.client.fetch(UID, head.name, [two.peer_id])
        assert is_same(await three.store.load(again), sent)


async def test_several_holders_each_give_a_part_and_nothing_comes_twice(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders(delay=(0.01, 0.05)) as net:
        sources = [await net.add() for _ in range(3)]
        for each in sources:
            name = await each.has(make_checkpoint())
        given = {each.peer_id: [] for each in sources}
        for each in sources:
            each.host.events.on(WeightsGiven, given[each.peer_id].append)
        taker = await net.add()
        state = await taker.client.fetch(UID, name, [each.peer_id for each in sources])
        assert is_same(await taker.store.load(state), make_checkpoint())
        await trio.sleep(1)
        chunks = [sum(event.chunks for event in events) for events in given.values()]
        assert sum(chunks) == len(state.manifest.chunks)
        assert min(chunks) >= 5


async def test_those_who_fetch_at_the_same_time_serve_each_other(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders(delay=(0.01, 0.05)) as net:
        source = await net.add(max_upload_rate=20_000)
        name = await source.has(make_checkpoint())
        takers = [await net.add(busy_pause=0.1) for _ in range(4)]
        given = []
        source.host.events.on(WeightsGiven, given.append)
        everybody = [source.peer_id, *(each.peer_id for each in takers)]

        async def fetch(taker):
            others = [peer_id for peer_id in everybody if peer_id != taker.peer_id]
            with trio.fail_after(600):
                while True:
                    with contextlib.suppress(TransferError):
                        state = await taker.client.fetch(UID, name, others)
                        break
                    await trio.sleep(0.1)
            assert is_same(await taker.store.load(state), make_checkpoint())

        async with trio.open_nursery() as nursery:
            for each in takers:
                nursery.start_soon(fetch, each)
        await trio.sleep(40)
        assert sum(event.bytes for event in given) < 2.3 * state_bytes(source, name)


async def test_who_fetches_later_is_served_by_who_fetches_as_soon_as_that_has_a_chunk(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders(delay=(0.01, 0.01)) as net:
        source = await net.add(max_upload_rate=10_000, max_uploads=1)
        name = await source.has(make_checkpoint())
        first, second = await net.add(), await net.add(busy_tries=3)
        ended = {}

        async def fetch(taker, *peers):
            state = await taker.client.fetch(UID, name, [each.peer_id for each in peers])
            ended[taker.peer_id] = trio.current_time()
            assert is_same(await taker.store.load(state), make_checkpoint())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, first, source)
            await trio.sleep(0.3)
            nursery.start_soon(fetch, second, source, first)  # the source has no place for it
        # It asks for a chunk when it hears of it, and does not look once a second.
        assert 0 <= ended[second.peer_id] - ended[first.peer_id] < 0.3


async def test_who_fetches_says_with_each_chunk_what_else_it_has_by_now(
    holders, make_checkpoint, autojump_clock
):
    async with holders(delay=(0.01, 0.01)) as net:
        source = await net.add(max_upload_rate=10_000)
        name = await source.has(make_checkpoint())
        first, second = await net.add(), await net.add()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.client.fetch, UID, name, [source.peer_id])
            async with second.client.session(first.peer_id, UID.run) as session:
                known = await session.have(name, within=5)
                assert known.bit_count() == 1
                began = trio.current_time()
                more = await session.have(name, beyond=1, within=5)
                assert more.bit_count() == 2
                assert trio.current_time() - began < 0.2  # not only after the five seconds
                await trio.sleep(0.5)
                index = known.bit_length() - 1
                buffer = memoryview(bytearray(1024))[: source_chunk(source, name, index)]
                news = []
                for _ in range(2):
                    await session.ask(ChunkRequest(name=name, index=index))
                    news.append(await session.chunk(buffer))
                assert news[0] & more == more
                assert news[0].bit_count() >= 6
                assert news[1] in {None, first.store.find(name).have}
            nursery.cancel_scope.cancel()


def source_chunk(holder, name, index):
    return holder.store.find(name).manifest.span(index)[1]


def state_bytes(holder, name):
    return holder.store.find(name).manifest.size


async def test_of_two_holders_one_that_dies_in_the_middle_costs_nothing_but_what_it_had_to_send(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders(delay=(0.02, 0.02)) as net:
        one, other = await net.add(max_upload_rate=20_000), await net.add(max_upload_rate=20_000)
        for each in (one, other):
            name = await each.has(make_checkpoint())
        taker = await net.add()
        states = []

        async def fetch():
            states.append(await taker.client.fetch(UID, name, [one.peer_id, other.peer_id]))

        with taker.host.events.subscribe(WeightsFetched) as fetched:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch)
                await trio.sleep(0.7)
                net.world.kill(one.host)
            event = await fetched.get()
        (state,) = states
        assert is_same(await taker.store.load(state), make_checkpoint())
        assert event.bytes == state.manifest.size  # nothing came twice
        assert event.seconds < 2.5  # and nobody waited for the dead one


async def test_only_changed_chunks_travel(holders, make_checkpoint, is_same, autojump_clock):
    async with holders() as net:
        one, two = await net.add(), await net.add()
        name = await one.has(make_checkpoint())
        await two.client.fetch(UID, name, [one.peer_id])
        newer = make_checkpoint(steps=4)
        newer.state.tensors["module.weight"][-1] += 1
        name = await one.has(newer)
        with two.host.events.subscribe(WeightsFetched) as fetched:
            state = await two.client.fetch(UID, name, [one.peer_id])
            event = await fetched.get()
        assert is_same(await two.store.load(state), newer)
        assert event.bytes <= 3 * 1024  # the weight, and the number of steps


async def test_a_holder_of_wrong_chunks_is_reported_and_the_others_give_what_it_should(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders(delay=(0.01, 0.01)) as net:
        good, bad, taker = await net.add(), await net.add(), await net.add()
        for each in (good, bad):
            name = await each.has(make_checkpoint())
        path = next(bad.directory.glob("*.state"))
        data = bytearray(path.read_bytes())
        data[::1024] = bytes(byte ^ 1 for byte in data[::1024])
        path.write_bytes(data)
        given = []
        bad.host.events.on(WeightsGiven, given.append)
        with taker.host.events.subscribe(OffenceSeen) as reports:
            state = await taker.client.fetch(UID, name, [bad.peer_id, good.peer_id])
            report = await reports.get()
        assert (report.peer_id, report.offence) == (bad.peer_id, Offence.WRONG_CHUNK)
        assert "is not what its hash says" in report.reason
        assert is_same(await taker.store.load(state), make_checkpoint())
        await trio.sleep(1)
        (session,) = given  # it was asked for a few chunks ahead, and never again
        assert session.chunks <= 8 < len(state.manifest.chunks) // 4
        with pytest.raises(TransferError, match="did not come whole"):
            await (await net.add()).client.fetch(UID, name, [bad.peer_id])


async def test_a_holder_of_a_wrong_manifest_is_reported_and_the_next_one_is_asked(
    holders, make_checkpoint, is_same, autojump_clock, monkeypatch
):
    async with holders() as net:
        good, bad, taker = await net.add(), await net.add(), await net.add()
        for each in (good, bad):
            name = await each.has(make_checkpoint())
        found = bad.store.find(name)
        false = dataclasses.replace(found.manifest, steps=99)
        monkeypatch.setattr(bad.store, "find", lambda _: dataclasses.replace(
            found, file=StateFile(bad.directory, false)
        ))  # fmt: skip
        with taker.host.events.subscribe(OffenceSeen) as reports:
            state = await taker.client.fetch(UID, name, [bad.peer_id, good.peer_id])
            report = await reports.get()
        assert (report.peer_id, report.offence) == (bad.peer_id, Offence.WRONG_CHUNK)
        assert is_same(await taker.store.load(state), make_checkpoint())


async def test_a_fetch_goes_on_where_its_holder_was_lost(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders(delay=(0.02, 0.02)) as net:
        first, taker = await net.add(max_upload_rate=10_000), await net.add()
        name = await first.has(make_checkpoint())
        outcome = []

        async def fetch():
            with pytest.raises(TransferError) as raised:
                await taker.client.fetch(UID, name, [first.peer_id])
            outcome.append(raised.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch)
            await trio.sleep(2)
            net.world.kill(first.host)
        assert str(first.peer_id) in str(outcome[0])
        part = taker.store.find(name)
        assert 0 < part.have.bit_count() < len(part.manifest.chunks)
        second = await net.add()
        await second.has(make_checkpoint())
        with taker.host.events.subscribe(WeightsFetched) as fetched:
            state = await taker.client.fetch(UID, name, [second.peer_id])
            event = await fetched.get()
        assert event.reused >= 15
        assert event.bytes < state.manifest.size
        assert is_same(await taker.store.load(state), make_checkpoint())


async def test_a_cancelled_fetch_goes_on_in_the_next_process(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders(delay=(0.02, 0.02)) as net:
        source, taker = await net.add(max_upload_rate=10_000), await net.add()
        name = await source.has(make_checkpoint())
        with trio.move_on_after(2) as scope:
            await taker.client.fetch(UID, name, [source.peer_id])
        assert scope.cancelled_caught
        await taker.store.close()
        again = await net.add()
        for path in taker.directory.iterdir():
            again.directory.mkdir(exist_ok=True)
            (again.directory / path.name).write_bytes(path.read_bytes())
        # What is on the disk is not believed: a damaged chunk comes anew.
        path = next(again.directory.glob("*.state"))
        (again.directory / "rubbish").touch()
        await again.store.open()
        assert not (again.directory / "rubbish").exists()
        data = bytearray(path.read_bytes())
        verified = [at for at in range(0, len(data), 1024) if any(data[at : at + 1024])]
        data[verified[0]] ^= 1
        path.write_bytes(data)
        with again.host.events.subscribe(WeightsFetched) as fetched:
            state = await again.client.fetch(UID, name, [source.peer_id])
            event = await fetched.get()
        assert 0 < event.reused == len(verified) - 1
        assert is_same(await again.store.load(state), make_checkpoint())


async def test_a_full_disk_is_told_before_anything_travels_and_leaves_nothing(
    holders, make_checkpoint, autojump_clock, monkeypatch
):
    async with holders() as net:
        source, taker = await net.add(), await net.add()
        name = await source.has(make_checkpoint())

        def full(*_arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(StorageError, match=r"No space left.*make room"):
            await taker.client.fetch(UID, name, [source.peer_id])
        assert list(taker.directory.iterdir()) == []


async def test_a_disk_that_fails_in_the_middle_leaves_nothing(
    holders, make_checkpoint, autojump_clock, monkeypatch
):
    async with holders() as net:
        source, taker = await net.add(), await net.add()
        name = await source.has(make_checkpoint())
        write, left = StateFile.write, iter(range(3))

        def fail(self, places, data):
            if next(left, None) is None:
                raise StorageError("the disk is full")
            write(self, places, data)

        monkeypatch.setattr(StateFile, "write", fail)
        with pytest.raises(StorageError, match="the disk is full"):
            await taker.client.fetch(UID, name, [source.peer_id])
        assert taker.store.find(name) is None
        assert list(taker.directory.iterdir()) == []


async def test_where_the_system_cannot_say_what_is_in_memory_chunks_are_read_in_the_worker(
    holders, make_checkpoint, is_same, autojump_clock, monkeypatch
):
    async with holders() as net:
        source, taker = await net.add(), await net.add()
        name = await source.has(make_checkpoint())
        inline = StateFile.read_cached
        found = []

        def noted(self, buffer, offset):
            found.append(inline(self, buffer, offset))
            return found[-1]

        monkeypatch.setattr(StateFile, "read_cached", noted)
        monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
        state = await taker.client.fetch(UID, name, [source.peer_id])
        assert is_same(await taker.store.load(state), make_checkpoint())
        assert len(found) == len(state.manifest.chunks)
        assert not any(found)


async def test_a_holder_whose_file_was_cut_off_says_so_and_is_not_accused(
    holders, make_checkpoint, autojump_clock
):
    async with holders() as net:
        source, taker = await net.add(), await net.add()
        name = await source.has(make_checkpoint())
        os.truncate(next(source.directory.glob("*.state")), 5000)
        with taker.host.events.subscribe(PeerMisbehaved) as reports:
            with pytest.raises(TransferError, match="shorter than it should be"):
                await taker.client.fetch(UID, name, [source.peer_id])
            with trio.move_on_after(1):
                pytest.fail(str(await reports.get()))


async def test_versions_are_made_only_when_an_expert_has_stepped_and_not_too_often(
    holders, make_checkpoint, autojump_clock
):
    async with holders() as net:
        one, two = await net.add(snapshot_interval=1.0, versions_kept=2), await net.add()
        one.experts.states[UID] = make_checkpoint(1)
        assert (await two.client.head(one.peer_id, UID)).steps == 1
        one.experts.states[UID] = make_checkpoint(2)
        assert (await two.client.head(one.peer_id, UID)).steps == 1
        await trio.sleep(1)
        assert (await two.client.head(one.peer_id, UID)).steps == 2
        await trio.sleep(5)
        assert (await two.client.head(one.peer_id, UID)).steps == 2
        assert one.experts.snapshots == 2
        for steps in (3, 4, 5):
            await one.has(make_checkpoint(steps))
        assert len(list(one.directory.glob("*.state"))) == 2


async def test_a_version_that_is_being_read_stays_whatever_newer_ones_come(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders() as net:
        source, taker = await net.add(max_upload_rate=10_000, versions_kept=1), await net.add()
        name = await source.has(make_checkpoint())

        async def step():
            for steps in range(4, 7):
                await trio.sleep(0.5)
                await source.has(make_checkpoint(steps, seed=steps))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(step)
            state = await taker.client.fetch(UID, name, [source.peer_id])
        assert is_same(await taker.store.load(state), make_checkpoint())


@pytest.mark.parametrize("limited", ["source", "taker"])
async def test_a_throttle_holds_from_its_beginning_to_its_end(
    holders, make_checkpoint, autojump_clock, limited
):
    async with holders() as net:
        limits = {"source": {"max_upload_rate": 10_000}, "taker": {"max_download_rate": 10_000}}
        sources = [await net.add(**limits[limited] if limited == "source" else {})]
        if limited == "taker":  # several sources give no more
            sources.append(await net.add())
        for each in sources:
            name = await each.has(make_checkpoint())
        taker = await net.add(**limits[limited] if limited == "taker" else {})
        with taker.host.events.subscribe(WeightsFetched) as fetched:
            state = await taker.client.fetch(UID, name, [each.peer_id for each in sources])
            event = await fetched.get()
        seconds = state.manifest.size / 10_000
        ahead = 4 * 1024 / 10_000  # what each holder is asked for first
        assert seconds - ahead * (len(sources) + 1) <= event.seconds <= seconds + 0.5


async def test_more_uploads_than_allowed_are_refused_and_served_later(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders() as net:
        source = await net.add(max_uploads=1, max_upload_rate=10_000)
        name = await source.has(make_checkpoint())
        takers = [await net.add() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for each in takers:
                nursery.start_soon(each.client.fetch, UID, name, [source.peer_id])
        for each in takers:
            assert is_same(await each.store.load(each.store.find(name)), make_checkpoint())
        impatient = await net.add(busy_tries=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon((await net.add()).client.fetch, UID, name, [source.peer_id])
            await trio.sleep(0.5)
            with pytest.raises(TransferError, match="sends enough states now"):
                await impatient.client.fetch(UID, name, [source.peer_id])


def member(host, *scopes, name="closed", key=KEY):
    """A membership of a closed run, for a host that is yet to be added."""
    invite = issue_invite(key, name, scopes=scopes, expires_at=2e9)
    return {name: Membership.accept(invite, host)}


async def test_what_a_transfer_holds_is_charged_to_its_peers_and_given_back(
    holders, make_checkpoint, autojump_clock
):
    async with holders(delay=(0.01, 0.05)) as net:
        sources = [await net.add(max_upload_rate=20_000) for _ in range(2)]
        for each in sources:
            name = await each.has(make_checkpoint())
        taker = await net.add()
        seen = {each.peer_id: set() for each in (*sources, taker)}

        async def watch():
            while True:
                for each in (*sources, taker):
                    seen[each.peer_id].add(each.budget.bytes_in_flight)
                await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await taker.client.fetch(UID, name, [each.peer_id for each in sources])
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        chunk = 1024
        assert 2 * chunk in seen[taker.peer_id]  # a buffer for each source
        assert max(seen[taker.peer_id]) <= 2 * BUFFERS * chunk
        for each in sources:
            assert max(seen[each.peer_id]) == MAX_MESSAGE_BYTES + chunk
        budgets = [each.budget for each in (*sources, taker)]
        assert [each.bytes_in_flight for each in budgets] == [0, 0, 0]
        assert [each.calls_in_flight for each in budgets] == [0, 0, 0]


@pytest.mark.parametrize("buffers", [0, 1])
async def test_a_fetch_needs_room_for_one_chunk_of_a_holder(
    buffers, holders, make_checkpoint, is_same, autojump_clock
):
    async with holders(delay=(0.01, 0.05)) as net:
        source, taker = await net.add(chunk_bytes=CHUNK), await net.add(busy_tries=3)
        name = await source.has(make_checkpoint())
        limit = RpcSettings().max_bytes_in_flight_per_peer
        with taker.budget.call(source.peer_id) as others:
            others.add(limit - MANIFEST_ROOM - buffers * CHUNK)
            if buffers:
                state = await taker.client.fetch(UID, name, [source.peer_id])
                assert is_same(await taker.store.load(state), make_checkpoint())
            else:
                with pytest.raises(TransferError, match="memory for what comes from that peer"):
                    await taker.client.fetch(UID, name, [source.peer_id])


async def test_a_holder_without_room_refuses_and_gives_when_it_has_some(
    holders, make_checkpoint, is_same, autojump_clock
):
    async with holders() as net:
        source, taker = await net.add(chunk_bytes=CHUNK), await net.add(busy_pause=0.5)
        name = await source.has(make_checkpoint())
        limit = RpcSettings().max_bytes_in_flight_per_peer
        began = trio.current_time()

        async def be_busy(*, task_status):
            with source.budget.call(taker.peer_id) as others:
                others.add(limit - MANIFEST_ROOM)
                task_status.started()
                await trio.sleep(5)

        async with trio.open_nursery() as nursery:
            await nursery.start(be_busy)
            state = await taker.client.fetch(UID, name, [source.peer_id])
        assert trio.current_time() - began > 5
        assert is_same(await taker.store.load(state), make_checkpoint())


async def test_strangers_get_nothing_and_trainers_the_weights_alone(
    holders, make_checkpoint, autojump_clock
):
    uid = Uid(KEY.run_id, "ffn.0")
    async with holders() as net:
        source = await net.add(lambda host: member(host, "host", "train"))
        name = await source.has(make_checkpoint(), uid)
        stranger = await net.add(lambda host: member(host, "host", key=RunKey.generate()))
        with pytest.raises(NotAMemberError):
            await stranger.client.head(source.peer_id, uid)
        host = await net.add(lambda host: member(host, "host"))
        assert (await host.client.head(source.peer_id, uid)).name == name
        with pytest.raises(UnknownExpertError):
            await host.client.head(source.peer_id, Uid(KEY.run_id, "ffn.1"))
        trainer = await net.add(lambda host: member(host, "train"))
        with pytest.raises(PermissionDeniedError, match="the weights alone"):
            await trainer.client.head(source.peer_id, uid)
        with pytest.raises(PermissionDeniedError):
            await trainer.client.head(source.peer_id, uid, complete=False, follow=5)
        with pytest.raises(TransferError, match="the weights alone"):
            await trainer.client.fetch(uid, name, [source.peer_id])
        head = await trainer.client.head(source.peer_id, uid, complete=False)
        state = await trainer.client.fetch(uid, head.name, [source.peer_id])
        names = [name for name, _ in state.manifest.layout.tensors]
        assert names == ["module.bias", "module.weight"]
        assert head.size < 21_000


async def test_a_state_of_another_run_is_not_given(holders, make_checkpoint, autojump_clock):
    async with holders() as net:
        source = await net.add(lambda host: member(host, "host", "train") | {"test": RUN})
        uid = Uid(KEY.run_id, "ffn.0")
        name = await source.has(make_checkpoint(), uid)
        stranger = await net.add()
        charge = stranger.budget.call(source.peer_id)
        async with stranger.client.session(source.peer_id, RUN.run_id) as session:
            with pytest.raises(UnknownExpertError):
                await session.manifest(name, charge)
            with pytest.raises(UnknownExpertError):
                await session.have(name)


async def test_a_peer_without_experts_is_not_accused(holders, make_checkpoint, autojump_clock):
    async with holders() as net:
        source, taker = await net.add(), await net.add()
        name = await source.has(make_checkpoint())
        source.server.close()
        with taker.host.events.subscribe(PeerMisbehaved) as reports:
            with pytest.raises(TransferError, match="hosts no experts"):
                await taker.client.fetch(UID, name, [source.peer_id])
            with trio.move_on_after(1):
                pytest.fail(str(await reports.get()))


async def test_replicas_learn_of_each_other_and_are_forgotten_when_they_are_silent(
    holders, make_checkpoint, autojump_clock
):
    async with holders() as net:
        source, one, two = [await net.add() for _ in range(3)]
        await source.has(make_checkpoint())
        assert (await one.client.head(source.peer_id, UID, follow=5)).followers == (one.peer_id,)
        head = await two.client.head(source.peer_id, UID, follow=5)
        assert set(head.followers) == {one.peer_id, two.peer_id}
        await trio.sleep(14)
        await two.client.head(source.peer_id, UID, follow=5)
        await trio.sleep(2)
        assert source.server.followers.of(UID, trio.current_time()) == [two.peer_id]
