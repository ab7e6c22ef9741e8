"""What one connection and its streams have taken from the budgets, until they give it back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Self

from multiaddr import Multiaddr

from p2pnode.errors import Limit, ResourceLimitError
from p2pnode.host.budgets.scopes import (
    CONNECTION_RESOURCES,
    STREAM_RESOURCES,
    Kind,
    Needs,
    Resource,
    Scope,
    release,
    reserve,
)
from p2pnode.host.interfaces import Direction
from p2pnode.wire.peer_id import PeerId

if TYPE_CHECKING:
    from p2pnode.host.budgets.ledger import Budgets


def _one_each(resources: Sequence[Resource]) -> Needs:
    return tuple((int(resource), 1) for resource in resources)


_BYTES: Final = int(Resource.BYTES)

_INBOUND_STREAM: Final = _one_each(STREAM_RESOURCES["inbound"])
_OUTBOUND_STREAM: Final = _one_each(STREAM_RESOURCES["outbound"])


class ConnectionAccount:
    """One connection's account, from its first byte to its last; leaving the block closes it.

    `locate` and `identify` charge it to more scopes as more is known of it. Once `identify` has
    been called it is the account of a muxer, see `p2pnode.transport.session`.
    """

    def __init__(
        self,
        budgets: "Budgets",
        direction: Direction,
        *,
        address: Multiaddr | None = None,
        peer_id: PeerId | None = None,
    ) -> None:
        self.direction = direction
        self.address = address
        self.peer_id = peer_id
        self.crowd: str | None = None  # the subnet of the other end
        self._budgets = budgets
        self._needs = _one_each(CONNECTION_RESOURCES[direction])
        self._own = Scope(Kind.CONNECTION, None, budgets.scopes.limits[Kind.CONNECTION])
        self._shared: list[Scope] = []
        self._path = [self._own]  # whom streams and their bytes are charged to
        self._protocols: dict[str, Sequence[Scope]] = {}  # those its streams have ever spoken
        self._streams: set[StreamAccount] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def locate(self, address: Multiaddr, now: float) -> None:
        """Charge the connection to the subnets of its other end.

        Raises:
            ResourceLimitError: an inbound one, and they have too many.
        """
        self.address = address
        self.crowd = self._budgets.crowd_of(address)
        subnets = self._budgets.subnets.find(address)
        if subnets is not None:
            self._charge(((Kind.ADDRESS, subnets.address), (Kind.NETWORK, subnets.network)), now)

    def identify(self, peer_id: PeerId, now: float) -> None:
        """Charge the connection to its peer and to the node.

        Raises:
            ResourceLimitError: either has too many.
        """
        self.peer_id = peer_id
        self._charge(((Kind.PEER, peer_id), (Kind.NODE, "")), now)

    def _charge(self, keys: Sequence[tuple[Kind, object]], now: float) -> None:
        scopes = [self._budgets.scopes.hold(kind, key) for kind, key in keys]
        lack = reserve(scopes, self._needs)
        if lack is not None:
            self._drop(scopes)
            raise self.refusal(*lack, now)
        self._shared += scopes
        self._path = [self._own, *self._shared]

    def open_stream(self, *, inbound: bool, window: int, now: float) -> "StreamAccount":
        """Charge a stream with its first window.

        Raises:
            ResourceLimitError: one of the scopes it belongs to has no room for it.
        """
        if inbound:
            self._budgets.check_stream_rate(self, now)
        needs = _INBOUND_STREAM if inbound else _OUTBOUND_STREAM
        lack = reserve(self._path, (*needs, (_BYTES, window)))
        if lack is not None:
            raise self.refusal(*lack, now)
        stream = StreamAccount(self, needs, window)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Give everything back, that of all streams too; may be called again."""
        for stream in tuple(self._streams):
            stream.close()
        scopes, self._shared = self._shared, []
        release(scopes, self._needs)
        protocols, self._protocols = self._protocols, {}
        for each in (scopes, *protocols.values()):
            self._drop(each)

    def refusal(self, scope: Scope, resource: Resource, now: float) -> ResourceLimitError:
        """Count a refusal for want of room, and return it as the error to raise."""
        return self.refuse(
            Limit(f"{scope.kind}.{resource.name.lower()}"),
            f"the limit of {scope.limits[resource]} {_describe(scope.kind, resource)} is reached",
            now,
        )

    def refuse(self, limit: Limit, reason: str, now: float) -> ResourceLimitError:
        """Count a refusal, and return it as the error to raise."""
        error = ResourceLimitError(reason, limit)
        self._budgets.refusals.note(error, peer_id=self.peer_id, address=self.address, now=now)
        return error

    @property
    def calls(self) -> int:
        """How many streams are open that carry a call, not a protocol's standing ones."""
        background = self._budgets.background_protocols
        return sum(
            each.protocol is not None and not each.protocol.startswith(background)
            for each in self._streams
        )

    # --- for the accounts of its streams --------------------------------------------------------

    def reserve_bytes(self, size: int) -> bool:
        """Charge a window's growth, which half of every limit is for: new streams come first."""
        return reserve(self._path, ((_BYTES, size),), part=2) is None

    def release_bytes(self, size: int) -> None:
        """Give bytes back."""
        release(self._path, ((_BYTES, size),))

    def forget(self, stream: "StreamAccount", needs: Needs, size: int) -> None:
        """Give a stream back, with its last bytes."""
        release(self._path, (*needs, (_BYTES, size)))
        self._streams.discard(stream)

    def charge_protocol(self, protocol: str, needs: Needs, now: float) -> Sequence[Scope]:
        """Charge a stream to what it speaks; returns what to give back.

        Raises:
            ResourceLimitError: there are too many that speak it.
        """
        scopes = self._protocols.get(protocol)
        if scopes is None:
            hold = self._budgets.scopes.hold
            pair = hold(Kind.PAIR, (protocol, self.peer_id))
            scopes = self._protocols[protocol] = (pair, hold(Kind.PROTOCOL, protocol))
        lack = reserve(scopes, needs)
        if lack is not None:
            raise self.refusal(*lack, now)
        return scopes

    def _drop(self, scopes: Sequence[Scope]) -> None:
        for scope in scopes:
            self._budgets.scopes.drop(scope)


class StreamAccount:
    """One stream's account: charged until the muxer is done with it and its handler has ended.

    The peer may reset a stream at once and open the next one, while our handler still works on
    the first: so the handler counts too.
    """

    __slots__ = ("_connection", "_muxed", "_needs", "_serving", "_spoken", "_window", "protocol")

    def __init__(self, connection: ConnectionAccount, needs: Needs, window: int) -> None:
        self.protocol: str | None = None
        self._connection = connection
        self._needs = needs
        self._window = window
        self._muxed = True
        self._serving = False
        self._spoken: Sequence[Scope] = ()

    @property
    def is_open(self) -> bool:
        """Whether anything is charged."""
        return self._muxed or self._serving or self._window > 0

    def grow(self, size: int) -> bool:
        """Charge a larger window; False, and nothing is charged, when there is no room for it."""
        if not self._muxed or not self._connection.reserve_bytes(size):
            return False
        self._window += size
        return True

    def end(self, unread: int) -> None:
        """Note that the muxer is done with it, but for `unread` bytes somebody may still read."""
        if self.is_open:
            self._muxed = False
            self._settle(unread)

    def serving(self) -> Self:
        """Keep it charged while the block runs, whatever becomes of the stream."""
        return self

    def __enter__(self) -> None:
        self._serving = self.is_open

    def __exit__(self, *_: object) -> None:
        if self._serving:
            self._serving = False
            self._settle(self._window)

    def speak(self, protocol: str, now: float) -> None:
        """Charge it to the protocol that was agreed on.

        Raises:
            ResourceLimitError: too many streams speak it, with this peer or with all of them.
        """
        if self.is_open:
            self._spoken = self._connection.charge_protocol(protocol, self._needs, now)
            self.protocol = protocol

    def close(self) -> None:
        """Give everything back at once, as the connection has ended."""
        if self.is_open:
            self._muxed = self._serving = False
            self._settle(0)

    def _settle(self, unread: int) -> None:
        """Give back what is not needed any more: bytes, or at the end everything."""
        size, self._window = self._window - unread, unread
        if self.is_open:
            self._connection.release_bytes(size)
        else:
            release(self._spoken, self._needs)
            self._spoken = ()
            self._connection.forget(self, self._needs, size)


_OF: Final = {
    Kind.NODE: "",
    Kind.NETWORK: " from one network",
    Kind.ADDRESS: " from one address",
    Kind.PEER: " with one peer",
    Kind.CONNECTION: " on one connection",
    Kind.PROTOCOL: " of one protocol",
    Kind.PAIR: " of one protocol with one peer",
}


def _describe(kind: Kind, resource: Resource) -> str:
    what = "bytes of windows" if resource is Resource.BYTES else resource.name.lower()
    return what.replace("_", " ") + _OF[kind]
