"""Attacks by number: more connections than anybody needs."""

import trio
import trio.lowlevel

from p2pnode.errors import P2PNodeError
from p2pnode.testing.hostile.attacker import Attacker

AT_ONCE = 256  # connections an attacker holds open itself, for its own sake


async def silent_crowd(attacker: Attacker, count: int) -> None:
    """Open connections that say nothing, and hold as many of them open as may be."""
    for number in range(count):
        try:
            await attacker.open()
        except P2PNodeError:  # refused, as it should be
            await trio.lowlevel.checkpoint()
        if number >= AT_ONCE:
            await trio.aclose_forcefully(attacker.raws.pop(0))


async def hang_up_crowd(attacker: Attacker, count: int) -> None:
    """Open connections and close each at once."""
    for _ in range(count):
        with trio.move_on_after(5):
            try:
                await attacker.open()
            except P2PNodeError:
                continue
            await trio.aclose_forcefully(attacker.raws.pop())


async def handshake_crowd(attacker: Attacker, count: int, *, at_once: int = 16) -> None:
    """Run whole handshakes, one after the other on each of some connections, and hang up."""

    async def run(share: int) -> None:
        for _ in range(share):
            try:
                await attacker.secure()
            except (P2PNodeError, trio.BrokenResourceError, trio.ClosedResourceError):
                continue

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(run, count // at_once)
    await attacker.aclose()


async def many_connections(attacker: Attacker, count: int) -> None:
    """Open connections by one identity, well behaved but for their number."""
    for _ in range(count):
        await attacker.multiplex()
