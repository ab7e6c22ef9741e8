"""All checks in their order, and how they are run: one after the other, each within its time."""

import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from p2pnode.config import MIB
from p2pnode.errors import P2PNodeError, first_leaf
from p2pnode.protocols.identify.core import PUSH_PROTOCOL as PUSH
from p2pnode.protocols.perf.core import PROTOCOL as PERF
from p2pnode.protocols.ping.core import PROTOCOL as PING
from p2pnode.testing.peer.checks import connection, dht, streams, topics
from p2pnode.testing.peer.checks.target import CheckFailedError, Facts, Target
from p2pnode.testing.peer.node import ECHO

PUBSUB: Final = "/meshsub/"  # any version
TIMEOUT: Final = 60.0  # of one check: 50 MiB there and back through a slow implementation

Report = Callable[["Outcome"], None]
_EXPECTED: Final = (CheckFailedError, P2PNodeError, trio.TooSlowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        name: for machines, stable.
        run: does it.
        needs: how a protocol begins that the peer must list; `""` if none.
    """

    name: str
    run: Callable[[Target], Awaitable[Facts]]
    needs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one check.

    Attributes:
        check: its name.
        seconds: it took.
        error: why it failed, if it did.
        skipped: why it was not run, if it was not.
        facts: what it found out.
    """

    check: str
    seconds: float = 0.0
    error: str | None = None
    skipped: str | None = None
    facts: Facts = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it was run and passed."""
        return self.error is None and self.skipped is None

    def as_json(self) -> dict[str, Any]:
        """Describe it for machines."""
        if self.skipped is not None:
            return {"check": self.check, "skipped": self.skipped}
        line = {"check": self.check, "ok": self.ok, "seconds": round(self.seconds, 6)}
        return line | ({"error": self.error} if self.error is not None else self.facts)


def table(kad: str) -> tuple[Check, ...]:
    """List the checks, for a DHT of that protocol."""
    sizes = {"echo-0": 0, "echo-1": 1, "echo-1M": MIB, "echo-50M": 50 * MIB}
    return (
        Check(name="connect", run=connection.check_connect),
        Check(name="identify", run=connection.check_identify),
        Check(name="push", run=connection.check_push, needs=PUSH),
        Check(name="ping", run=connection.check_ping, needs=PING),
        Check(name="unknown-protocol", run=connection.check_unknown),
        *(
            Check(name=name, run=functools.partial(streams.check_echo, size=size), needs=ECHO)
            for name, size in sizes.items()
        ),
        Check(name="half-close", run=streams.check_half_close, needs=ECHO),
        Check(name="streams", run=streams.check_many_streams, needs=ECHO),
        Check(name="gossipsub", run=topics.check_gossipsub, needs=PUBSUB),
        Check(name="kad-find-node", run=dht.check_find_node, needs=kad),
        Check(name="kad-value", run=dht.check_value, needs=kad),
        Check(name="kad-bad-value", run=dht.check_bad_value, needs=kad),
        Check(name="kad-providers", run=dht.check_providers, needs=kad),
        Check(name="perf", run=streams.check_perf, needs=PERF),
        # Last: js-libp2p sends no more gossip to a peer that comes back before it was missed.
        Check(name="reconnect", run=connection.check_reconnect, needs=PING),
    )


async def run_checks(
    target: Target, checks: Sequence[Check], report: Report, *, timeout: float = TIMEOUT
) -> int:
    """Run checks and report each at once; returns how many failed.

    Args:
        target: who is checked.
        checks: `connect` comes first, and `identify` before those that need a protocol.
        report: is told each outcome.
        timeout: seconds for one check.
    """
    failures, reached = 0, False
    listed: tuple[str, ...] = ()
    for check in checks:
        reason = _reason_to_skip(check, reached=reached, listed=listed)
        if reason is not None:
            outcome = Outcome(check=check.name, skipped=reason)
        else:
            outcome = await _run(check, target, timeout)
        if check.name == "connect":
            reached = outcome.ok
        if check.name == "identify" and outcome.ok:
            listed = tuple(outcome.facts["protocols"])
        failures += outcome.error is not None
        report(outcome)
    return failures


def _reason_to_skip(check: Check, *, reached: bool, listed: tuple[str, ...]) -> str | None:
    if not reached and check.name != "connect":
        return "there is no connection"
    if check.needs and not any(protocol.startswith(check.needs) for protocol in listed):
        return f"the peer does not list {check.needs}"
    return None


async def _run(check: Check, target: Target, timeout: float) -> Outcome:
    started = trio.current_time()
    try:
        with trio.fail_after(timeout):
            if check.name != "connect" and target.host.connection_to(target.peer_id) is None:
                await target.connect()  # the check before has cost the connection
            facts = await check.run(target)
    except _EXPECTED as error:
        return _failed(check, started, error, timeout)
    except BaseExceptionGroup as group:
        expected, others = group.split(_EXPECTED)
        if expected is None or others is not None:
            raise
        return _failed(check, started, first_leaf(expected), timeout)
    return Outcome(check=check.name, seconds=trio.current_time() - started, facts=facts)


def _failed(check: Check, started: float, error: BaseException, timeout: float) -> Outcome:
    if isinstance(error, trio.TooSlowError):
        error = CheckFailedError(f"not done within {timeout:g} s")
    seconds = trio.current_time() - started
    return Outcome(check=check.name, seconds=seconds, error=f"{type(error).__name__}: {error}")
