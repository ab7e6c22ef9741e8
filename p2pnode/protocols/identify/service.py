"""Identify over a host: every connection begins with it, and changes are pushed later.

What peers say becomes `PeerIdentified` events, from which the host fills its peerstore.
"""

from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode import __version__
from p2pnode.clock import wall_time
from p2pnode.config import NetworkSettings
from p2pnode.errors import P2PNodeError, ProtocolError, ProtocolNotSupportedError, StreamResetError
from p2pnode.host import (
    Connection,
    ConnectionEnded,
    ConnectionOpened,
    LocalPeerChanged,
    PeerIdentified,
    PeerMisbehaved,
    Stream,
)
from p2pnode.host.budgets.rates import Rates
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.identify.core import (
    PROTOCOL,
    PROTOCOL_VERSION,
    PUSH_PROTOCOL,
    Introduction,
    decode,
    encode,
)
from p2pnode.wire.records import PeerRecord

AGENT: Final = f"p2pnode/{__version__}"
MAX_PUSHES_AT_ONCE: Final = 64  # a change is told to thousands of peers in turns


class IdentifyService:
    """Serves identify, asks every new connection, and pushes changes, while `run` runs."""

    def __init__(self, host: NetworkHost, settings: NetworkSettings | None = None) -> None:
        self._host = host
        self._settings = settings or host.settings
        self._version = 0  # of what we say of ourselves
        self._told: dict[Connection, int] = {}  # the version each connection's peer knows
        self._record: tuple[tuple[Multiaddr, ...], int, bytes] | None = None
        self._changed = trio.Event()
        self._taken = Rates(
            self._settings.identify_pushes_per_second,
            self._settings.identify_push_burst,
            max_kept=self._settings.max_peerstore_peers,
        )
        self._pushes = trio.CapacityLimiter(MAX_PUSHES_AT_ONCE)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:

            def receive_opened(event: ConnectionOpened) -> None:
                self._told[event.connection] = self._version
                nursery.start_soon(self._greet, event.connection)

            undo = [
                self._host.events.on(ConnectionOpened, receive_opened),
                self._host.events.on(ConnectionEnded, self._receive_ended),
                self._host.events.on(LocalPeerChanged, self._receive_changed),
            ]
            self._host.set_handler(PROTOCOL, self._answer)
            self._host.set_handler(PUSH_PROTOCOL, self._receive_push)
            try:
                for connection in self._host.connections():
                    receive_opened(ConnectionOpened(connection=connection))
                task_status.started()
                await self._push_changes(nursery)
            finally:
                self._host.remove_handler(PROTOCOL)
                self._host.remove_handler(PUSH_PROTOCOL)
                for each in undo:
                    each()

    # --- inputs ---------------------------------------------------------------------------------

    def _receive_ended(self, event: ConnectionEnded) -> None:
        self._told.pop(event.connection, None)

    def _receive_changed(self, _event: LocalPeerChanged) -> None:
        self._version += 1
        self._changed.set()

    async def _answer(self, stream: Stream) -> None:
        """Tell a peer that asks who we are."""
        self._told[stream.connection] = self._version
        with trio.move_on_after(self._settings.identify_timeout) as scope:
            await stream.send_all(self._introduction(stream.connection))
        if scope.cancelled_caught:
            raise StreamResetError("the peer did not read our introduction in time")

    async def _receive_push(self, stream: Stream) -> None:
        """Take in what a peer says has changed."""
        now = trio.current_time()
        if not self._taken.has(stream.peer_id, now):
            raise ProtocolError("pushes come faster than anybody changes")
        self._taken.take(stream.peer_id, now)
        with trio.move_on_after(self._settings.identify_timeout) as scope:
            self._note(stream.connection, await self._receive(stream))
        if scope.cancelled_caught:
            raise StreamResetError("the peer did not finish its push in time")

    # --- asking and telling ---------------------------------------------------------------------

    async def _greet(self, connection: Connection) -> None:
        """Ask a new connection's peer who it is; then catch up on what has changed since."""
        try:
            with trio.move_on_after(self._settings.identify_timeout):
                stream = await connection.open_stream([PROTOCOL], allow_limited=True)
                try:
                    await stream.send_eof()
                    introduction = await self._receive(stream)
                finally:
                    await _leave(stream)
                self._note(connection, introduction)
        except ProtocolNotSupportedError:
            return  # then we know its id and its address, which is enough to talk to it
        except ProtocolError as error:
            self._report(connection, error)
        except P2PNodeError:
            return  # it left, or cannot spare us a stream
        await self._catch_up(connection)

    async def _push_changes(self, nursery: trio.Nursery) -> None:
        while True:
            await self._changed.wait()
            await trio.sleep(self._settings.identify_push_delay)
            self._changed = trio.Event()
            for connection in tuple(self._told):
                nursery.start_soon(self._catch_up, connection)

    async def _catch_up(self, connection: Connection) -> None:
        """Push to a peer that takes pushes, if it does not know our latest version."""
        async with self._pushes:
            told = self._told.get(connection)
            takes_pushes = PUSH_PROTOCOL in self._host.protocols_of(connection.peer_id)
            if told is None or told == self._version or not takes_pushes:
                return
            self._told[connection] = self._version
            try:
                with trio.move_on_after(self._settings.identify_timeout):
                    stream = await connection.open_stream([PUSH_PROTOCOL], allow_limited=True)
                    try:
                        await stream.send_all(self._introduction(connection))
                    finally:
                        await _leave(stream)
            except P2PNodeError:
                return  # it left, or takes pushes no longer

    async def _receive(self, stream: Stream) -> Introduction:
        messages: list[bytes] = []
        limit = self._settings.identify_max_message
        while (message := await stream.receive_prefixed(limit)) is not None:
            messages.append(message)
            if len(messages) > self._settings.identify_max_messages:
                raise ProtocolError("too many identify messages on one stream")
        if not messages:
            raise ProtocolError("an identify stream ended without a message")
        return decode(
            messages,
            stream.connection.public_key,
            stream.connection.remote_address,
            limit=self._settings.max_addresses_per_peer,
        )

    def _note(self, connection: Connection, said: Introduction) -> None:
        peer_id = connection.peer_id
        known = self._host.protocols_of(peer_id)
        if said.observed_address is not None and not connection.is_closed:
            self._host.receive_observation(connection, said.observed_address)
        self._host.events.emit(
            PeerIdentified(
                peer_id=peer_id,
                protocols=frozenset(said.protocols) or known,  # a push may name what changed only
                addresses=said.addresses,
                agent=said.agent,
                observed_address=said.observed_address,
                record=said.record,
                seq=said.seq,
            )
        )

    def _introduction(self, connection: Connection) -> bytes:
        addresses = tuple(self._host.addresses)[: self._settings.max_addresses_per_peer]
        return encode(
            Introduction(
                public_key=self._host.key.public_key,
                addresses=addresses,
                protocols=tuple(self._host.protocols),
                # Through a relay one sees the relay, and not where the peer is.
                observed_address=None if connection.is_relayed else connection.remote_address,
                protocol_version=PROTOCOL_VERSION,
                agent=AGENT,
                record=self._signed_record(addresses) if addresses else None,
            )
        )

    def _signed_record(self, addresses: tuple[Multiaddr, ...]) -> bytes:
        """Sign our addresses; the sequence number rises with every change and every restart."""
        if self._record is None or self._record[0] != addresses:
            last = self._record[1] if self._record else 0
            seq = max(int(wall_time() * 1000), last + 1)
            record = PeerRecord(peer_id=self._host.peer_id, seq=seq, addresses=addresses)
            self._record = addresses, seq, record.seal(self._host.key)
        return self._record[2]

    def _report(self, connection: Connection, error: ProtocolError) -> None:
        self._host.events.emit(
            PeerMisbehaved(
                peer_id=connection.peer_id,
                address=connection.remote_address,
                reason=f"{PROTOCOL}: {error}",
            )
        )


async def _leave(stream: Stream) -> None:
    """Close our side, whatever became of the other."""
    with trio.CancelScope(shield=True):
        await stream.aclose()
