"""The clock protocol over a host: tells the time, and compares clocks."""

import secrets

import trio

from p2pnode.clock import wall_time
from p2pnode.config import NetworkSettings
from p2pnode.errors import RemoteError
from p2pnode.host import Host, Stream, finishing
from p2pnode.protocols.clock.core import (
    ANSWER_BYTES,
    PROTOCOL,
    QUESTION_BYTES,
    Offset,
    encode_answer,
    offset_of,
    read_answer,
)
from p2pnode.wire.peer_id import PeerId


class ClockService:
    """Tells others the time while `run` runs."""

    def __init__(self, host: Host, settings: NetworkSettings | None = None) -> None:
        self._host = host
        self._timeout = (settings or NetworkSettings()).ping_timeout

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        self._host.set_handler(PROTOCOL, self._answer)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._host.remove_handler(PROTOCOL)

    async def compare(self, peer_id: PeerId) -> Offset:
        """Return how far a peer's clock is ahead of ours, connecting first if needed.

        Raises:
            DialError: the peer cannot be reached.
            ProtocolNotSupportedError: it does not tell the time.
            ProtocolError: it answers wrongly.
            RemoteError: there was no answer in time.
        """
        connection = await self._host.connect(peer_id)
        with trio.move_on_after(self._timeout):
            stream = await connection.open_stream([PROTOCOL])
            return await _compare(stream)
        raise RemoteError(f"{peer_id} did not answer within {self._timeout:g} s")

    async def _answer(self, stream: Stream) -> None:
        with trio.move_on_after(self._timeout):
            question = await stream.receive_exactly(QUESTION_BYTES)
            await stream.send_all(encode_answer(question, wall_time()))
            return
        stream.reset()


async def _compare(stream: Stream) -> Offset:
    question = secrets.token_bytes(QUESTION_BYTES)  # unguessable: nobody answers ahead of time
    async with finishing(stream):
        wall, asked = wall_time(), trio.current_time()
        await stream.send_all(question)
        answer = await stream.receive_exactly(ANSWER_BYTES)
        return offset_of(read_answer(question, answer), wall, trio.current_time() - asked)
