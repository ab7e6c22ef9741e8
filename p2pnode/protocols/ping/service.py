"""Ping over a host: answers others, and measures the round trip to a peer."""

import secrets
from collections import Counter

import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import ProtocolError, RemoteError, ResourceLimitError, StreamResetError
from p2pnode.host import Host, Stream
from p2pnode.protocols.ping.core import MAX_INBOUND_STREAMS, PAYLOAD_BYTES, PROTOCOL, check_echo
from p2pnode.wire.peer_id import PeerId


class PingService:
    """Serves ping while `run` runs."""

    def __init__(self, host: Host, settings: NetworkSettings | None = None) -> None:
        self._host = host
        self._settings = settings or NetworkSettings()
        self._inbound: Counter[PeerId] = Counter()
        self._outbound: dict[PeerId, trio.Lock] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer pings until cancelled."""
        self._host.set_handler(PROTOCOL, self._echo)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._host.remove_handler(PROTOCOL)

    async def ping(self, peer_id: PeerId) -> float:
        """Return the seconds of one round trip to a peer, connecting first if needed.

        Pings of one peer wait for each other: the specification allows one stream at a time.

        Raises:
            DialError: the peer cannot be reached.
            ProtocolNotSupportedError: it does not answer pings.
            ProtocolError: it answers wrongly.
            RemoteError: there was no answer in time.
        """
        connection = await self._host.connect(peer_id)
        lock = self._outbound.setdefault(peer_id, trio.Lock())
        try:
            with trio.move_on_after(self._settings.ping_timeout):
                async with lock:
                    stream = await connection.open_stream([PROTOCOL], allow_limited=True)
                    return await _measure(stream)
        finally:
            if not lock.locked():
                self._outbound.pop(peer_id, None)
        raise RemoteError(f"{peer_id} did not answer within {self._settings.ping_timeout:g} s")

    async def _echo(self, stream: Stream) -> None:
        peer_id = stream.peer_id
        if self._inbound[peer_id] >= MAX_INBOUND_STREAMS:
            raise ResourceLimitError(f"at most {MAX_INBOUND_STREAMS} ping streams are served")
        self._inbound[peer_id] += 1
        try:
            payload: bytes | None = b""
            while payload is not None:
                with trio.move_on_after(self._settings.idle_timeout) as scope:
                    payload = await _receive_payload(stream)
                    if payload is not None:
                        await stream.send_all(payload)
                if scope.cancelled_caught:  # it would keep its connection from being idle
                    raise StreamResetError("the ping stream was not used for too long")
        finally:
            self._inbound[peer_id] -= 1
            if not self._inbound[peer_id]:
                del self._inbound[peer_id]


async def _measure(stream: Stream) -> float:
    payload = secrets.token_bytes(PAYLOAD_BYTES)  # unguessable: nobody answers ahead of time
    answered = False
    try:
        started = trio.current_time()
        await stream.send_all(payload)
        check_echo(payload, await stream.receive_exactly(PAYLOAD_BYTES))
        elapsed = trio.current_time() - started
        answered = True
    finally:
        if not answered:
            stream.reset()
    await stream.aclose()
    return elapsed


async def _receive_payload(stream: Stream) -> bytes | None:
    """Read one payload; None when the dialer has finished."""
    payload = bytearray()
    while len(payload) < PAYLOAD_BYTES:
        data = await stream.receive_some(PAYLOAD_BYTES - len(payload))
        if not data and payload:
            raise ProtocolError("the stream ended inside a ping")
        if not data:
            return None
        payload += data
    return bytes(payload)
