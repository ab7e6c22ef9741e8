"""One stream to one holder of states: `/p2pnode/weights/1.0.0`, the asker's side."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

import trio

from p2pnode.config import WeightsSettings
from p2pnode.errors import (
    DeadlineExceededError,
    ProtocolError,
    ProtocolNotSupportedError,
    UnknownExpertError,
)
from p2pnode.host import Stream
from p2pnode.rpc.access import Access
from p2pnode.rpc.budget import Charge
from p2pnode.swarm.weights.messages import (
    MAX_MESSAGE_BYTES,
    Have,
    HaveRequest,
    Head,
    HeadRequest,
    Hello,
    ManifestRequest,
    Payload,
    Refusal,
    WeightsReply,
    WeightsRequest,
    decode_reply,
    encode_hello,
    encode_request,
)
from p2pnode.wire.peer_id import PeerId

R = TypeVar("R", bound=WeightsReply)


@contextlib.asynccontextmanager
async def greeted(
    access: Access, peer_id: PeerId, run_id: str, protocol: str
) -> AsyncIterator[tuple[Stream, bytes]]:
    """Open a stream for one run, and give it with the greeting that it has to begin with.

    Raises:
        NotAMemberError: this node is no member of the run.
        DialError: the peer cannot be reached, or only over a relay that carries too little.
        UnknownExpertError: it does not speak the protocol.
        RemoteError: the stream failed.
    """
    membership = access.membership(run_id)
    connection = await access.connect(peer_id)
    stream = await connection.open_stream([protocol])
    done = False
    try:
        hello = Hello(
            run_id=run_id,
            scope="host" if "host" in membership.scopes else "train",
            token=membership.token,
        )
        yield stream, encode_hello(hello)
        done = True
    except ProtocolNotSupportedError as error:
        raise UnknownExpertError(f"{peer_id} hosts no experts") from error
    finally:
        if not done:
            stream.reset()
    await stream.aclose()


class WeightsSession:
    """One stream to one holder; questions are answered in their order.

    All methods raise, besides what each says, `DeadlineExceededError` when the answer takes too
    long, `ProtocolError` when it is none, the holder's own `CallError`, and `StreamResetError` or
    `ConnectionClosedError` when it is lost.
    """

    def __init__(self, stream: Stream, settings: WeightsSettings, greeting: bytes) -> None:
        self._stream = stream
        self._settings = settings
        self._unsent = greeting  # goes with the first question

    async def head(self, request: HeadRequest) -> Head:
        """Ask for the newest version of an expert."""
        await self.ask(request)
        return await self._reply(Head, self._settings.request_timeout)

    async def manifest(self, name: bytes, charge: Charge) -> bytes:
        """Ask what a state is made of; the hash of an honest answer is the name.

        Args:
            name: the state's name.
            charge: is charged for the answer before there is memory for it.

        Raises:
            OverloadedError: there is no room for it, at the holder or here.
        """
        await self.ask(ManifestRequest(name=name))
        payload = await self._reply(Payload, self._settings.request_timeout)
        charge.add(2 * payload.size)  # what is received, and the copy that is returned
        with self._within(self._settings.request_timeout):
            return await self._stream.receive_exactly(payload.size)

    async def have(self, name: bytes, *, beyond: int = 0, within: float = 0.0) -> int:
        """Ask which chunks of a state the holder has; returns the set of them.

        Args:
            name: the state's name.
            beyond: how many of them are known here.
            within: how many seconds the holder may wait for there to be more.
        """
        await self.ask(HaveRequest(name=name, beyond=beyond, within=within))
        return (await self._reply(Have, self._settings.request_timeout + within)).chunks

    async def chunk(self, buffer: memoryview) -> int | None:
        """Receive the chunk that was asked for first into `buffer`, which has its size.

        Returns:
            Which chunks the holder has, if these are more than it last said.

        Raises:
            ProtocolError: it has another size.
        """
        payload = await self._reply(Payload, self._settings.chunk_patience)
        if payload.size != len(buffer):
            raise ProtocolError(f"a chunk has {payload.size} bytes instead of {len(buffer)}")
        with self._within(self._settings.chunk_patience):
            await self._stream.receive_into(buffer)
        return payload.have

    async def ask(self, *requests: WeightsRequest) -> None:
        """Send questions without waiting for their answers."""
        data = b"".join((self._unsent, *map(encode_request, requests)))
        self._unsent = b""
        with self._within(self._settings.request_timeout):
            await self._stream.send_all(data)

    async def _reply(self, kind: type[R], timeout: float) -> R:
        with self._within(timeout):
            data = await self._stream.receive_prefixed(MAX_MESSAGE_BYTES)
        if data is None:
            raise ProtocolError("the holder ended the stream instead of answering")
        reply = decode_reply(data)
        if isinstance(reply, Refusal):
            raise reply.error
        if not isinstance(reply, kind):
            raise ProtocolError("the holder answered another question than the one asked")
        return reply

    @contextlib.contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        with trio.move_on_after(seconds) as scope:
            yield
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"the holder did not answer within {seconds:g} s")
