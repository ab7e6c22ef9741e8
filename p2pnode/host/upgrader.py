"""From a fresh connection to an authenticated one with many streams.

The steps on the wire, in order: multistream agrees on `/noise`; Noise proves who is at the other
end, and settles the muxer within its messages; with peers that do not offer muxers there, a second
multistream round agrees on `/yamux/1.0.0`. (libp2p/specs, connections.)

Connections that bring security and streams, as QUIC's do, need nothing of it and are only checked.
"""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConnectionClosedError, HandshakeError, WrongPeerError
from p2pnode.mux.multistream import select_either, select_inbound, select_outbound
from p2pnode.mux.yamux import PROTOCOL as YAMUX
from p2pnode.mux.yamux import YamuxConnection
from p2pnode.security.noise import SecureChannel, SecureSession, secure_inbound, secure_outbound
from p2pnode.transport.base import FreshConnection, RawConnection, SecuredConnection
from p2pnode.transport.session import MuxedSession
from p2pnode.wire.keys import PrivateKey, PublicKey
from p2pnode.wire.peer_id import PeerId

NOISE: Final = "/noise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgraded:
    """A connection that has passed its handshakes; its muxer does not run yet.

    Attributes:
        raw: what it was made of.
        peer_id: who is at the other end.
        public_key: theirs.
        muxer: its streams.
        is_client: whether this side began the handshakes.
        is_punched: whether both sides dialled it, through their NATs.
    """

    raw: FreshConnection
    peer_id: PeerId
    public_key: PublicKey
    muxer: MuxedSession
    is_client: bool
    is_punched: bool = False


class Upgrader:
    """Runs the handshakes of connections, with this node's key."""

    def __init__(self, key: PrivateKey, settings: NetworkSettings) -> None:
        self._key = key
        self._settings = settings

    async def outbound(self, raw: FreshConnection, expected: PeerId) -> Upgraded:
        """Upgrade a connection this node dialled; `raw` is closed when that fails.

        Raises:
            HandshakeError: another peer than `expected` answers, or its messages are broken.
            NegotiationError: it does not speak Noise or Yamux.
            ConnectionClosedError: it hung up.
        """
        if isinstance(raw, SecuredConnection):
            return await self._take(raw, expected, is_client=True)

        async def agree() -> bool:
            await select_outbound(raw.stream, [NOISE])
            return True

        return await self._upgrade(raw, agree, expected)

    async def inbound(self, raw: FreshConnection) -> Upgraded:
        """Upgrade a connection this node accepted; as `outbound`, with whoever it is."""
        if isinstance(raw, SecuredConnection):
            return await self._take(raw, None, is_client=False)

        async def agree() -> bool:
            await select_inbound(raw.stream, NOISE.__eq__)
            return False

        return await self._upgrade(raw, agree, raw.peer_id)

    async def punched(
        self, raw: FreshConnection, expected: PeerId, *, is_client: bool, patience: float
    ) -> Upgraded:
        """Upgrade a connection that both ends dialled; as `outbound`, in a role agreed on before.

        Args:
            raw: the connection.
            expected: who must be at the other end.
            is_client: whether this side is to begin the handshakes.
            patience: seconds to wait for the peer to begin them. Where its listener took the
                connection, before it could dial itself, it never will; then this side begins.
        """
        if isinstance(raw, SecuredConnection):
            upgraded = await self._take(raw, expected, is_client=is_client)
            return dataclasses.replace(upgraded, is_punched=True)

        async def agree() -> bool:
            if not is_client:
                return await select_either(raw.stream, NOISE, patience=patience)
            await select_outbound(raw.stream, [NOISE])
            return True

        return dataclasses.replace(await self._upgrade(raw, agree, expected), is_punched=True)

    async def _secure(
        self, raw: RawConnection, expected: PeerId | None, *, is_client: bool
    ) -> SecureSession:
        secure = secure_outbound if is_client else secure_inbound
        session = await secure(raw.stream, self._key, expected=expected, muxers=[YAMUX])
        if session.muxer is None:
            async with _closed_on_failure(session.channel):
                if is_client:
                    await select_outbound(session.channel, [YAMUX])
                else:
                    await select_inbound(session.channel, YAMUX.__eq__)
        self._check_is_not_us(session.peer_id)
        return session

    async def _take(
        self, raw: SecuredConnection, expected: PeerId | None, *, is_client: bool
    ) -> Upgraded:
        peer_id = raw.public_key.peer_id
        try:
            if expected is not None and peer_id != expected:
                raise WrongPeerError(f"{peer_id} answered where {expected} was expected")
            self._check_is_not_us(peer_id)
        except HandshakeError:
            await raw.cut()
            raise
        return Upgraded(
            raw=raw,
            peer_id=peer_id,
            public_key=raw.public_key,
            muxer=raw.session,
            is_client=is_client,
        )

    def _check_is_not_us(self, peer_id: PeerId) -> None:
        if peer_id == self._key.peer_id:
            raise HandshakeError("the other end is this node itself")

    async def _upgrade(
        self, raw: RawConnection, agree: Callable[[], Awaitable[bool]], expected: PeerId | None
    ) -> Upgraded:
        """Agree on Noise, which tells whether this side is the client, and secure the channel."""
        session = None
        try:
            with trio.move_on_after(self._settings.handshake_timeout):
                is_client = await agree()
                session = await self._secure(raw, expected, is_client=is_client)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("the peer hung up during the handshake") from error
        finally:
            if session is None:
                await raw.cut()
        if session is None:
            raise HandshakeError(
                f"the handshake took longer than {self._settings.handshake_timeout:g} s"
            )
        return Upgraded(
            raw=raw,
            peer_id=session.peer_id,
            public_key=session.public_key,
            muxer=YamuxConnection(session.channel, is_client=is_client, settings=self._settings),
            is_client=is_client,
        )


@contextlib.asynccontextmanager
async def _closed_on_failure(channel: SecureChannel) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await trio.aclose_forcefully(channel)
        raise
