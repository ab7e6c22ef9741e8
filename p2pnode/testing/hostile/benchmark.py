"""What attacks cost a well-behaved peer: the speed of its transfer alone, and beside each attack.

Three processes on loopback: the victim, the attackers, and the friend, which measures. The friend
reads a stream that the victim fills, alone and under attack in turns, so that whatever else the
machine does meanwhile hits both alike. Attackers do as much as they can for a bounded time, each
cut connection being followed by a new one.
"""

import functools
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import DhtSettings, LimitSettings, NetworkSettings
from p2pnode.errors import DialError, P2PNodeError
from p2pnode.host import Stream
from p2pnode.protocols.pubsub import PubSub
from p2pnode.testing.hostile import crowds, gossip, handshakes, messages, negotiation, sessions
from p2pnode.testing.hostile.arena import DEAF, ECHO, serve_everything, start_host
from p2pnode.testing.hostile.attacker import Attack, Attacker
from p2pnode.transport.base import RawConnection
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.peer_id import PeerId

SOURCE: Final = "/test/source/1.0.0"
PIECE: Final = 256 * 1024  # bytes the victim writes at once
ATTACKERS: Final = "127.0.0.2"  # where they come from
ATTACKERS_NICE: Final = 19  # the core they share with the friend is its own, when it wants it
AT_ONCE: Final = 4  # attackers of one kind
WARM_UP: Final = 0.3  # seconds of each measurement that are not counted
KAD: Final = DhtSettings().protocol

_FAULTS: Final = {each.name: each for each in negotiation.FAULTS}

ATTACKS: Final[Mapping[str, Attack]] = {
    "hang-ups": functools.partial(crowds.hang_up_crowd, count=50),
    "silent connections": functools.partial(crowds.silent_crowd, count=500),
    "garbage instead of a negotiation": negotiation.at_security(_FAULTS["garbage"]),
    "endless negotiation": negotiation.at_security(_FAULTS["header replayed for ever"]),
    "first messages of handshakes": handshakes.at_message(
        3, handshakes.SPOILS["garbage"], hangs_up=True
    ),
    "forged identities": handshakes.with_payload(handshakes.PAYLOADS["another's identity"]),
    "whole handshakes": functools.partial(crowds.handshake_crowd, count=8, at_once=1),
    "empty Noise frames": handshakes.empty_frames,
    "ping flood": sessions.ping_flood,
    "pong flood": sessions.pong_flood,
    "empty data flood": sessions.empty_data_flood,
    "reset flood": sessions.reset_flood,
    "data for dead streams": sessions.one_byte_flood,
    "stream flood": sessions.syn_flood,
    "rapid reset": sessions.rapid_reset,
    "window overflow": functools.partial(sessions.window_overflow, protocol=DEAF),
    "echoes never read": functools.partial(sessions.echo_never_read, protocol=ECHO),
    "pings never read": messages.pings_never_read,
    "stream negotiations": negotiation.at_stream(_FAULTS["header replayed for ever"]),
    "identify of 1 MB": messages.identify_push(messages.INTRODUCTIONS["of 1 MB"]),
    "identify pushes": messages.push_flood,
    "DHT requests": functools.partial(messages.requests_never_read, protocol=KAD),
    "half a million DHT peers": messages.said(
        KAD, messages.REQUESTS["with half a million peers of nothing"]
    ),
    "pings": messages.pings,
    "valid pub/sub messages": gossip.valid_messages,
    "forged pub/sub messages": gossip.forgeries,
    "pub/sub bombs": gossip.repeated(
        gossip.MALFORMED["of an IHAVE with half a million ids"], times=1
    ),
    "IHAVE flood": gossip.ihave_flood,
    "IWANT flood": gossip.iwant_flood,
    "subscriptions that flip": gossip.flips,
}


class _ElsewhereTransport(TcpTransport):
    """Dials from another address of loopback than everybody else, as attackers do."""

    async def dial(self, address: Multiaddr, *, reuse_port: bool = True) -> RawConnection:  # noqa: ARG002  # it has an address of its own
        """See `Transport`."""
        with trio.socket.socket() as connecting:
            await connecting.bind((ATTACKERS, 0))
            try:
                host, port = address.value_for_protocol("ip4"), address.value_for_protocol("tcp")
                await connecting.connect((host, int(port)))
            except OSError as error:
                raise DialError(f"{address} cannot be reached: {error}") from error
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(_detached(connecting)))
        return RawConnection(stream=stream, local_address=address, remote_address=address)


def _detached(connected: trio.socket.SocketType) -> socket.socket:
    return socket.socket(fileno=connected.detach())


def keep_apart(place: int) -> None:
    """Stay on one processor core where there are several, so that what is shared is the victim."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[place % len(cores)]})


async def run_victim() -> None:
    """Serve on a free port until the standard input ends; its address is the first line told."""
    keep_apart(0)
    async with trio.open_nursery() as nursery:
        limits = LimitSettings(exempt_subnets=())  # loopback is like any other network here
        host = await start_host(nursery, TcpTransport(), 1, NetworkSettings(), limits=limits)
        await serve_everything(nursery, host)
        pubsub = PubSub(host, host.key, rng=random.Random(1))
        await nursery.start(pubsub.run)
        pubsub.subscribe(gossip.TOPIC, queue=1)
        host.set_handler(SOURCE, _fill)
        print(f"{host.addresses[0]}/p2p/{host.peer_id}", flush=True)  # noqa: T201  # the protocol
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def _fill(stream: Stream) -> None:
    piece = bytes(PIECE)
    while True:
        await stream.send_all(piece)


async def run_attackers(name: str, address: str, seconds: float) -> int:
    """Attack for `seconds`; returns how often the attack was carried out."""
    os.nice(ATTACKERS_NICE)
    rounds = 0
    target = parse_address(address)

    async def attack_again_and_again() -> None:
        nonlocal rounds
        while True:
            async with trio.open_nursery() as nursery:
                attacker = Attacker(nursery, _ElsewhereTransport(), target=target)
                try:
                    await ATTACKS[name](attacker)
                except (P2PNodeError, trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # cut off, which is how most attacks end
                finally:
                    await attacker.aclose()
                nursery.cancel_scope.cancel()
            rounds += 1

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(attack_again_and_again)
    return rounds


async def measure(names: list[str], seconds: float) -> AsyncIterator[dict[str, object]]:
    """Measure attacks, by name, for `seconds` each; yields one line of figures for each."""
    async with _victim() as (address, peer_id), trio.open_nursery() as nursery:
        keep_apart(1)  # and so do the attackers, who inherit it
        friend = await start_host(nursery, TcpTransport(), 2, NetworkSettings())
        connection = await friend.connect(peer_id, [parse_address(address)])
        stream = await connection.open_stream([SOURCE])
        await stream.send_all(b"")
        await _speed(stream, seconds)
        for name in names:
            before = await _speed(stream, seconds)
            attackers = _start(["attack", name, address, str(seconds + 3 * WARM_UP)])
            await trio.to_thread.run_sync(_read_line, attackers)
            under_attack = await _speed(stream, seconds)
            rounds = await trio.to_thread.run_sync(_read_line, attackers)
            await trio.to_thread.run_sync(attackers.wait)
            after = await _speed(stream, seconds)
            alone = (before + after) / 2
            yield {
                "attack": name,
                "alone_mb_s": round(alone / 1e6, 1),
                "under_attack_mb_s": round(under_attack / 1e6, 1),
                "ratio": round(under_attack / alone, 2),
                "rounds": int(rounds),
            }
        nursery.cancel_scope.cancel()


async def _speed(stream: Stream, seconds: float) -> float:
    """Read for `seconds`; returns bytes a second."""
    with trio.move_on_after(WARM_UP):
        while True:
            await stream.receive_some()
    size = 0
    began = trio.current_time()
    with trio.move_on_after(seconds):
        while True:
            size += len(await stream.receive_some())
    return size / (trio.current_time() - began)


@asynccontextmanager
async def _victim() -> AsyncIterator[tuple[str, PeerId]]:
    process = _start(["victim"])
    try:
        line = await trio.to_thread.run_sync(_read_line, process)
        address, _, peer_id = line.strip().partition("/p2p/")
        yield address, PeerId.from_text(peer_id)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(process.wait)


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603  # ourselves
        [sys.executable, "-m", "p2pnode.testing.hostile", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def figures(line: Mapping[str, object]) -> str:
    """Return a measurement as a line of JSON."""
    return json.dumps(line)
