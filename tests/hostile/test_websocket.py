"""What becomes of peers that break the rules of HTTP and WebSocket, against a whole node."""

import re
import tracemalloc
from contextlib import suppress

import pytest
import trio
from multiaddr import Multiaddr

from p2pnode.config import MIB
from p2pnode.errors import P2PNodeError
from p2pnode.host import PeerMisbehaved
from p2pnode.testing.certificates import write_certificate
from p2pnode.testing.hostile import tls, websockets
from p2pnode.testing.hostile.arena import arena
from p2pnode.testing.hostile.attacker import Attacker
from p2pnode.transport.tcp import TcpTransport
from p2pnode.transport.websocket.service import UpgradeFailed

pytestmark = pytest.mark.real

QUICK = {"websocket_upgrade_timeout": 0.3, "handshake_timeout": 0.5, "close_timeout": 0.2}
MEMORY = 8 * MIB
SECURE = Multiaddr("/ip4/127.0.0.1/tcp/0/tls/ws")
UPGRADES = {
    "silence": "longer than",
    "half a request": "longer than",
    "garbage": "longer than",  # a first line of HTTP that has not ended yet
}
FRAMES = {  # the first byte of a negotiation is what a frame that is in order carries
    "fragments of a byte": "malformed|took longer",  # whichever is first
    "a message that never ends": "of 0 bytes",
    "pings without end": "carried nothing",
    "pongs without end": "carried nothing",
    "fragments without content": "carried nothing",
    "text": "text came",
}


GREETINGS = {
    "silence": "longer than",
    "half a greeting": "longer than",
    "a record that never ends": "longer than",
    "a greeting with a bit changed": "TLS failed",
}
RECORDS = {"half a record": "longer than|took longer"}
THROUGH_TLS = pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory):
    files = write_certificate(tmp_path_factory.mktemp("tls"))
    return {"tls_certificate": str(files.certificate), "tls_key": str(files.key)}


@pytest.fixture
def face(tls_files):
    """Attack one of the ports of a whole node; returns the reasons of the events it emitted."""

    async def face(attack, *, secure=False):
        async with (
            arena(real=True, websocket=True, **QUICK, **tls_files) as field,
            trio.open_nursery() as nursery,
        ):
            await field.victim.listen(SECURE)
            ports = field.victim.addresses
            port = next(each for each in ports if ("tls" in str(each)) == secure)
            attacker = Attacker(nursery, TcpTransport(), target=Multiaddr.join(*port.split()[:2]))
            before = field.footprint()
            tracemalloc.start()
            try:
                with trio.fail_after(30):
                    with suppress(P2PNodeError, trio.BrokenResourceError):
                        await attack(attacker)
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

    return face


@THROUGH_TLS
@pytest.mark.parametrize("name", websockets.REQUESTS)
async def test_whoever_does_not_upgrade_is_cut_off(face, name, secure):
    attack = websockets.at_upgrade(websockets.REQUESTS[name], secure=secure)
    (reason,) = (await face(attack, secure=secure))[UpgradeFailed]
    assert re.search(UPGRADES.get(name, "upgrade"), reason)


@THROUGH_TLS
@pytest.mark.parametrize("name", websockets.FRAMES)
async def test_whoever_breaks_the_rules_of_frames_is_cut_off(face, name, secure):
    attack = websockets.upgraded(websockets.FRAMES[name], secure=secure)
    (reason,) = (await face(attack, secure=secure))[PeerMisbehaved]
    assert re.search(FRAMES.get(name, ""), reason)


@pytest.mark.parametrize("name", tls.GREETINGS)
async def test_whoever_does_not_greet_as_tls_has_it_is_cut_off(face, name):
    attack = websockets.at_upgrade(tls.GREETINGS[name])
    (reason,) = (await face(attack, secure=True))[UpgradeFailed]
    assert re.search(GREETINGS.get(name, "TLS failed"), reason)


async def test_who_speaks_without_tls_where_it_is_due_is_cut_off(face):
    attack = websockets.at_upgrade(websockets.REQUEST)
    (reason,) = (await face(attack, secure=True))[UpgradeFailed]
    assert reason == "TLS failed: http request"


@pytest.mark.parametrize("name", tls.RECORDS)
async def test_whoever_breaks_the_records_of_tls_is_cut_off(face, name):
    half_a_request = websockets.REQUESTS["half a request"]
    attack = tls.beneath(tls.RECORDS[name], said=half_a_request)
    (reason,) = (await face(attack, secure=True))[UpgradeFailed]
    assert re.search(RECORDS.get(name, "TLS failed"), reason)


@pytest.mark.parametrize("name", tls.RECORDS)
async def test_whoever_breaks_the_records_beneath_a_websocket_is_cut_off(face, name):
    attack = websockets.upgraded_beneath(tls.RECORDS[name])
    (reason,) = (await face(attack, secure=True))[PeerMisbehaved]
    assert re.search(RECORDS.get(name, "TLS failed"), reason)
