"""The checks, run against go-libp2p's daemon `p2pd`, if `P2PNODE_INTEROP_P2PD` says where it is.

Its own handlers live behind a socket that cannot half-close, so what the echo checks is left to
js-libp2p, and so is gossip, for which somebody would have to answer.
"""

import os
import re
import subprocess

import pytest
import trio

from p2pnode.config import ReachabilitySettings
from p2pnode.host import PeerIdentified
from p2pnode.host.reachability.verdicts import Probe, Result
from p2pnode.host.reachability.votes import network_of
from p2pnode.protocols.autonat.client import AutonatClient
from p2pnode.protocols.autonat.messages import PROTOCOL_V1
from p2pnode.testing.peer.checks.table import run_checks, table
from p2pnode.testing.peer.checks.target import Target
from p2pnode.testing.peer.node import KAD
from p2pnode.wire.addresses import ip_of, parse_address
from p2pnode.wire.peer_id import PeerId

BINARY = os.environ.get("P2PNODE_INTEROP_P2PD")
pytestmark = [
    pytest.mark.real,
    pytest.mark.interop,
    pytest.mark.skipif(BINARY is None, reason="P2PNODE_INTEROP_P2PD does not name a p2pd"),
]

ADDRESSES = {
    "tcp": "/ip4/127.0.0.1/tcp/0",
    "ws": "/ip4/127.0.0.1/tcp/0/ws",
    "quic": "/ip4/127.0.0.1/udp/0/quic-v1",
}
CHECKED = {
    "connect",
    "identify",
    "push",
    "ping",
    "unknown-protocol",
    "kad-find-node",
    "kad-value",
    "kad-bad-value",
    "kad-providers",
    "reconnect",
}
WITHIN = 60


@pytest.fixture
def p2pd(request, transport, tmp_path):
    """A running daemon's peer id and address; the parameter is more options, if there is one."""
    process = subprocess.Popen(
        [
            BINARY,
            f"-listen=/unix{tmp_path}/control.sock",
            f"-hostAddrs={ADDRESSES[transport]}",
            "-dhtServer",
            *getattr(request, "param", ()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        peer_id = address = None
        for line in process.stdout:
            if found := re.fullmatch(r"Peer ID: (\w+)\n", line):
                peer_id = PeerId.from_text(found[1])
            if line.startswith("/ip4/"):
                address = parse_address(line.strip())
                break
        assert None not in {peer_id, address}, "p2pd did not start"
        yield peer_id, address
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_go_libp2p_passes_the_checks(ours, p2pd):
    peer_id, address = p2pd

    async def connect():
        await ours.network.host.connect(peer_id, [address])

    outcomes = []
    target = Target(peer=ours, peer_id=peer_id, address=address, connect=connect)
    with trio.fail_after(WITHIN):
        await run_checks(target, table(KAD), outcomes.append)
    assert [each for each in outcomes if each.error is not None] == []
    assert {each.check for each in outcomes if each.ok} == CHECKED
    assert outcomes[1].facts["agent"].startswith("p2pd/")
    assert outcomes[1].facts["missing"] == ["protocolVersion"]


@pytest.mark.parametrize(
    "p2pd", [("-autonat", "-forceReachabilityPublic")], indirect=True, ids=["autonat"]
)
async def test_it_dials_nobody_back_on_loopback_and_says_so(ours, p2pd):
    peer_id, address = p2pd
    host = ours.network.host
    probe = Probe(
        peer_id=peer_id,
        network=network_of(ip_of(address)),
        family=4,
        subject=host.addresses[0],
        addresses=tuple(host.addresses),
    )
    with trio.fail_after(WITHIN), host.events.subscribe(PeerIdentified) as identified:
        await host.connect(peer_id, [address])
        while PROTOCOL_V1 not in (await identified.get()).protocols:
            pass
        answer = await AutonatClient(host, ReachabilitySettings()).ask(probe)
    assert answer.result is Result.USELESS
    assert answer.text.startswith("E_DIAL_REFUSED: ")
