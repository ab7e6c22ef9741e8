"""Who gets a connection: budgets refuse, and the manager chooses who makes room."""

from collections.abc import Callable
from typing import Final

import trio

from p2pnode.config import LimitSettings
from p2pnode.errors import ResourceLimitError
from p2pnode.host.budgets import (
    CONNECTION_RESOURCES,
    Budgets,
    ConnectionAccount,
    Resource,
    ResourceRefused,
)
from p2pnode.host.connections import ConnectionTable, NetworkConnection
from p2pnode.host.manager import ConnectionManager, ProtectedPeers
from p2pnode.host.upgrader import Upgraded
from p2pnode.wire.error_codes import connection_code

_MAKES_ROOM: Final = "this side closed it to make room for others"


class Admission:
    """The budgets and the connection manager at work on a host's connections.

    Args:
        limits: of both.
        connections: those that are up; the host adds and removes them.
        emit: told of refusals.
    """

    def __init__(
        self,
        limits: LimitSettings,
        connections: ConnectionTable,
        emit: Callable[[ResourceRefused], object],
    ) -> None:
        self.budgets = Budgets(limits, emit)
        self.protected = ProtectedPeers()
        self._manager = ConnectionManager(limits, self.protected)
        self._connections = connections

    def check_room(self, account: ConnectionAccount) -> None:
        """Refuse a connection before its handshakes if there can be no place for it.

        Raises:
            ResourceLimitError: all places are taken, and by connections in use.
        """
        lack = self.budgets.lack_of_room(account.direction)
        if lack is not None and self._spare(lack[1]) is None:
            raise account.refusal(*lack, trio.current_time())

    async def admit(self, upgraded: Upgraded, account: ConnectionAccount) -> None:
        """Charge a connection now that its peer is known, at the cost of an unused one if need be.

        Raises:
            ResourceLimitError: there is no room for it; the peer was told.
        """
        if account.direction == "outbound":
            account.locate(upgraded.raw.remote_address, trio.current_time())
        lack = self.budgets.lack_of_room(account.direction)
        if lack is not None and (spare := self._spare(lack[1])) is not None:
            spare.leaving = _MAKES_ROOM
            await spare.aclose()
            await spare.ended.wait()
        try:
            account.identify(upgraded.peer_id, trio.current_time())
        except ResourceLimitError as error:
            await upgraded.muxer.refuse(connection_code(error))
            raise

    def trim(self) -> list[NetworkConnection]:
        """Return the connections to close when there are more than the high mark."""
        now = trio.current_time()
        if not self._manager.is_trim_due(len(self._connections), now):
            return []
        chosen = self._manager.trim(self._connections.candidates(), now)
        for connection in chosen:
            connection.leaving = _MAKES_ROOM
        return chosen

    def _spare(self, resource: Resource) -> NetworkConnection | None:
        """Find a connection to close for another one that lacks `resource`."""
        candidates = [
            each
            for each in self._connections.candidates()
            if resource in CONNECTION_RESOURCES[each.direction]
        ]
        return self._manager.spare(candidates, trio.current_time())
