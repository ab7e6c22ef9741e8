"""Dials others back, to tell them whether they can be dialled: AutoNAT's server, both versions."""

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import trio
from multiaddr import Multiaddr

from p2pnode.config import ReachabilitySettings
from p2pnode.errors import (
    NoRouteError,
    P2PNodeError,
    ProtocolError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.host import Connection, Host, Stream, finishing
from p2pnode.host.ranking import ips_of
from p2pnode.protocols.autonat.core import (
    Choice,
    DialDataMeter,
    Gatekeeper,
    choose_v1,
    choose_v2,
)
from p2pnode.protocols.autonat.messages import (
    DIAL_BACK,
    DIAL_REQUEST,
    MAX_NONCE_MESSAGE,
    PROTOCOL_V1,
    Addresses,
    DialData,
    DialDataRequest,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
    V1Answer,
    V1Status,
    V2Message,
    check_dial_back_response,
    decode_v1_request,
    decode_v2,
    encode_dial_back,
    encode_v1_answer,
    encode_v2,
)
from p2pnode.wire import varint
from p2pnode.wire.peer_id import PeerId

T = TypeVar("T")


class AutonatServer:
    """Serves AutoNAT while `run` runs.

    Args:
        host: dials, and knows its own addresses.
        settings: what it may be used for, and how much.
        rng: how much data a dial to a third place costs, and when it is made.
    """

    def __init__(self, host: Host, settings: ReachabilitySettings, rng: random.Random) -> None:
        self._host = host
        self._settings = settings
        self._rng = rng
        self._gate = Gatekeeper(settings)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        self._host.set_handler(PROTOCOL_V1, self._answer_v1)
        self._host.set_handler(DIAL_REQUEST, self._answer_v2)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._host.remove_handler(PROTOCOL_V1)
            self._host.remove_handler(DIAL_REQUEST)

    # --- version 1 ------------------------------------------------------------------------------

    async def _answer_v1(self, stream: Stream) -> None:
        data = await self._in_time(lambda: self._receive(stream))
        answer = await self._dial_v1(stream.connection, data)
        await self._in_time(lambda: stream.send_all(varint.prefixed(encode_v1_answer(answer))))

    async def _dial_v1(self, connection: Connection, data: bytes) -> V1Answer:
        settings = self._settings
        try:
            peer_id, asked = decode_v1_request(data, limit=settings.max_requested_addresses)
        except ProtocolError as error:
            return V1Answer(status=V1Status.E_BAD_REQUEST, text=str(error))
        if peer_id != connection.peer_id:
            text = "only oneself can be asked for"
            return V1Answer(status=V1Status.E_BAD_REQUEST, text=text)
        refusal = self._enter(connection)
        if refusal is not None:
            return V1Answer(status=V1Status.E_DIAL_REFUSED, text=refusal)
        try:
            return await self._dial_all(peer_id, self._choose_v1(connection, asked))
        finally:
            self._gate.leave(peer_id)

    def _choose_v1(self, connection: Connection, asked: Addresses) -> list[Multiaddr]:
        return choose_v1(
            asked,
            connection.remote_address,
            own=ips_of(self._host.candidate_addresses),
            can_dial=self._host.can_dial,
            settings=self._settings,
        )

    async def _dial_all(self, peer_id: PeerId, addresses: list[Multiaddr]) -> V1Answer:
        """Try one address after the other, until one is reached."""
        failures: list[str] = []
        refusals = ["there is no address to dial"]
        for address in addresses:
            try:
                async with self._dial_anew(peer_id, address):
                    return V1Answer(status=V1Status.OK, address=address)
            except (NoRouteError, ResourceLimitError) as error:  # this node's own trouble
                refusals.append(f"{address}: {error}")
            except P2PNodeError as error:
                failures.append(f"{address}: {error}")
        if failures:
            return V1Answer(status=V1Status.E_DIAL_ERROR, text="; ".join(failures))
        return V1Answer(status=V1Status.E_DIAL_REFUSED, text=refusals[-1])

    # --- version 2 ------------------------------------------------------------------------------

    async def _answer_v2(self, stream: Stream) -> None:
        request = await self._in_time(lambda: self._receive_v2(stream))
        if not isinstance(request, DialRequest):
            raise ProtocolError("an AutoNAT stream does not begin with a request")
        if self._enter(stream.connection) is not None:
            response = DialResponse(status=ResponseStatus.E_REQUEST_REJECTED)
        else:
            try:
                response = await self._serve_v2(stream, request)
            finally:
                self._gate.leave(stream.peer_id)
        await self._in_time(lambda: self._send_v2(stream, response))

    async def _serve_v2(self, stream: Stream, request: DialRequest) -> DialResponse:
        choice = choose_v2(
            request.addresses,
            stream.connection.remote_address,
            own=ips_of(self._host.candidate_addresses),
            can_dial=self._host.can_dial,
            settings=self._settings,
        )
        if choice is None:
            return DialResponse(status=ResponseStatus.E_DIAL_REFUSED)
        if not choice.is_theirs:
            await self._in_time(lambda: self._take_payment(stream, choice))
            await trio.sleep(self._rng.uniform(0.0, self._settings.dial_data_wait))
        try:
            status = await self._dial_back(stream.peer_id, choice.address, request.nonce)
        except (NoRouteError, ResourceLimitError):  # this node's own trouble
            return DialResponse(status=ResponseStatus.E_DIAL_REFUSED)
        except P2PNodeError:
            status = DialStatus.E_DIAL_ERROR
        return DialResponse(status=ResponseStatus.OK, index=choice.index, dial_status=status)

    async def _take_payment(self, stream: Stream, choice: Choice) -> None:
        """Have the requester send more than the dial costs whoever is dialled."""
        meter = DialDataMeter(self._settings.dial_data_bytes, self._rng.random())
        await self._send_v2(stream, DialDataRequest(index=choice.index, size=meter.wanted))
        while not meter.is_complete:
            piece = await self._receive_v2(stream)
            if not isinstance(piece, DialData):
                raise ProtocolError("dial data was asked for, and something else came")
            meter.receive_piece(piece)

    async def _dial_back(self, peer_id: PeerId, address: Multiaddr, nonce: int) -> DialStatus:
        async with self._dial_anew(peer_id, address) as connection:
            try:
                with trio.move_on_after(self._settings.dial_back_timeout):
                    await _hand_over(connection, nonce)
                    return DialStatus.OK
            except P2PNodeError:
                pass  # it was reached, but does not take dial-backs
            return DialStatus.E_DIAL_BACK_ERROR

    # --- both -----------------------------------------------------------------------------------

    def _enter(self, connection: Connection) -> str | None:
        address = connection.remote_address
        return self._gate.enter(connection.peer_id, address, trio.current_time())

    def _dial_anew(
        self, peer_id: PeerId, address: Multiaddr
    ) -> AbstractAsyncContextManager[Connection]:
        return self._host.dial_anew(peer_id, address, timeout=self._settings.dial_timeout)

    async def _receive(self, stream: Stream) -> bytes:
        data = await stream.receive_prefixed(self._settings.max_message_bytes)
        if data is None:
            raise ProtocolError("an AutoNAT stream ended before its end")
        return data

    async def _receive_v2(self, stream: Stream) -> V2Message:
        data = await self._receive(stream)
        return decode_v2(data, limit=self._settings.max_requested_addresses)

    async def _send_v2(self, stream: Stream, message: V2Message) -> None:
        await stream.send_all(varint.prefixed(encode_v2(message)))

    async def _in_time(self, act: Callable[[], Awaitable[T]]) -> T:
        with trio.move_on_after(self._settings.read_timeout):
            return await act()
        raise StreamResetError("the peer took too long over its AutoNAT request")


async def _hand_over(connection: Connection, nonce: int) -> None:
    stream = await connection.open_stream([DIAL_BACK])
    async with finishing(stream):
        await stream.send_all(varint.prefixed(encode_dial_back(nonce)))
        answer = await stream.receive_prefixed(MAX_NONCE_MESSAGE)
        check_dial_back_response(answer or b"")
