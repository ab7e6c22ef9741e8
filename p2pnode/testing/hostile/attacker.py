"""A peer that is honest up to a step of its choosing.

Each method takes a new connection one step further than the one before it: `open` has a raw byte
stream, `greet` has agreed on Noise, `secure` has run the handshake, `multiplex` has Yamux frames,
and `talk` has a stream on which a protocol was proposed. Works in both roles: an attacker that was
given no target waits for the victim to dial it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from p2pnode.errors import P2PNodeError
from p2pnode.mux.multistream import select_inbound, select_outbound
from p2pnode.mux.yamux import PROTOCOL as YAMUX
from p2pnode.security.noise import SecureSession, secure_inbound, secure_outbound
from p2pnode.testing.hostile.frames import FrameStream, FrameWire
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.wire.keys import PrivateKey

if TYPE_CHECKING:
    from p2pnode.wire.peer_id import PeerId

NOISE: Final = "/noise"


class Attacker:
    """One attacker; see the module.

    Args:
        nursery: holds the tasks that read what the victim sends; the attacker ends with it.
        transport: what it dials with.
        target: where the victim listens, or None when the victim dials.
        listener: where the victim dials us, or None.
        key: who it says it is.

    Attributes:
        victim: who answered the last handshake.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        transport: Transport,
        *,
        target: Multiaddr | None = None,
        listener: Listener | None = None,
        key: PrivateKey | None = None,
    ) -> None:
        self.key = key or PrivateKey.generate()
        self.raws: list[trio.abc.Stream] = []
        self.wires: list[FrameWire] = []
        self.victim: PeerId | None = None
        self._nursery = nursery
        self._transport = transport
        self._target = target
        self._listener = listener

    @property
    def dials(self) -> bool:
        """Whether the attacker dials the victim, rather than the victim it."""
        return self._target is not None

    async def open(self) -> trio.abc.Stream:
        """Return the byte stream of a new connection."""
        if self._target is not None:
            raw = await self._transport.dial(self._target)
        else:
            assert self._listener is not None
            raw = await self._listener.accept()
        assert isinstance(raw, RawConnection)
        self.raws.append(raw.stream)
        return raw.stream

    async def greet(self) -> trio.abc.Stream:
        """Open a connection and agree on Noise; the handshake is to come."""
        raw = await self.open()
        if self.dials:
            await select_outbound(raw, [NOISE])
        else:
            await select_inbound(raw, NOISE.__eq__)
        return raw

    async def secure(
        self, *, muxers: Sequence[str] = (YAMUX,), key: PrivateKey | None = None
    ) -> SecureSession:
        """Open a connection and run the Noise handshake.

        Args:
            muxers: offered within it; with none, the muxer is negotiated behind it.
            key: who to be, if not the usual identity.
        """
        raw = await self.greet()
        run = secure_outbound if self.dials else secure_inbound
        session = await run(raw, key or self.key, muxers=muxers)
        self.victim = session.peer_id
        return session

    async def multiplex(self, *, reads: bool = True, key: PrivateKey | None = None) -> FrameWire:
        """Open a connection up to its Yamux frames.

        Args:
            reads: whether what the victim sends is read, and its pings answered.
            key: who to be, if not the usual identity.
        """
        session = await self.secure(key=key)
        wire = FrameWire(session.channel, is_client=self.dials)
        self.wires.append(wire)
        if reads:
            self._nursery.start_soon(wire.read)
        return wire

    async def talk(self, protocol: str) -> FrameStream:
        """Open a connection and a stream on it, and propose `protocol`."""
        wire = await self.multiplex()
        stream = wire.open_stream()
        await stream.propose(protocol)
        return stream

    async def wait_cut(self) -> None:
        """Wait until the victim has closed every connection that was opened."""
        for wire in self.wires:
            await wire.ended.wait()
        for raw in self.raws:
            await read_to_end(raw)

    async def aclose(self) -> None:
        """Leave without a word."""
        with trio.CancelScope(shield=True):
            for raw in self.raws:
                await trio.aclose_forcefully(raw)
        self.raws.clear()
        self.wires.clear()


Attack = Callable[[Attacker], Awaitable[None]]


async def read_to_end(stream: trio.abc.ReceiveStream) -> int:
    """Read and drop what comes until the other end closes; returns how much it was."""
    size = 0
    try:
        while data := await stream.receive_some(64 * 1024):
            size += len(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError, P2PNodeError):
        pass  # closed the hard way
    return size


async def send_or_be_cut(stream: trio.abc.SendStream, data: bytes) -> bool:
    """Send `data`; returns False when the other end has closed."""
    try:
        await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError, P2PNodeError):
        return False
    return True
