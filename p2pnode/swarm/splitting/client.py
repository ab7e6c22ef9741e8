"""The asking side of split calls: one stream and one round trip each."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import trio

from p2pnode.config import RpcSettings
from p2pnode.errors import (
    DeadlineExceededError,
    ExpertFailedError,
    ProtocolError,
    TensorTooLargeError,
)
from p2pnode.host import Connection, Stream
from p2pnode.rpc.access import Access
from p2pnode.rpc.client import failures_of
from p2pnode.rpc.codecs.names import held_bytes
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.rpc.framing import IncomingMessage, send_and_receive
from p2pnode.rpc.schema import TensorMeta
from p2pnode.swarm.splitting.messages import (
    PROTOCOL,
    SplitReply,
    SplitRequest,
    decode_split_reply,
    encode_request,
)
from p2pnode.swarm.splitting.versions import Version
from p2pnode.wire.peer_id import PeerId


class SplitClient:
    """Makes split calls.

    Args:
        access: the way to other peers.
        settings: limits.
        transcoder: encodes and decodes tensors.
    """

    def __init__(self, access: Access, settings: RpcSettings, transcoder: Transcoder) -> None:
        self._access = access
        self._settings = settings
        self._transcoder = transcoder

    async def ask(
        self,
        peer_id: PeerId,
        request: SplitRequest,
        tensors: Sequence[torch.Tensor] = (),
        *,
        timeout: float,
        expected: tuple[TensorMeta, ...] = (),
    ) -> tuple[SplitReply, list[torch.Tensor]]:
        """Make one call.

        Args:
            peer_id: a peer of the expert's swarm.
            request: what is asked; token and deadline are filled in here.
            tensors: those that the request describes.
            timeout: seconds.
            expected: what the answer's tensors are, with their codec.

        Raises:
            DialError: the peer cannot be reached.
            HostLostError: it was lost; whether it did what was asked is not known.
            DeadlineExceededError: no answer came in time.
            NonFiniteError: the tensors hold NaN or infinite values, which their codec cannot
                carry; nothing was sent.
            TensorTooLargeError: there are more bytes than one call may have; nothing was sent.
            CallError: as the peer answered, or because it speaks the protocol badly or not at all.
        """
        size = sum(meta.nbytes for meta in request.tensors)
        if size > self._settings.max_call_bytes:
            raise TensorTooLargeError(
                f"{size} bytes of tensors in one call exceed the limit of"
                f" {self._settings.max_call_bytes}; send fewer rows at once"
            )
        membership = self._access.membership(request.uid.run)
        until = trio.current_time() + timeout
        with trio.move_on_at(until):
            buffers = await self._transcoder.encode(tensors, request.tensors)
            connection = await self._access.connect(peer_id)

            async def show(token: bytes | None) -> tuple[SplitReply, list[torch.Tensor]]:
                remaining = max(0.0, until - trio.current_time())
                message = replace(request, milliseconds=int(remaining * 1000), token=token)
                header = encode_request(message)
                return await self._exchange(connection, request, header, buffers, expected)

            return await self._access.show(connection, membership, show)
        raise DeadlineExceededError(
            f"{peer_id} did not answer the split {request.operation} call of {request.uid.name}"
            f" within {timeout:g} s"
        )

    async def version(self, peer_id: PeerId, request: SplitRequest, *, timeout: float) -> Version:
        """Make a call that is answered by the peer's version of the expert; raises as `ask`."""
        reply, _ = await self.ask(peer_id, request, timeout=timeout)
        return version_in(reply, peer_id)

    async def _exchange(
        self,
        connection: Connection,
        request: SplitRequest,
        header: bytes,
        buffers: Sequence[memoryview],
        expected: tuple[TensorMeta, ...],
    ) -> tuple[SplitReply, list[torch.Tensor]]:
        stream: Stream | None = None
        with failures_of(connection.peer_id, request.uid):
            try:
                stream = await connection.open_stream([PROTOCOL])
                incoming = IncomingMessage(stream)

                async def receive() -> tuple[SplitReply, list[torch.Tensor]]:
                    data = await incoming.header(self._settings.max_header_bytes)
                    reply = decode_split_reply(data)
                    if reply.error is None and reply.tensors != expected:
                        raise ProtocolError("its tensors are not what was asked for")
                    if sum(map(held_bytes, reply.tensors)) > self._settings.max_call_bytes:
                        raise ProtocolError("its tensors exceed the limit of one call")
                    received = await incoming.tensors(reply.tensors)
                    return reply, await self._transcoder.decode(received, reply.tensors)

                reply, tensors = await send_and_receive(stream, header, buffers, receive)
                await stream.aclose()
                stream = None
            finally:
                if stream is not None:
                    stream.reset()
        if reply.error is not None:
            raise reply.error
        return reply, tensors


def version_in(reply: SplitReply, peer_id: PeerId) -> Version:
    """Return the version that an answer must have.

    Raises:
        ExpertFailedError: it has none.
    """
    if reply.version is None:
        raise ExpertFailedError(f"{peer_id} did not say which version of the weights it has")
    return reply.version
