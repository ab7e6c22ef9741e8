"""Reaching a peer: its addresses raced against each other, one dial for all who want it.

The addresses are tried in the order of `p2pnode.host.ranking`. Each gets a head start over the
next one (RFC 8305 has it so for two families), and a failure starts the next at once. An attempt
is won only when the handshakes are through, so that a stranger at one address does not keep the
peer from being found at another. Names are looked up from the start, beside the attempts; what
they mean joins the race. Relays begin when the direct addresses have had a longer head start, or
have failed: they are for who cannot be reached otherwise. Addresses that failed lately are left
alone (`p2pnode.host.backoff`).

Two nodes that dial each other in the same moment may get one connection where neither answers
(`p2pnode.transport.reuse`). Then the one with the smaller peer id dials again at once, from another
port, and the other one waits a while for that.
"""

import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    DialError,
    HandshakeError,
    NoRouteError,
    P2PNodeError,
    RemoteError,
    ResourceLimitError,
    SimultaneousOpenError,
    WrongPeerError,
)
from p2pnode.host.backoff import DialBackoff
from p2pnode.host.ranking import is_relayed
from p2pnode.host.upgrader import Upgraded
from p2pnode.transport.base import FreshConnection, Transport
from p2pnode.wire.addresses import name_of, split_p2p, with_p2p
from p2pnode.wire.peer_id import PeerId

# Failures that say nothing against an address.
_NO_FAULT: Final = (NoRouteError, ResourceLimitError, SimultaneousOpenError)

Resolve = Callable[[Multiaddr, PeerId], Awaitable[list[Multiaddr]]]
Upgrade = Callable[[FreshConnection, PeerId], Awaitable[Upgraded]]
Rank = Callable[[Iterable[Multiaddr]], list[Multiaddr]]
Forget = Callable[[Multiaddr], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DialTools:
    """What all dials of a host share.

    Attributes:
        own_id: of the node that dials.
        transports: the first that understands an address is used.
        resolve: turns an address with a name into others.
        upgrade: runs the handshakes.
        backoff: which addresses are to be left alone.
        slots: how many peers may be dialled at once.
        direct_slots: how many more, without relays: a dial through a relay may have to dial the
            relay, and must not wait for others that wait for the same.
        settings: times and limits.
    """

    own_id: PeerId
    transports: Sequence[Transport]
    resolve: Resolve
    upgrade: Upgrade
    backoff: DialBackoff
    slots: trio.CapacityLimiter
    direct_slots: trio.CapacityLimiter
    settings: NetworkSettings


class Dial:
    """One peer being dialled; addresses may be added while it runs.

    `done` is set when the outcome is known: a connection of the peer exists, or `failure` says
    why not.

    Args:
        peer_id: who must answer.
        tools: of the host.
        rank: orders addresses, the best to try first.
        forget: told of each address at which somebody else answers.
        direct: whether relayed addresses are left out.
    """

    def __init__(
        self,
        peer_id: PeerId,
        tools: DialTools,
        *,
        rank: Rank,
        forget: Forget,
        direct: bool = False,
    ) -> None:
        self.peer_id = peer_id
        self.direct = direct
        self.done = trio.Event()
        self._tools = tools
        self._settings = tools.settings
        self._rank = rank
        self._forget = forget
        self._scope = trio.CancelScope(deadline=trio.current_time())
        self._waiting: list[Multiaddr] = []  # the next one first
        self._names: list[Multiaddr] = []  # to be looked up
        self._outcomes: dict[Multiaddr, P2PNodeError | None] = {}  # None: under way
        self._skipped: dict[Multiaddr, None] = {}  # since they are backed off
        self._insists = False
        self._active = 0
        self._lookups = 0
        self._next_at = -math.inf  # when the head start of the last attempt is over
        self._relays_at = -math.inf  # when that of the last direct one over relays is
        self._winner: Upgraded | None = None
        self._wanted_by = 0
        self._refusal: P2PNodeError | None = None
        self._changed = trio.Event()

    # --- inputs ---------------------------------------------------------------------------------

    def offer(self, addresses: Iterable[Multiaddr], *, insist: bool = False) -> None:
        """Add addresses to try.

        Args:
            addresses: a `/p2p` part at their end must name this peer.
            insist: whether to try also those that failed lately, here and from now on.
        """
        if insist:
            self._insists = True
            for each in self._skipped:
                del self._outcomes[each]
            addresses = [*self._skipped, *addresses]
            self._skipped.clear()
        for each in addresses:
            address, named = split_p2p(each)
            if named not in {None, self.peer_id}:
                self._outcomes[each] = DialError(f"it is an address of {named}")
            elif address not in self._outcomes and address not in self._waiting:
                self._take_in(address)
        self._waiting = self._rank(self._waiting)
        self._changed.set()

    def _take_in(self, address: Multiaddr) -> None:
        if self.direct and is_relayed(address):
            self._outcomes[address] = DialError("it leads through a relay")
            return
        pause = self._tools.backoff.remaining(self.peer_id, address, trio.current_time())
        if pause and not self._insists:
            self._skipped[address] = None
            self._outcomes[address] = DialError(f"backed off for another {math.ceil(pause)} s")
        elif name_of(address) is not None:
            self._names.append(address)
            self._outcomes[address] = None
        else:
            self._waiting.append(address)

    @contextlib.contextmanager
    def wanted_until(self, deadline: float) -> Iterator[None]:
        """Keep the dial going until `deadline`; it ends when nobody wants it any more."""
        self._scope.deadline = max(self._scope.deadline, deadline)
        self._wanted_by += 1
        try:
            yield
        finally:
            self._wanted_by -= 1
            if not self._wanted_by and not self.done.is_set():
                self._scope.cancel()

    @property
    def is_abandoned(self) -> bool:
        """Whether everyone who wanted it was cancelled, so that it is ending."""
        return self._scope.cancel_called

    def refuse(self, error: P2PNodeError) -> None:
        """Fail although the peer was reached."""
        self._refusal = error

    # --- the dial -------------------------------------------------------------------------------

    async def run(self) -> Upgraded | None:
        """Race the addresses; returns the winner, or None when all have failed."""
        try:
            with self._scope:
                async with self._tools.direct_slots if self.direct else self._tools.slots:
                    await self._race()
        except BaseException:  # cancelled from outside, when the race may be won already
            if self._winner is not None:
                await self._winner.raw.cut()
            raise
        return self._winner

    async def _race(self) -> None:
        async with trio.open_nursery() as nursery:
            while self._winner is None:
                self._changed = trio.Event()
                if self.done.is_set():  # the peer has come by itself: end what has begun, no more
                    self._names.clear()
                    self._waiting.clear()
                while self._names:
                    self._lookups += 1
                    nursery.start_soon(self._look_up, self._names.pop())
                start_at = self._next_start()
                if trio.current_time() >= start_at:
                    self._start(self._waiting.pop(0), nursery)
                elif self._active or self._lookups or self._waiting:
                    with trio.move_on_at(start_at):
                        await self._changed.wait()
                else:
                    break
            nursery.cancel_scope.cancel()

    def _next_start(self) -> float:
        """When the next address may be tried; infinity while none may."""
        if not self._waiting or self._active >= self._settings.dial_attempts_at_once:
            return math.inf
        if self._active and is_relayed(self._waiting[0]):
            return max(self._next_at, self._relays_at)
        return self._next_at

    def _start(self, address: Multiaddr, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        self._outcomes[address] = None
        self._active += 1
        self._next_at = now + self._settings.dial_stagger
        if not is_relayed(address):
            self._relays_at = now + self._settings.dial_relay_head_start
        nursery.start_soon(self._attempt, address)

    @property
    def failure(self) -> P2PNodeError:
        """Why there is no connection: each address and what happened there."""
        if self._refusal is not None:
            return self._refusal
        if not self._outcomes and not self._waiting:
            return DialError(f"no address of {self.peer_id} is known")
        attempts = [_describe(address, error) for address, error in self._outcomes.items()]
        attempts += [f"{address}: not tried in time" for address in self._waiting]
        errors = list(self._outcomes.values())
        all_wrong = bool(errors) and all(isinstance(each, HandshakeError) for each in errors)
        kind = HandshakeError if all_wrong and not self._waiting else DialError
        return kind(f"{self.peer_id} could not be reached ({'; '.join(attempts)})")

    async def _attempt(self, address: Multiaddr) -> None:
        started = trio.current_time()
        try:
            upgraded = await self._reach(address)
        except P2PNodeError as error:
            self._outcomes[address] = error
            self._next_at = -math.inf
            if isinstance(error, RemoteError) and not isinstance(error, _NO_FAULT):
                self._back_off(address)
            if isinstance(error, WrongPeerError):
                self._forget(address)
        except trio.Cancelled:
            # Callers that wait for less than an attempt may take must not keep a dead address from
            # being noticed.
            patience = (trio.current_time() - started) / self._settings.dial_attempt_timeout
            if self._winner is None and patience >= 0.5:
                self._back_off(address)
            raise
        else:
            self._tools.backoff.succeed(self.peer_id, address)
            if self._winner is None:
                self._winner = upgraded
            else:
                await upgraded.raw.cut()
        finally:
            self._active -= 1
            self._changed.set()

    async def _reach(self, address: Multiaddr) -> Upgraded:
        # A router that runs Linux remembers for two minutes a SYN that was not answered, such as
        # the peer's to us, and takes ours between the same two ports for the answer: the peer's
        # listener replies by another sequence number, and the router drops that. So every second
        # dial comes from a port that nobody has sent to.
        reuse_port = self._tools.backoff.failures(self.peer_id, address) % 2 == 0
        try:
            return await self._connect(address, reuse_port=reuse_port)
        except SimultaneousOpenError:
            if self._tools.own_id < self.peer_id:
                return await self._connect(address, reuse_port=False)
            with trio.move_on_after(self._settings.simultaneous_open_wait):
                await self.done.wait()  # the peer is here, by the connection it has dialled
            raise

    async def _connect(self, address: Multiaddr, *, reuse_port: bool = True) -> Upgraded:
        transports = self._tools.transports
        transport = next((each for each in transports if each.can_dial(address)), None)
        if transport is None:
            raise DialError("this node has no transport for it")
        raw = None
        # A relay has to be told who is to be reached.
        target = with_p2p(address, self.peer_id) if is_relayed(address) else address
        with trio.move_on_after(self._settings.dial_attempt_timeout):
            raw = await transport.dial(target, reuse_port=reuse_port)
        if raw is None:
            raise DialError(f"no answer within {self._settings.dial_attempt_timeout:g} s")
        return await self._tools.upgrade(raw, self.peer_id)

    async def _look_up(self, address: Multiaddr) -> None:
        """Give what an address with a name means to the race."""
        try:
            meanings = await self._tools.resolve(address, self.peer_id)
        except P2PNodeError as error:
            self._outcomes[address] = error
            self._back_off(address)
        else:
            del self._outcomes[address]
            self.offer(meanings)
        finally:
            self._lookups -= 1
            self._changed.set()

    def _back_off(self, address: Multiaddr) -> None:
        self._tools.backoff.fail(self.peer_id, address, trio.current_time())


def _describe(address: Multiaddr, error: P2PNodeError | None) -> str:
    reason = "no answer in time" if error is None else str(error)
    return reason if str(address) in reason else f"{address}: {reason}"
