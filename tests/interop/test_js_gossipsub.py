"""Two js-libp2p nodes that are not connected hear each other through a peer of ours."""

import secrets

import pytest
import trio

from p2pnode.testing.peer.checks.target import RETRY_INTERVAL
from p2pnode.testing.peer.node import TOPIC

pytestmark = [pytest.mark.real, pytest.mark.interop]

MESSAGES = 20
WITHIN = 60


@pytest.fixture
async def three(target, transport, ours, js, other_js):
    """Both js nodes, connected to our peer alone, and with it in a mesh."""
    with trio.fail_after(WITHIN):
        for each, other in ((js, other_js), (other_js, js)):
            await each("shun", peer=str(other.peer_id))
        await target.connect()
        await ours.network.host.connect(other_js.peer_id, [other_js.address(transport)])
        while not {js.peer_id, other_js.peer_id} <= set(ours.pubsub.mesh_of(TOPIC)):  # noqa: ASYNC110  # in other processes, no event can be waited for
            await trio.sleep(RETRY_INTERVAL)
        for each in (js, other_js):
            while str(ours.network.peer_id) not in await each("subscribers"):  # noqa: ASYNC110  # as above
                await trio.sleep(RETRY_INTERVAL)
    return js, other_js, ours


async def test_each_hears_what_the_other_says(three):
    js, other_js, _ = three
    name = secrets.token_hex(8)
    with trio.fail_after(WITHIN):
        for author, reader in ((js, other_js), (other_js, js)):
            assert await author("connections", peer=str(reader.peer_id)) == 0
            texts = [f"{name} {author.peer_id} {number}" for number in range(MESSAGES)]
            await author("publish", texts=texts)
            assert await reader("hear", texts=texts) == [str(author.peer_id)] * MESSAGES


async def test_we_hear_both_and_both_hear_us(three):
    js, other_js, ours = three
    name = secrets.token_hex(8)
    with trio.fail_after(WITHIN):
        async with ours.pubsub.subscribe(TOPIC) as messages:
            for author in (js, other_js):
                texts = {f"{name} {author.peer_id} {number}" for number in range(MESSAGES)}
                await author("publish", texts=sorted(texts))
                while texts:
                    message = await messages.receive()
                    if message.source == author.peer_id:
                        texts.discard(message.data.decode())
        texts = [f"{name} ours {number}" for number in range(MESSAGES)]
        for text in texts:
            await ours.pubsub.publish(TOPIC, text.encode())
        for reader in (js, other_js):
            assert await reader("hear", texts=texts) == [str(ours.network.peer_id)] * MESSAGES
