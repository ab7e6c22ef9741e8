"""One attack and what must come of it, whatever is attacked."""

import gc
import re
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from p2pnode.config import KIB, MIB
from p2pnode.errors import P2PNodeError
from p2pnode.events import Event
from p2pnode.mux.yamux.frames import Flag
from p2pnode.testing.hostile.arena import ECHO, Arena
from p2pnode.testing.hostile.attacker import Attack
from p2pnode.testing.hostile.frames import FrameWire

LEFT_BEHIND: Final = 512 * KIB  # caches fill a little; an attacker's data would show
_PATIENCE: Final = 1000.0
_ANSWER: Final = b"still here"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attack and its end.

    `event` is what the victim emits, and `reason` a pattern found in its text; an attacker that
    is dialled makes the dial raise `error` instead. `survives` says that only a stream ends, or
    nothing at all, and the attacker's connection goes on. `memory` bounds what both sides use.
    """

    name: str
    attack: Attack
    event: type[Event] | None = None
    error: type[P2PNodeError] | tuple[type[P2PNodeError], ...] | None = None
    reason: str = ""
    survives: bool = False
    memory: int = 4 * MIB
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dialled(self) -> bool:
        """Whether the victim dials the attacker."""
        return self.error is not None


async def withstand(case: Case, field: Arena) -> None:
    """Attack, and check what it ends in, takes and leaves behind, and that the friend is served.

    Allocations must be traced (`tracemalloc`).

    Raises:
        AssertionError: it is not what the case says.
    """
    async with trio.open_nursery() as nursery:
        await trio.sleep(10)  # whatever begins by itself has begun
        before = field.footprint()
        served = field.served
        tracemalloc.reset_peak()
        memory = tracemalloc.get_traced_memory()[0]
        async with trio.open_nursery() as friends:
            friends.start_soon(field.keep_friend_served)
            with trio.fail_after(_PATIENCE):
                attacker, error = await field.face(case.attack, nursery, dialled=case.dialled)
                if case.survives:
                    assert not attacker.wires[0].ended.is_set()
                    assert _ANSWER in await _echoed(attacker.wires[0])
                else:
                    await attacker.wait_cut()
            await attacker.aclose()
            await trio.sleep(5)
            friends.cancel_scope.cancel()
        assert field.served > served + 3
        _check_reason(case, field.reasons, error)
        assert await field.settled(before) == {}
        peak = tracemalloc.get_traced_memory()[1] - memory
        assert peak < case.memory
        gc.collect()  # tasks that were cancelled leave cycles, which are no leak
        left = tracemalloc.get_traced_memory()[0] - memory
        assert left < LEFT_BEHIND
        nursery.cancel_scope.cancel()


async def _echoed(wire: FrameWire) -> bytes:
    stream = wire.open_stream()
    await stream.propose(ECHO)
    await stream.send(_ANSWER, Flag.FIN)
    await stream.wait_over()
    return bytes(wire.data[stream.stream_id])


def _check_reason(
    case: Case, reasons: Mapping[type[Event], set[str]], error: P2PNodeError | None
) -> None:
    if case.error is not None:
        assert type(error) in (case.error if isinstance(case.error, tuple) else (case.error,))
        assert re.search(case.reason, str(error))
    elif case.event is not None:
        found = reasons.get(case.event, set())
        assert any(re.search(case.reason, each) for each in found), dict(reasons)
