"""The connections that this node opens: dials, which their callers share, and hole punches."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio
from multiaddr import Multiaddr

from p2pnode.config import DcutrSettings, NetworkSettings
from p2pnode.errors import DialError, HolePunchError, ResourceLimitError
from p2pnode.events import EventBus
from p2pnode.host.admission import Admission
from p2pnode.host.backoff import DialBackoff
from p2pnode.host.budgets import ConnectionAccount
from p2pnode.host.connections import ConnectionTable, NetworkConnection
from p2pnode.host.dialer import Dial, DialTools
from p2pnode.host.interfaces import ConnectionOpened
from p2pnode.host.peerstore import Peerstore
from p2pnode.host.punching import Punch
from p2pnode.host.ranking import ips_of, rank
from p2pnode.host.upgrader import Upgraded, Upgrader
from p2pnode.transport.base import Transport
from p2pnode.transport.resolver import Resolver
from p2pnode.wire.peer_id import PeerId


class Outbound:
    """Opens connections for a host.

    Args:
        own_id: who this node is.
        transports: the first that understands an address is used.
        resolver: of names in addresses.
        upgrader: runs the handshakes.
        backoff: which addresses are not worth another try yet.
        connections: those that are up.
        admission: whose budgets are charged.
        peerstore: which addresses of a peer have worked.
        events: tell of connections that others have opened meanwhile.
        settings: times and sizes.
        own_addresses: where this node is, as far as its own sockets show it.
        hold: begins to carry and to serve a connection.
        network: the nursery that the dials run in.
    """

    def __init__(
        self,
        own_id: PeerId,
        transports: Sequence[Transport],
        resolver: Resolver,
        upgrader: Upgrader,
        *,
        backoff: DialBackoff,
        connections: ConnectionTable,
        admission: Admission,
        peerstore: Peerstore,
        events: EventBus,
        settings: NetworkSettings,
        own_addresses: Callable[[], list[Multiaddr]],
        hold: Callable[[Upgraded, ConnectionAccount], Awaitable[None]],
        network: Callable[[], trio.Nursery],
    ) -> None:
        self._own_id = own_id
        self._transports = transports
        self._upgrader = upgrader
        self._connections = connections
        self._admission = admission
        self._peerstore = peerstore
        self._events = events
        self._settings = settings
        self._own_addresses = own_addresses
        self._hold = hold
        self._network = network
        self._tools = DialTools(
            own_id=own_id,
            transports=transports,
            resolve=resolver.resolve,
            upgrade=upgrader.outbound,
            backoff=backoff,
            slots=trio.CapacityLimiter(settings.max_dials),
            direct_slots=trio.CapacityLimiter(settings.max_dials),
            settings=settings,
        )
        self._dials: dict[tuple[PeerId, bool], Dial] = {}  # by whom, and whether directly only

    @property
    def dials(self) -> int:
        """How many peers are being dialled."""
        return len(self._dials)

    async def connect(
        self,
        peer_id: PeerId,
        addresses: Sequence[Multiaddr],
        *,
        timeout: float | None = None,
        insist: bool = False,
        direct: bool = False,
    ) -> NetworkConnection:
        """See `Host.connect`."""
        await trio.lowlevel.checkpoint()
        if (existing := self._connections.best(peer_id, direct=direct)) is not None:
            return existing
        if peer_id == self._own_id:
            raise DialError("a node does not dial itself")
        dial = self._dials.get((peer_id, direct))
        if dial is None or dial.is_abandoned:
            dial = self._start_dial(peer_id, direct=direct)
        known = self._peerstore.addresses_of(peer_id, trio.current_time())
        dial.offer([*addresses, *known], insist=insist)
        timeout = self._settings.dial_timeout if timeout is None else timeout
        deadline = trio.current_time() + timeout
        with dial.wanted_until(deadline), trio.move_on_at(deadline):
            await dial.done.wait()
        if direct:
            await self._await_punch(peer_id, deadline)
        if (connection := self._connections.best(peer_id, direct=direct)) is not None:
            return connection
        raise dial.failure

    async def _await_punch(self, peer_id: PeerId, deadline: float) -> None:
        """Give a peer that was just called over a relay the time to get through to this node."""
        relayed = self._connections.best(peer_id)
        if relayed is None or not relayed.is_relayed or relayed.direction == "inbound":
            return
        opened = trio.Event()
        undo = self._events.on(ConnectionOpened, partial(_act_when_direct, peer_id, opened.set))
        try:
            with trio.move_on_at(min(deadline, relayed.opened_at + self._settings.direct_wait)):
                await opened.wait()
        finally:
            undo()

    def receive(self, connection: NetworkConnection) -> None:
        """A connection is up, whoever dialled: who waits for one to this peer has it."""
        for direct in (False,) if connection.is_relayed else (False, True):
            if (dial := self._dials.get((connection.peer_id, direct))) is not None:
                self._finish(dial)

    def _start_dial(self, peer_id: PeerId, *, direct: bool) -> Dial:
        network = self._network()
        dial = Dial(
            peer_id,
            self._tools,
            rank=partial(
                rank,
                preferred=self._peerstore.preferred_of(peer_id),
                own=ips_of(self._own_addresses()),
            ),
            forget=partial(self._peerstore.forget_address, peer_id),
            direct=direct,
        )
        self._dials[peer_id, direct] = dial
        network.start_soon(self._dial, dial)
        return dial

    async def _dial(self, dial: Dial) -> None:
        account = self._admission.budgets.dial(dial.peer_id)
        try:
            self._admission.check_room(account)
            upgraded = await dial.run()
            if upgraded is not None:
                await self._hold(upgraded, account)
        except ResourceLimitError as error:
            dial.refuse(error)
        finally:
            self._finish(dial)

    def _finish(self, dial: Dial) -> None:
        """Tell the callers of a dial that its outcome is known; later ones start afresh."""
        key = dial.peer_id, dial.direct
        if self._dials.get(key) is dial:
            del self._dials[key]
        dial.done.set()

    def can_punch(self, address: Multiaddr) -> bool:
        """Tell whether `punch` may lead to `address`."""
        return any(each.can_punch(address) for each in self._transports)

    async def punch(
        self,
        peer_id: PeerId,
        addresses: Sequence[Multiaddr],
        *,
        is_client: bool,
        settings: DcutrSettings,
    ) -> NetworkConnection:
        """Dial a peer that dials this node at the same moment, so that both get through.

        Args:
            peer_id: who must answer.
            addresses: where to; none if only the peer knows an address to dial.
            is_client: whether this side begins the handshakes, as agreed with the peer.
            settings: times.

        Returns:
            The direct connection to the peer, whichever way it came about.

        Raises:
            HolePunchError: there was none in time.
            ResourceLimitError: a budget of this side refuses another connection.
        """
        await trio.lowlevel.checkpoint()
        if (existing := self._connections.best(peer_id, direct=True)) is not None:
            return existing
        account = self._admission.budgets.dial(peer_id)
        self._admission.check_room(account)
        upgrade = partial(
            self._upgrader.punched,
            expected=peer_id,
            is_client=is_client,
            patience=settings.role_patience,
        )
        punch = Punch([*self._transports], upgrade, settings, is_client=is_client)
        upgraded = None
        with trio.move_on_after(settings.attempt_timeout) as scope:
            undo = self._events.on(
                ConnectionOpened, partial(_act_when_direct, peer_id, scope.cancel)
            )
            try:
                upgraded = await punch.run(addresses)
                if not addresses:
                    await trio.sleep_forever()  # the peer may come by itself
            finally:
                undo()
        if upgraded is not None:
            await self._hold(upgraded, account)
        if (connection := self._connections.best(peer_id, direct=True)) is not None:
            return connection
        raise HolePunchError(
            f"no hole could be punched to {peer_id}",
            {str(address): reason for address, reason in punch.reasons.items()},
        )


def _act_when_direct(peer_id: PeerId, act: Callable[[], object], event: ConnectionOpened) -> None:
    if event.connection.peer_id == peer_id and not event.connection.is_relayed:
        act()
