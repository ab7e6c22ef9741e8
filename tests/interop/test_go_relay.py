"""Circuit relays together with go-libp2p's `p2pd`, if `P2PNODE_INTEROP_P2PD` says where it is."""

import contextlib
import os
import re
import subprocess

import pytest
import trio

from p2pnode.protocols.ping.service import PingService
from p2pnode.protocols.relay.client import RelayReserved
from p2pnode.protocols.relay.server import ReservationGiven
from p2pnode.wire.addresses import parse_address, with_p2p
from p2pnode.wire.peer_id import PeerId

BINARY = os.environ.get("P2PNODE_INTEROP_P2PD")
pytestmark = [
    pytest.mark.real,
    pytest.mark.interop,
    pytest.mark.skipif(BINARY is None, reason="P2PNODE_INTEROP_P2PD does not name a p2pd"),
]
WITHIN = 60


@contextlib.contextmanager
def running(folder, *flags):
    """Run a daemon; yields its id and where it listens."""
    process = subprocess.Popen(
        [
            BINARY,
            f"-listen=/unix{folder}/control.sock",
            "-hostAddrs=/ip4/127.0.0.1/tcp/0",
            "-quic=false",
            *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        peer_id = address = None
        for line in process.stdout:
            if found := re.search(r"Peer ID: (\S+)", line):
                peer_id = PeerId.from_text(found[1])
            if found := re.search(r"(/ip4/127\.0\.0\.1/tcp/\d+)$", line.strip()):
                address = parse_address(found[1])
            if peer_id is not None and address is not None:
                break
        assert peer_id is not None
        assert address is not None
        yield peer_id, address
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def ping_through(start, peer_id, way):
    """Reach a peer through a relay, and have it answer."""
    dialler = await start()
    connection = await dialler.host.connect(peer_id, [way])
    assert connection.is_relayed
    return await PingService(dialler.host).ping(peer_id)


async def test_we_are_reached_through_a_go_relay(start, tmp_path):
    flags = ["-relayService=1", "-forceReachabilityPublic", "-relayTimeLimit=5m"]
    with running(tmp_path, *flags) as (peer_id, address), trio.fail_after(WITHIN):
        ours = await start(relays=(str(with_p2p(address, peer_id)),))
        with ours.host.events.subscribe(RelayReserved) as reserved:
            if not ours.host.relayed:
                await reserved.get()
        assert await ping_through(start, ours.host.peer_id, ours.host.relayed[0]) < WITHIN


async def test_go_is_reached_through_our_relay(start, tmp_path):
    relay = await start(server="always", circuit_bytes=0, circuit_seconds=0)
    flags = [
        "-dht",
        "-autoRelay",
        "-relayDiscovery=0",
        f"-trustedRelays={relay.address}",
        "-forceReachabilityPrivate",
    ]
    with (
        relay.host.events.subscribe(ReservationGiven) as given,
        trio.fail_after(WITHIN),
        running(tmp_path, *flags) as (peer_id, _),
    ):
        assert (await given.get()).peer_id == peer_id
        way = parse_address(f"{relay.address}/p2p-circuit")
        assert await ping_through(start, peer_id, way) < WITHIN
