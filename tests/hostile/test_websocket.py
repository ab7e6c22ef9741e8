"""What becomes of peers that break the rules of HTTP and WebSocket, against a whole node."""

import re
import tracemalloc

import pytest
import trio

from p2pnode.config import MIB
from p2pnode.host import PeerMisbehaved
from p2pnode.testing.hostile import websockets
from p2pnode.testing.hostile.arena import arena
from p2pnode.transport.websocket.service import UpgradeFailed

pytestmark = pytest.mark.real

QUICK = {"websocket_upgrade_timeout": 0.3, "handshake_timeout": 0.5, "close_timeout": 0.2}
MEMORY = 8 * MIB
UPGRADES = {
    "silence": "longer than",
    "half a request": "longer than",
    "garbage": "longer than",  # a first line of HTTP that has not ended yet
}
FRAMES = {  # the first byte of a negotiation is what a frame that is in order carries
    "fragments of a byte": "malformed",
    "a message that never ends": "of 0 bytes",
    "pings without end": "carried nothing",
    "pongs without end": "carried nothing",
    "fragments without content": "carried nothing",
    "text": "text came",
}


async def face(attack):
    async with arena(real=True, websocket=True, **QUICK) as field, trio.open_nursery() as nursery:
        before = field.footprint()
        tracemalloc.start()
        try:
            with trio.fail_after(30):
                attacker, _ = await field.face(attack, nursery)
                await field.serve_friend()
                await attacker.wait_cut()
            assert tracemalloc.get_traced_memory()[1] < MEMORY
        finally:
            tracemalloc.stop()
        await attacker.aclose()
        await field.serve_friend()
        assert await field.settled(before) == {}
        nursery.cancel_scope.cancel()
        return field.reasons


@pytest.mark.parametrize("name", websockets.REQUESTS)
async def test_whoever_does_not_upgrade_is_cut_off(name):
    reasons = (await face(websockets.at_upgrade(websockets.REQUESTS[name])))[UpgradeFailed]
    assert len(reasons) == 1
    assert re.search(UPGRADES.get(name, "upgrade"), *reasons)


@pytest.mark.parametrize("name", websockets.FRAMES)
async def test_whoever_breaks_the_rules_of_frames_is_cut_off(name):
    reasons = (await face(websockets.upgraded(websockets.FRAMES[name])))[PeerMisbehaved]
    assert len(reasons) == 1
    assert re.search(FRAMES.get(name, ""), *reasons)
