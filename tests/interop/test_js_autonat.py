"""AutoNAT with js-libp2p, in both directions.

Its servers refuse loopback addresses. So each side is told to ask about a public address, and
dialling that one leads to where the other side listens.
"""

import random
import socket
from contextlib import asynccontextmanager

import pytest
import trio

from p2pnode.config import ReachabilitySettings
from p2pnode.host import Reachability, ReachabilityChanged
from p2pnode.host.node import NetworkHost
from p2pnode.host.reachability.verdicts import Result
from p2pnode.protocols.autonat.messages import DialStatus, V1Status
from p2pnode.protocols.autonat.service import ReachabilityProbed, ReachabilityService
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.testing.peer.checks.target import RETRY_INTERVAL
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import parse_address, tcp_address, with_p2p
from p2pnode.wire.keys import PrivateKey

pytestmark = [pytest.mark.real, pytest.mark.interop]

LOOPBACK, PUBLIC = "127.0.0.1", "8.8.8.8"
WITHIN = 60


@pytest.fixture
def free_port():
    with socket.create_server((LOOPBACK, 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
async def start(nursery):
    """Start a node of ours; returns its host and its reachability service."""

    async def start(mode):
        host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
        await nursery.start(host.run)
        await nursery.start(IdentifyService(host).run)
        await host.listen(tcp_address(LOOPBACK, 0))
        settings = ReachabilitySettings(mode=mode, public_only=False)
        return host, ReachabilityService(host, settings, random.Random(1))

    return start


def as_public(address):
    return parse_address(str(address).replace(LOOPBACK, PUBLIC))


async def test_js_reaches_us_by_the_second_version_and_its_nonce_says_so(
    start_js, start, free_port, nursery, monkeypatch
):
    host, service = await start("auto")
    address = as_public(host.addresses[0])
    monkeypatch.setattr(service, "_reachable_from_elsewhere", lambda: [address])
    with trio.fail_after(WITHIN), host.events.subscribe(ReachabilityChanged) as changes:
        await nursery.start(service.run)
        async with start_js("autonat.mjs", "2", str(free_port)) as js:
            await host.connect(js.peer_id, [tcp_address(LOOPBACK, free_port)])
            assert (await changes.get()).reachability is Reachability.PUBLIC
    (evidence,) = service.info().evidence
    assert (evidence.result, evidence.addresses) == (Result.REACHED, (address,))


async def test_we_reach_js_by_the_second_version_and_it_takes_its_nonce(
    start_js, start, free_port, nursery, monkeypatch
):
    host, service = await start("public")
    dialled, send_answers, answers = [], *trio.open_memory_channel(1)
    dial_anew, dial_back = host.dial_anew, service._server._dial_back

    @asynccontextmanager
    async def redirected(peer_id, address, *, timeout):
        dialled.append(address)
        there = parse_address(str(address).replace(PUBLIC, LOOPBACK))
        async with dial_anew(peer_id, there, timeout=timeout) as connection:
            yield connection

    async def noting(peer_id, address, nonce):
        status = await dial_back(peer_id, address, nonce)
        await send_answers.send(status)
        return status

    monkeypatch.setattr(host, "dial_anew", redirected)
    monkeypatch.setattr(service._server, "_dial_back", noting)
    await nursery.start(service.run)
    with trio.fail_after(WITHIN):
        async with start_js("autonat.mjs", "2", str(free_port)) as js:
            await js("dial", address=str(with_p2p(host.addresses[0], host.peer_id)))
            assert await answers.receive() is DialStatus.OK
    assert dialled == [as_public(tcp_address(LOOPBACK, free_port))]


async def test_js_and_we_refuse_each_other_by_the_first_version_since_all_is_loopback(
    start_js, start, free_port, nursery, monkeypatch
):
    host, service = await start("auto")
    monkeypatch.setattr(
        service, "_reachable_from_elsewhere", lambda: [as_public(host.addresses[0])]
    )
    answers = []
    dial_v1 = service._server._dial_v1

    async def noting(connection, data):
        answers.append(await dial_v1(connection, data))
        return answers[-1]

    monkeypatch.setattr(service._server, "_dial_v1", noting)
    await nursery.start(service.run)
    with trio.fail_after(WITHIN), host.events.subscribe(ReachabilityProbed) as probes:
        async with start_js("autonat.mjs", "1", str(free_port)) as js:
            await js("dial", address=str(with_p2p(host.addresses[0], host.peer_id)))
            probe = await probes.get()
            while not answers:  # noqa: ASYNC110  # asked for by another process
                await trio.sleep(RETRY_INTERVAL)
    assert (probe.result, probe.text) == (Result.USELESS, "E_DIAL_REFUSED: no dialable addresses")
    assert {each.status for each in answers} == {V1Status.E_DIAL_REFUSED}
