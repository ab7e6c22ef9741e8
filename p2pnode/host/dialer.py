"""Reaching a peer: its addresses raced against each other, one dial for all who want it.

An address gets a head start over the next one (RFC 8305 has it so for two families), and a
failure starts the next at once. An attempt is won only when the handshakes are through, so that
a stranger at one address does not keep the peer from being found at another.
"""

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

import trio
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import DialError, HandshakeError, P2PNodeError
from p2pnode.host.upgrader import Upgraded
from p2pnode.transport.base import RawConnection, Transport
from p2pnode.wire.addresses import name_of, split_p2p
from p2pnode.wire.peer_id import PeerId

Resolve = Callable[[Multiaddr, PeerId], Awaitable[list[Multiaddr]]]
Upgrade = Callable[[RawConnection, PeerId], Awaitable[Upgraded]]


class Dial:
    """One peer being dialled; addresses may be added while it runs.

    `done` is set when the outcome is known: a connection of the peer exists, or `failure` says
    why not.
    """

    def __init__(
        self,
        peer_id: PeerId,
        transports: Sequence[Transport],
        resolve: Resolve,
        upgrade: Upgrade,
        settings: NetworkSettings,
    ) -> None:
        self.peer_id = peer_id
        self.done = trio.Event()
        self._transports = transports
        self._resolve = resolve
        self._upgrade = upgrade
        self._settings = settings
        self._scope = trio.CancelScope(deadline=trio.current_time())
        self._waiting: deque[Multiaddr] = deque()
        self._outcomes: dict[Multiaddr, P2PNodeError | None] = {}  # None: under way
        self._active = 0
        self._winner: Upgraded | None = None
        self._wanted_by = 0
        self._refusal: P2PNodeError | None = None
        self._changed = trio.Event()

    # --- inputs ---------------------------------------------------------------------------------

    def offer(self, addresses: Iterable[Multiaddr]) -> None:
        """Add addresses to try, behind those known already."""
        for each in addresses:
            address, _ = split_p2p(each)
            if address not in self._outcomes and address not in self._waiting:
                self._waiting.append(address)
        self._changed.set()

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
                await self._race()
        except BaseException:  # cancelled from outside, when the race may be won already
            if self._winner is not None:
                await trio.aclose_forcefully(self._winner.raw.stream)
            raise
        return self._winner

    async def _race(self) -> None:
        async with trio.open_nursery() as nursery:
            while self._winner is None:
                self._changed = trio.Event()
                if self._waiting and self._active < self._settings.dial_attempts_at_once:
                    address = self._waiting.popleft()
                    self._outcomes[address] = None
                    self._active += 1
                    nursery.start_soon(self._attempt, address)
                    with trio.move_on_after(self._settings.dial_stagger):
                        await self._changed.wait()
                elif self._active:
                    await self._changed.wait()
                else:
                    break
            nursery.cancel_scope.cancel()

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
        try:
            upgraded = await self._reach(address)
        except P2PNodeError as error:
            self._outcomes[address] = error
        else:
            if upgraded is not None and self._winner is None:
                self._winner = upgraded
            elif upgraded is not None:
                await trio.aclose_forcefully(upgraded.raw.stream)
        finally:
            self._active -= 1
            self._changed.set()

    async def _reach(self, address: Multiaddr) -> Upgraded | None:
        """Dial and upgrade; an address with a name gives its meanings to the race instead."""
        if name_of(address) is not None:
            meanings = await self._resolve(address, self.peer_id)
            del self._outcomes[address]
            fresh = [each for each in meanings if each not in self._outcomes]
            self._waiting.extendleft(reversed(fresh))
            return None
        transport = next((each for each in self._transports if each.can_dial(address)), None)
        if transport is None:
            raise DialError("this node has no transport for it")
        raw = None
        with trio.move_on_after(self._settings.dial_attempt_timeout):
            raw = await transport.dial(address)
        if raw is None:
            raise DialError(f"no answer within {self._settings.dial_attempt_timeout:g} s")
        return await self._upgrade(raw, self.peer_id)


def _describe(address: Multiaddr, error: P2PNodeError | None) -> str:
    reason = "no answer in time" if error is None else str(error)
    return reason if str(address) in reason else f"{address}: {reason}"
