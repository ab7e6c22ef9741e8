"""What every call needs before it is made: a connection that carries it, and the right to make it.

A token is shown in the first call of each connection, and again when the host has forgotten it.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar
from weakref import WeakKeyDictionary

from p2pnode.errors import NotAMemberError
from p2pnode.host import Connection, Host
from p2pnode.security.tokens import Membership, is_open
from p2pnode.wire.peer_id import PeerId

T = TypeVar("T")


class Access:
    """A node's way to its peers as a member of runs.

    Args:
        host: the network; it must know the peers' addresses.
        memberships: this node's own, by run name; read at each call, so they may change.
    """

    def __init__(self, host: Host, memberships: Mapping[str, Membership]) -> None:
        self._host = host
        self._memberships = memberships
        # By connection, the tokens its peer has accepted; they are not sent again.
        self._accepted: WeakKeyDictionary[Connection, set[bytes]] = WeakKeyDictionary()

    def membership(self, run: str) -> Membership:
        """Return our membership of a run, which is named, or given by its id.

        Raises:
            NotAMemberError: we have none.
        """
        found = self._memberships.get(run)
        if found is None:
            found = next((m for m in self._memberships.values() if m.run_id == run), None)
        if found is None and is_open(run):
            found = Membership.open(run.partition(":")[2])
        if found is None:
            raise NotAMemberError(
                f"this node is not a member of the run {run}; use an invite to it"
            )
        return found

    async def connect(self, peer_id: PeerId) -> Connection:
        """Return a connection that carries tensors, dialling if there is none.

        Raises:
            DialError: the peer cannot be reached, or only over a relay that limits what it carries.
        """
        connection = self._host.connection_to(peer_id)
        if connection is None or connection.is_closed:
            connection = await self._host.connect(peer_id)
        if connection.is_limited:
            connection = await self._host.connect(peer_id, direct=True)
        return connection

    async def show(
        self,
        connection: Connection,
        membership: Membership,
        ask: Callable[[bytes | None], Awaitable[T]],
    ) -> T:
        """Make a call, with the token only where the peer does not know it.

        Args:
            connection: to the peer.
            membership: the right to make it.
            ask: makes the call with a token or without; raises what the peer answers.

        Raises:
            NotAMemberError: the peer does not accept the token.
        """
        accepted = self._accepted.setdefault(connection, set())
        token = membership.token
        if token in accepted:
            try:
                return await ask(None)
            except NotAMemberError as error:
                if type(error) is not NotAMemberError:  # it knows the token, and refuses it
                    raise
        answer = await ask(token)
        if token is not None:
            accepted.add(token)
        return answer
