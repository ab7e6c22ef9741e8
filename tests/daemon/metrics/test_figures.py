"""What the page tells of a node, read as Prometheus reads it."""

import random
import re

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from p2pnode import __version__
from p2pnode.config import Settings
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.metrics.hosting import HostingMetrics
from p2pnode.daemon.node import Node
from p2pnode.errors import CallError
from p2pnode.events import EventBus
from p2pnode.experts.events import BatchComputed, CheckpointSaved, ExpertFailed
from p2pnode.experts.sessions.service import SessionEnded, SessionOpened
from p2pnode.host import ConnectionEnded
from p2pnode.host.connections import InboundStreamFailed
from p2pnode.rpc.server import CallServed
from p2pnode.swarm.gossip.reputation import Offence, OffenceSeen
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import VirtualNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid, expand

UID = Uid("open:digits", "ffn.0")
PEER = PrivateKey.from_seed(bytes(32)).peer_id


def read(page):
    """Map each sample to its value, by its name and its labels' values, sorted by label."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@pytest.fixture
def events():
    return EventBus()


@pytest.fixture
def figures(events):
    registry = CollectorRegistry()
    experts = [
        {"queued": 2, "state": "serving"},
        {"queued": 1, "state": "stopped"},
        {"queued": 0, "state": "standby"},
    ]
    HostingMetrics(registry, events, lambda: experts)
    return lambda: read(generate_latest(registry).decode())


def served(operation="forward", *, error=None, rows=4, seconds=0.002):
    return CallServed(
        peer_id=PEER, operation=operation, uid=UID, rows=rows, seconds=seconds, error=error
    )


def test_calls_are_counted_by_operation_and_by_how_they_ended(events, figures):
    for event in (
        served(),
        served(rows=6),
        served(error="OverloadedError"),
        served("", error="BadRequestError", rows=0),
    ):
        events.emit(event)
    found = figures()
    assert found["p2pnode_calls_total", "forward", "ok"] == 2
    assert found["p2pnode_calls_total", "forward", "overloaded"] == 1
    assert found["p2pnode_calls_total", "unreadable", "bad_request"] == 1
    assert found["p2pnode_call_rows_total", "forward"] == 10
    assert found["p2pnode_call_seconds_count", "forward"] == 2
    assert found["p2pnode_call_seconds_bucket", "0.0025", "forward"] == 2
    assert found["p2pnode_call_seconds_bucket", "0.001", "forward"] == 0


def test_every_error_of_a_call_has_a_label_prometheus_takes(events, figures):
    names = [each.__name__ for each in CallError.__subclasses__()]
    for name in names:
        events.emit(served(error=name))
    outcomes = {key[2] for key in figures() if key[0] == "p2pnode_calls_total"}
    assert len(outcomes) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", outcome) for outcome in outcomes)


def test_batches_the_device_and_experts_have_their_figures(events, figures, tmp_path):
    batch = BatchComputed(
        uid=UID, span=1, kind="backward", calls=3, rows=96, failed=0, seconds=0.25
    )
    events.emit(batch)
    events.emit(batch)
    events.emit(ExpertFailed(uid=UID, reason="nan"))
    events.emit(CheckpointSaved(uid=UID, path=tmp_path, steps=3))
    found = figures()
    assert found["p2pnode_device_seconds_total", "backward"] == 0.5
    assert found["p2pnode_batch_rows_sum", "backward"] == 192
    assert found["p2pnode_batch_calls_bucket", "backward", "4.0"] == 2
    assert found["p2pnode_batch_calls_bucket", "backward", "2.0"] == 0
    assert found["p2pnode_expert_failures_total",] == 1
    assert found["p2pnode_checkpoints_saved_total",] == 1
    assert found["p2pnode_checkpoints_failed_total",] == 0
    assert found["p2pnode_calls_queued",] == 3
    assert {state: found["p2pnode_experts", state] for state in ("serving", "standby", "stopped")} \
        == {"serving": 1, "standby": 1, "stopped": 1}  # fmt: skip


def test_sessions_are_counted_with_what_they_hold(events, figures):
    for _ in range(2):
        events.emit(SessionOpened(peer_id=PEER, uid=UID, span=2, rows=1, length=9, cache_bytes=100))
    for cache_bytes, error in ((100, None), (0, "OverloadedError")):
        events.emit(
            SessionEnded(
                peer_id=PEER,
                uid=UID,
                cache_bytes=cache_bytes,
                steps=3,
                positions=7,
                seconds=1.0,
                error=error,
            )
        )
    found = figures()
    assert found["p2pnode_sessions_total", "ok"] == 1
    assert found["p2pnode_sessions_total", "overloaded"] == 1
    assert found["p2pnode_sessions_open",] == 1
    assert found["p2pnode_session_bytes",] == 100
    assert found["p2pnode_session_positions_total",] == 14


def node_on(network, path, **sections):
    machine = MemoryTransport(network)
    listen = (str(tcp_address(machine.ip, 4001)),)
    settings = Settings().replace(
        node={"listen": listen}, metrics={"listen": "127.0.0.1:0"}, **sections
    )
    return Node(DataDir(path), settings, transports=[machine], rng=random.Random(0))


async def scrape(node):
    host, port = node._metrics.address.split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join([data async for data in stream])
    return answer.partition(b"\r\n\r\n")[2].decode()


@pytest.mark.real
async def test_a_node_tells_of_its_network_and_later_of_its_experts(tmp_path, nursery):
    network = VirtualNetwork()
    first = node_on(network, tmp_path / "1")
    second = node_on(network, tmp_path / "2", hosting={"layer": "nop"})
    await nursery.start(first.run)
    await nursery.start(second.run)
    await second.network.join(first.network.full_addresses())
    before = read(await scrape(second))
    assert before["p2pnode_info", str(second.network.peer_id), __version__] == 1
    assert before["p2pnode_connections", "outbound", "direct"] == 1
    assert before["p2pnode_dht_peers",] == 1
    assert before["p2pnode_stream_bytes_total", "sent"] > 0
    assert before["p2pnode_budget_used", "connections"] == 1
    assert before["p2pnode_paused",] == 0
    assert before["p2pnode_tasks",] > 10
    assert before["p2pnode_swarms",] == 0
    assert before["p2pnode_peers_blacklisted",] == 0
    assert not [key for key in before if key[0].startswith("p2pnode_calls")]

    await second.host_experts(expand("digits/ffn.[0:3]"), second.settings.hosting)
    second.owner.pause()
    first.events.emit(
        InboundStreamFailed(
            peer_id=PEER,
            address=tcp_address("10.0.0.9", 1),
            protocol=None,
            kind=CallError,
            reason="x",
        )
    )
    with second.events.subscribe(ConnectionEnded) as ended:
        for connection in second.network.host.connections():
            await connection.aclose()
        await ended.get()
    after = read(await scrape(second))
    assert after["p2pnode_experts", "paused"] == 3
    assert after["p2pnode_experts", "serving"] == 0
    assert after["p2pnode_paused",] == 1
    assert after["p2pnode_connections_ended_total",] >= 1
    # What ended connections have carried is not forgotten: a counter never falls.
    assert (
        after["p2pnode_stream_bytes_total", "sent"] >= before["p2pnode_stream_bytes_total", "sent"]
    )
    for _ in range(3):
        now = trio.current_time()
        first.network.reputation.receive_offence(PEER, Offence.WRONG_CHUNK, "it lies", now)
        first.network.reputation.receive_offence(PEER, Offence.BAD_WEIGHTS, "it lies", now)
    first.events.emit(
        OffenceSeen(peer_id=PEER, address=None, reason="it lies", offence=Offence.WRONG_CHUNK)
    )
    found = read(await scrape(first))
    assert found["p2pnode_inbound_streams_failed_total",] >= 1
    assert found["p2pnode_offences_total", "wrong chunk"] == 1
    assert found["p2pnode_peers_blacklisted",] == 1
    nursery.cancel_scope.cancel()
