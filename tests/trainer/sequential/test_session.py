"""Generation through blocks whose hosts die, over the light network and on virtual time."""

import pytest
import torch
import trio

from p2pnode.errors import ConfigError, NoLiveExpertError, SchemaError
from p2pnode.experts.backend import build_backend
from p2pnode.trainer.sources import CallPolicy
from p2pnode.wire.uids import Uid

POLICY = CallPolicy(timeout=30.0)
LENGTH = 12


@pytest.fixture
def settings(trainer_settings):
    return trainer_settings.replace(hosting={"model": "tiny"}, sequential={"session_positions": 4})


@pytest.fixture
def whole(settings):
    """What the blocks give for all positions at once."""

    def run(hidden, blocks):
        for number in range(blocks):
            (hidden,) = build_backend(Uid("test", f"blocks.{number}"), settings.hosting).forward(
                [hidden]
            )
        return hidden

    return run


@pytest.fixture
def hidden():
    torch.manual_seed(0)
    return torch.randn(2, LENGTH, 64)


def peers(session):
    return [(stage.hop.start, stage.hop.stop, stage.hop.peer_id) for stage in session._stages]


def server_of(servers, session, block):
    (found,) = [peer_id for start, stop, peer_id in peers(session) if block in range(start, stop)]
    return next(server for server in servers if server.host.peer_id == found)


async def test_steps_give_what_the_blocks_give_at_once(
    autojump_clock, lab, settings, whole, hidden
):
    async with lab.open(settings) as swarm:
        servers = [await swarm.serve("blocks.[0:2]"), await swarm.serve("blocks.[2:4]")]
        chain = await lab.chain(swarm, 4)
        async with chain.session(LENGTH, POLICY) as session:
            given = [await session.step(hidden[:, :7])]  # more than are sent at once
            for position in range(7, LENGTH):
                assert session.position == position
                given.append(await session.step(hidden[:, position : position + 1]))
            torch.testing.assert_close(torch.cat(given, 1), whole(hidden, 4))
            assert [server.sessions.budget.sessions for server in servers] == [1, 1]
        await trio.sleep(0.1)
        assert [server.sessions.budget.sessions for server in servers] == [0, 0]


@pytest.mark.parametrize("replacements", [["blocks.[1:3]"], ["blocks.1", "blocks.2"]])
@pytest.mark.parametrize("died_at", [0, 3, 9])
async def test_a_host_that_dies_in_a_session_is_stood_in_for_by_others(
    autojump_clock, lab, replacements, died_at
):
    settings = lab.settings.replace(hosting={"model": "tiny"}, sequential={"session_positions": 4})
    torch.manual_seed(0)
    hidden = torch.randn(1, LENGTH, 64)
    async with lab.open(settings) as swarm:
        await swarm.serve("blocks.0")
        victim = await swarm.serve("blocks.[1:3]")
        await swarm.serve("blocks.3")
        chain = await lab.chain(swarm, 4)
        twin = [build_backend(Uid("test", f"blocks.{n}"), settings.hosting) for n in range(4)]
        expected = hidden
        for backend in twin:
            (expected,) = backend.forward([expected])
        async with chain.session(LENGTH, POLICY) as session:
            given = []
            for position in range(LENGTH):
                if position == died_at:
                    for pattern in replacements:
                        await swarm.serve(pattern)
                    victim.crash()
                given.append(await session.step(hidden[:, position : position + 1]))
            torch.testing.assert_close(torch.cat(given, 1), expected)
            assert len(session._stages) == 2 + len(replacements)


async def test_a_session_goes_back_and_reorders_its_rows_also_after_a_loss(
    autojump_clock, lab, settings, whole, hidden
):
    async with lab.open(settings) as swarm:
        servers = [await swarm.serve("blocks.[0:2]") for _ in range(2)]
        chain = await lab.chain(swarm, 2)
        async with chain.session(LENGTH, POLICY) as session:
            await session.step(hidden[:, :6])
            crossed = torch.cat([hidden[:, :4].flip(0), hidden[:, 4:8]], 1)
            found = await session.step(hidden[:, 4:7], 4, [1, 0])
            torch.testing.assert_close(found, whole(crossed[:, :7], 2)[:, 4:])
            server_of(servers, session, 0).crash()
            found = await session.step(hidden[:, 7:8])
            torch.testing.assert_close(found, whole(crossed, 2)[:, 7:])
            left = server_of(servers, session, 0)
            found = await session.step(hidden[:, 8:9], order=[1, 0])
            straight = torch.cat([crossed.flip(0), hidden[:, 8:9]], 1)
            torch.testing.assert_close(found, whole(straight, 2)[:, 8:])
            assert server_of(servers, session, 0) is left


async def test_a_session_that_its_host_gave_up_is_opened_again_there(
    autojump_clock, lab, settings, whole, hidden
):
    async with lab.open(settings) as swarm:
        server = await swarm.serve("blocks.[0:2]")
        chain = await lab.chain(swarm, 2)
        async with chain.session(LENGTH, POLICY) as session:
            await session.step(hidden[:, :5])
            await trio.sleep(settings.sessions.idle_timeout + 1)
            assert server.sessions.budget.sessions == 0
            found = await session.step(hidden[:, 5:6])
            torch.testing.assert_close(found, whole(hidden[:, :6], 2)[:, 5:])
            assert chain._client.book.recorder.snapshot().failed_calls == 0


async def test_a_cancelled_step_is_made_again_from_what_was_sent(
    autojump_clock, lab, settings, whole, hidden
):
    async with lab.open(settings, delay=lambda *_: 0.05) as swarm:
        await swarm.serve("blocks.[0:2]")
        chain = await lab.chain(swarm, 2)
        async with chain.session(LENGTH, POLICY) as session:
            await session.step(hidden[:, :5])
            with trio.move_on_after(0.02):
                await session.step(hidden[:, 5:6])
            assert session.position == 5
            found = await session.step(hidden[:, 5:6])
            torch.testing.assert_close(found, whole(hidden[:, :6], 2)[:, 5:])


async def test_what_does_not_fit_is_refused_and_the_session_goes_on(
    autojump_clock, lab, settings, hidden
):
    async with lab.open(settings) as swarm:
        await swarm.serve("blocks.0")
        chain = await lab.chain(swarm, 1)
        async with chain.session(4, POLICY) as session:
            for tensor, position, sentence in [
                (hidden[:, 0], None, "rows, positions"),
                (hidden[:, :0], None, "rows, positions"),
                (hidden[:, :5], None, "opened for 4"),
                (hidden[:, :1], 1, "begins between 0 and 0"),
                (hidden[:, :1].double(), None, "float64"),
            ]:
                with pytest.raises(SchemaError, match=sentence):
                    await session.step(tensor, position)
            await session.step(hidden[:, :4])
        async with chain.session(513, POLICY) as session:
            with pytest.raises(SchemaError, match="at most 512"):
                await session.step(hidden[:, :1])


async def test_a_session_that_could_not_be_replayed_is_refused(
    autojump_clock, lab, settings, hidden
):
    settings = settings.replace(sequential={"kept_bytes": 1000})
    async with lab.open(settings) as swarm:
        await swarm.serve("blocks.0")
        chain = await lab.chain(swarm, 1)
        async with chain.session(LENGTH, POLICY) as session:
            with pytest.raises(ConfigError, match="kept_bytes"):
                await session.step(hidden[:, :1])


async def test_a_session_without_a_live_host_is_a_typed_error(
    autojump_clock, lab, settings, hidden
):
    async with lab.open(settings) as swarm:
        await swarm.serve()
        last = await swarm.serve("blocks.0")
        chain = await lab.chain(swarm, 1)
        async with chain.session(LENGTH, POLICY) as session:
            await session.step(hidden[:, :1])
            last.crash()
            with pytest.raises(NoLiveExpertError, match=r"no live host of blocks\.0 is known"):
                await session.step(hidden[:, 1:2])


async def test_sessions_with_a_host_that_has_died_are_closed_without_a_word(
    autojump_clock, lab, settings, hidden
):
    async with lab.open(settings) as swarm:
        servers = [await swarm.serve("blocks.0"), await swarm.serve("blocks.1")]
        chain = await lab.chain(swarm, 2)
        async with chain.session(LENGTH, POLICY) as session:
            await session.step(hidden[:, :1])
            servers[0].crash()
        await trio.sleep(0.1)
        assert servers[1].sessions.budget.sessions == 0


async def test_a_session_waits_for_a_block_that_training_has_lost(
    autojump_clock, lab, settings, hidden
):
    async with lab.open(settings) as swarm:
        await swarm.serve()
        lost = await swarm.serve("blocks.0")
        chain = await lab.chain(swarm, 1)
        await lab.forward(chain, hidden)
        lost.crash()
        async with chain.session(LENGTH, POLICY) as session, trio.open_nursery() as nursery:
            nursery.start_soon(session.step, hidden[:, :1])
            await trio.sleep(3)
            await swarm.serve("blocks.0")


@pytest.mark.parametrize("codec", ["float16", "blockwise-int8"])
async def test_a_chains_codec_is_that_of_its_sessions_also_when_they_are_replayed(
    autojump_clock, lab, whole, hidden, codec
):
    settings = lab.settings.replace(hosting={"model": "tiny"}, sequential={"session_positions": 4})
    async with lab.open(settings) as swarm:
        servers = [await swarm.serve("blocks.[0:2]") for _ in range(2)]
        chain = await lab.chain(swarm, 2)
        async with chain.session(LENGTH, CallPolicy(timeout=30.0, codec=codec)) as session:
            found = [await session.step(hidden[:, :6])]
            server_of(servers, session, 0).crash()
            found.append(await session.step(hidden[:, 6:]))
            exact = whole(hidden, 2)
            error = (torch.cat(found, 1) - exact).abs().max()
            assert 0 < error < 0.05 * exact.abs().max()


@pytest.mark.parametrize("end", ["leave", "drain", "pause"])
async def test_a_session_goes_on_elsewhere_when_its_host_leaves_in_order(
    autojump_clock, lab, whole, hidden, end
):
    settings = lab.settings.replace(hosting={"model": "tiny"})
    async with lab.open(settings) as swarm:
        await swarm.serve()
        first = await swarm.serve("blocks.[0:2]")
        chain = await lab.chain(swarm, 2)
        async with chain.session(LENGTH, POLICY) as session:
            await session.step(hidden[:, :5])
            uids = first.experts.uids
            if end == "leave":
                await first.experts.remove(uids)
                first.sessions.end(uids)
            elif end == "drain":
                await first.experts.drain()
            else:
                first.experts.pause()
                first.sessions.end_all()
            second = []

            async def serve_later():
                await trio.sleep(4)  # the index names nobody else until then
                second.append(await swarm.serve("blocks.[0:2]"))

            swarm.nursery.start_soon(serve_later)
            found = await session.step(hidden[:, 5:6])
            torch.testing.assert_close(found, whole(hidden[:, :6], 2)[:, 5:])
            assert {peer_id for _, _, peer_id in peers(session)} == {second[0].host.peer_id}
