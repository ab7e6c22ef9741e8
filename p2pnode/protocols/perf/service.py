"""Perf over a host: measures the way to a peer, and lets others measure the way here.

Whoever is served turns eight bytes into gigabytes of traffic and the processor time to encrypt
them, and can take turns under many peer ids. So a daemon serves it only where the settings say so,
which is right in a laboratory or between one's own machines, and wrong on the open internet.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import KIB, PerfSettings
from p2pnode.errors import RemoteError, ResourceLimitError, StreamResetError
from p2pnode.host import Connection, Host, Stream
from p2pnode.protocols.perf.core import PROTOCOL, Answer, PerfResult, Run, encode_request
from p2pnode.wire.peer_id import PeerId

_PIECE: Final = memoryview(bytes(256 * KIB))  # sent again and again


class PerfService:
    """Measures when asked to, and serves perf while `run` runs."""

    def __init__(self, host: Host, settings: PerfSettings | None = None) -> None:
        self._host = host
        self._settings = settings or PerfSettings()
        self._served: Counter[PeerId] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let others measure until cancelled."""
        self._host.set_handler(PROTOCOL, self._answer)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._host.remove_handler(PROTOCOL)

    async def measure(
        self,
        peer_id: PeerId,
        *,
        upload: int = 0,
        download: int = 0,
        addresses: Sequence[Multiaddr] = (),
    ) -> PerfResult:
        """Send and receive that many bytes on a new stream, connecting first if needed.

        Args:
            peer_id: who must serve perf.
            upload: bytes to send.
            download: bytes to ask for.
            addresses: of the peer, beside those known.

        Raises:
            ValueError: a size is negative or out of range.
            DialError: the peer cannot be reached.
            ProtocolNotSupportedError: it does not serve perf.
            ProtocolError: it sends more or less than asked for.
            StreamResetError: it refuses so much, or gave up.
            RemoteError: it took longer than `run_timeout`.
        """
        request = encode_request(download)
        if upload < 0:
            raise ValueError("an upload is of 0 bytes or more")
        connection = await self._host.connect(peer_id, addresses)
        with trio.move_on_after(self._settings.run_timeout):
            return await _measure(connection, request, upload, download)
        raise RemoteError(f"{peer_id} took longer than {self._settings.run_timeout:g} s")

    async def _answer(self, stream: Stream) -> None:
        peer_id, settings = stream.peer_id, self._settings
        if self._served[peer_id] >= settings.max_runs_per_peer:
            raise ResourceLimitError(f"{settings.max_runs_per_peer} perf runs of a peer are served")
        if self._served.total() >= settings.max_runs:
            raise ResourceLimitError(f"{settings.max_runs} perf runs are served at once")
        self._served[peer_id] += 1
        try:
            with trio.move_on_after(settings.run_timeout) as scope:
                run = Run(settings.max_bytes)
                while data := await stream.receive_some():
                    run.receive_data(data)
                await _send(stream, run.receive_end())
            if scope.cancelled_caught:
                raise StreamResetError(f"a perf run took longer than {settings.run_timeout:g} s")
        finally:
            self._served[peer_id] -= 1
            if not self._served[peer_id]:
                del self._served[peer_id]


async def _measure(
    connection: Connection, request: bytes, upload: int, download: int
) -> PerfResult:
    started = trio.current_time()
    stream = await connection.open_stream([PROTOCOL])
    complete = False
    try:
        await stream.send_all(request)
        await _send(stream, upload)
        await stream.send_eof()
        answer = Answer(download)
        data = await stream.receive_some()
        uploaded = trio.current_time()
        while data:
            answer.receive_data(data)
            data = await stream.receive_some()
        answer.receive_end()
        ended = trio.current_time()
        complete = True
    finally:
        if not complete:
            stream.reset()
    await stream.aclose()
    return PerfResult(
        upload=upload,
        download=download,
        upload_seconds=uploaded - started,
        download_seconds=ended - uploaded,
    )


async def _send(stream: Stream, size: int) -> None:
    while size:
        piece = _PIECE[:size]
        await stream.send_all(piece)
        size -= len(piece)
