"""A side that lets the peer propose a protocol, and proposes it itself when the peer does not."""

import pytest
import trio
import trio.testing

from p2pnode.errors import NegotiationError
from p2pnode.mux.multistream import select_either, select_inbound, select_outbound
from p2pnode.mux.multistream.core import HEADER, encode_line

PATIENCE = 0.5


async def agree(ours, theirs):
    """Run both sides; returns what each one says."""
    said = [None, None]

    async def note(place, side):
        said[place] = await side

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, 0, ours)
            nursery.start_soon(note, 1, theirs)
    return said


async def test_it_takes_the_proposal_of_a_peer_that_makes_one(autojump_clock):
    here, there = trio.testing.memory_stream_pair()
    said = await agree(
        select_either(here, "/noise", patience=PATIENCE), select_outbound(there, ["/noise"])
    )
    assert said == [False, "/noise"]
    assert trio.current_time() < PATIENCE


async def test_it_proposes_to_a_peer_that_waits_and_reads_no_byte_of_what_follows(autojump_clock):
    here, there = trio.testing.memory_stream_pair()
    said = await agree(
        select_either(here, "/noise", patience=PATIENCE),
        select_inbound(there, "/noise".__eq__),
    )
    assert said == [True, "/noise"]
    await there.send_all(b"the handshake")
    assert await here.receive_some() == b"the handshake"


@pytest.mark.parametrize("pause", [PATIENCE / 2, 3 * PATIENCE])
async def test_a_proposal_that_has_begun_is_waited_for(autojump_clock, pause):
    here, there = trio.testing.memory_stream_pair()
    proposal = encode_line("/noise")

    async def propose_slowly():
        await there.send_all(encode_line(HEADER))
        await trio.sleep(PATIENCE / 2)
        await there.send_all(proposal[:3])
        await trio.sleep(pause)
        await there.send_all(proposal[3:])

    said = await agree(select_either(here, "/noise", patience=PATIENCE), propose_slowly())
    assert said[0] is False


async def test_a_peer_that_has_not_even_greeted_is_waited_for(autojump_clock):
    here, there = trio.testing.memory_stream_pair()

    async def propose_late():
        await trio.sleep(3 * PATIENCE)
        await select_outbound(there, ["/noise"])

    said = await agree(select_either(here, "/noise", patience=PATIENCE), propose_late())
    assert said[0] is False


async def test_another_proposal_is_refused_and_the_next_one_waited_for(autojump_clock):
    here, there = trio.testing.memory_stream_pair()
    said = await agree(
        select_either(here, "/noise", patience=PATIENCE),
        select_outbound(there, ["/tls/1.0.0", "/noise"]),
    )
    assert said == [False, "/noise"]


async def test_a_peer_that_hangs_up_fails_it(autojump_clock):
    here, there = trio.testing.memory_stream_pair()
    await there.send_eof()
    with pytest.raises(NegotiationError):
        await select_either(here, "/noise", patience=PATIENCE)
