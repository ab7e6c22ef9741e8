"""Dialling a peer that dials us at the same moment, through the NATs of both.

All addresses are dialled at once, from the port listened on, and each again and again: a router
may refuse the first packet that no packet of ours has prepared it for. Where there are addresses
of both, TCP has a head start over UDP, on both sides alike: it carries more. The roles in the
handshakes are agreed on beforehand (`p2pnode.protocols.dcutr`), since nobody is the one that was
dialled.

The connection may also come in by the listener: the peer's packets were let in before ours went
out. So whoever waits for the outcome watches out for any direct connection to the peer.
"""

from collections.abc import Awaitable, Callable, Sequence

import trio
from multiaddr import Multiaddr

from p2pnode.config import DcutrSettings
from p2pnode.errors import DialError, P2PNodeError
from p2pnode.host.upgrader import Upgraded
from p2pnode.transport.base import FreshConnection, RawConnection, Transport

Upgrade = Callable[[FreshConnection], Awaitable[Upgraded]]


class Punch:
    """The dials of one attempt.

    Args:
        transports: the first that can punch an address is used.
        upgrade: runs the handshakes, in the role that is ours.
        settings: times.
        is_client: whether that role begins the handshakes.

    Attributes:
        reasons: what became of each address, as far as it failed.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        upgrade: Upgrade,
        settings: DcutrSettings,
        *,
        is_client: bool,
    ) -> None:
        self.reasons: dict[Multiaddr, str] = {}
        self._transports = transports
        self._upgrade = upgrade
        self._settings = settings
        self._is_client = is_client
        self._winner: Upgraded | None = None

    async def run(self, addresses: Sequence[Multiaddr]) -> Upgraded | None:
        """Dial until one address has won, or each has turned out to be of no use.

        Not more than one connection is left, and none when it is cancelled.
        """
        self.reasons = dict.fromkeys(addresses, "no answer in time")
        pause = self._settings.tcp_head_start if any(map(_is_tcp, addresses)) else 0.0
        try:
            async with trio.open_nursery() as nursery:
                for each in addresses:
                    wait = 0.0 if _is_tcp(each) else pause  # the peer waits as long
                    nursery.start_soon(self._try, each, wait, nursery.cancel_scope)
        except BaseException:
            if self._winner is not None:
                await self._winner.raw.cut()
            raise
        return self._winner

    async def _try(self, address: Multiaddr, wait: float, all_tries: trio.CancelScope) -> None:
        await trio.sleep(wait)
        try:
            raw = await self._connect(address)
            upgraded = await self._upgrade(raw)
        except P2PNodeError as error:
            self.reasons[address] = str(error)
            return
        if self._winner is not None:
            await raw.cut()
            return
        self._winner = upgraded
        if isinstance(raw, RawConnection) and raw.settle is not None:
            raw.settle()
        all_tries.cancel()

    async def _connect(self, address: Multiaddr) -> FreshConnection:
        transport = next((each for each in self._transports if each.can_punch(address)), None)
        if transport is None:
            raise DialError("no transport of this node punches holes to it")
        while True:
            try:
                return await transport.punch(address, is_client=self._is_client)
            except DialError as error:
                self.reasons[address] = str(error)
            await trio.sleep(self._settings.attempt_pause)


def _is_tcp(address: Multiaddr) -> bool:
    return any(each.name == "tcp" for each in address.protocols())
