"""Attacks over real sockets: crowds, and a transfer that goes on beside them."""

import hashlib

import pytest
import trio

from p2pnode.config import MIB, LimitSettings
from p2pnode.host.budgets import ResourceRefused
from p2pnode.testing.hostile import benchmark, crowds, sessions
from p2pnode.testing.hostile.arena import ECHO, arena

pytestmark = pytest.mark.real

LIKE_ANY_NETWORK = LimitSettings(exempt_subnets=())  # loopback counts like any other subnet
TRANSFER = 24 * MIB
PATIENCE = 60.0


async def transfer(field):
    """Echo random bytes between the friend and the victim; returns whether they came back."""
    stream = await field.friend.open_stream(field.victim.peer_id, [ECHO])
    piece = field._rng.randbytes(MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()

    async def send():
        for _ in range(TRANSFER // MIB):
            sent.update(piece)
            await stream.send_all(piece)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        size = 0
        while data := await stream.receive_some():
            size += len(data)
            received.update(data)
    await stream.aclose()
    return size == TRANSFER and sent.digest() == received.digest()


@pytest.mark.parametrize("name", benchmark.ATTACKS)
async def test_a_transfer_comes_through_whole_under_attack(name):
    async with arena(real=True, limits=LIKE_ANY_NETWORK) as field, trio.open_nursery() as nursery:
        before = field.footprint()

        async def attack(task_status=trio.TASK_STATUS_IGNORED):
            task_status.started()
            with trio.move_on_after(PATIENCE):
                attacker, _ = await field.face(benchmark.ATTACKS[name], nursery)
                await attacker.aclose()

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as attacks:
                await attacks.start(attack)
                assert await transfer(field)
                attacks.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
        held = field.footprint().growth_since(before)
        assert held.get("host 0: handshakes", 0) <= LIKE_ANY_NETWORK.max_handshakes


async def test_5000_connections_from_one_address_take_a_bounded_share_and_shut_nobody_out():
    limits = LIKE_ANY_NETWORK
    most_open = 0
    async with arena(real=True, limits=limits) as field, trio.open_nursery() as nursery:

        async def watch():
            nonlocal most_open
            while True:
                most_open = max(most_open, field.victim.info().handshakes)
                await trio.sleep(0.01)

        async def serve_friend():
            while True:
                await field.serve_friend()
                await trio.sleep(0.01)

        before = field.footprint()
        async with trio.open_nursery() as others:
            others.start_soon(watch)
            others.start_soon(serve_friend)
            served = field.served
            with trio.fail_after(PATIENCE):
                attacker, _ = await field.face(
                    lambda each: crowds.silent_crowd(each, 5000), nursery
                )
            await attacker.aclose()
            await field.serve_friend()
            others.cancel_scope.cancel()
        assert field.served > served
        assert 0 < most_open <= limits.max_handshakes
        assert field.reasons[ResourceRefused]
        assert await field.settled(before) == {}
        nursery.cancel_scope.cancel()


async def test_a_reader_that_never_reads_holds_no_more_than_its_windows():
    async with arena(real=True) as field, trio.open_nursery() as nursery:
        attacker, _ = await field.face(lambda each: sessions.echo_never_read(each, ECHO), nursery)
        await field.serve_friend()
        held = field.footprint().held
        limits = LimitSettings()
        assert held["host 0: unread bytes"] <= limits.max_bytes_per_connection
        assert held["host 0: unwritten bytes"] <= limits.max_bytes_per_connection
        await attacker.aclose()
        await field.serve_friend()
        nursery.cancel_scope.cancel()
