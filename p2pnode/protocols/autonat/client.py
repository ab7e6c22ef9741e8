"""Asks one server whether it reaches us: AutoNAT's client, both versions.

A server may lie. That we could not be reached can only be its word; that we were can be checked:

- Version 2 brings a nonce to the address that was dialled. It must come on a connection that was
  opened from the other end after we asked, and of the kind that was to be dialled.
- Version 1 brings nothing; but whoever reached us has opened a connection, so one must have come.
"""

import secrets
from dataclasses import dataclass
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import ReachabilitySettings
from p2pnode.errors import ProtocolError, StreamResetError
from p2pnode.host import Connection, ConnectionOpened, Host, Stream, finishing
from p2pnode.host.budgets.rates import plain_ip
from p2pnode.host.reachability.verdicts import Probe, Result
from p2pnode.protocols.autonat.core import dial_data_pieces
from p2pnode.protocols.autonat.messages import (
    DIAL_BACK,
    DIAL_BACK_RESPONSE,
    DIAL_REQUEST,
    MAX_NONCE_MESSAGE,
    PROTOCOL_V1,
    DialDataRequest,
    DialRequest,
    DialResponse,
    DialStatus,
    ResponseStatus,
    V1Status,
    V2Message,
    decode_dial_back,
    decode_v1_answer,
    decode_v2,
    encode_v1_request,
    encode_v2,
)
from p2pnode.wire import varint

_NONCE_BITS: Final = 64
_GRACE: Final = 2.0  # seconds that a connection may come in after the word that it was opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a request.

    Attributes:
        result: whether we were reached.
        text: more about that, for people.
        about: the addresses it holds for.
    """

    result: Result
    text: str
    about: tuple[Multiaddr, ...] = ()


@dataclass(slots=True)
class _Expected:
    """A dial-back that somebody was asked for."""

    since: float
    connection: Connection | None = None  # the one it has come on


class AutonatClient:
    """Asks servers, and takes their dial-backs while `run` runs."""

    def __init__(self, host: Host, settings: ReachabilitySettings) -> None:
        self._host = host
        self._settings = settings
        self._expected: dict[int, _Expected] = {}  # by nonce

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take dial-backs until cancelled."""
        self._host.set_handler(DIAL_BACK, self._receive_dial_back)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._host.remove_handler(DIAL_BACK)

    async def ask(self, probe: Probe) -> Answer:
        """Have a server dial us; connects to it if needed.

        Raises:
            P2PNodeError: the server cannot be reached, or breaks the rules.
        """
        if probe.addresses and DIAL_REQUEST in self._host.protocols_of(probe.peer_id):
            return await self._ask_v2(probe)
        return await self._ask_v1(probe)

    # --- version 1 ------------------------------------------------------------------------------

    async def _ask_v1(self, probe: Probe) -> Answer:
        came = trio.Event()

        def receive_opened(event: ConnectionOpened) -> None:
            if event.connection.direction == "inbound" and not event.connection.is_relayed:
                came.set()

        undo = self._host.events.on(ConnectionOpened, receive_opened)
        try:
            return await self._ask_v1_while(probe, came)
        finally:
            undo()

    async def _ask_v1_while(self, probe: Probe, came: trio.Event) -> Answer:
        stream = await self._open(probe, PROTOCOL_V1)
        async with finishing(stream):
            request = encode_v1_request(self._host.peer_id, probe.addresses)
            await stream.send_all(varint.prefixed(request))
            answer = decode_v1_answer(await self._receive(stream))
        said = f"{answer.status.name}: {answer.text}" if answer.text else answer.status.name
        if answer.status is V1Status.E_DIAL_ERROR:
            return Answer(result=Result.FAILED, text=said, about=self._tried(probe))
        if answer.status is not V1Status.OK:
            return Answer(result=Result.USELESS, text=said)
        with trio.move_on_after(_GRACE):
            await came.wait()
        if not came.is_set():
            return Answer(result=Result.USELESS, text="it says that it reached us; nobody came")
        about = probe.addresses if len(probe.addresses) == 1 else ()
        if answer.address is not None:
            about = (answer.address,)
        return Answer(result=Result.REACHED, text=said, about=about)

    def _tried(self, probe: Probe) -> tuple[Multiaddr, ...]:
        """Return the addresses that a server must have tried, which sees us at one IP address."""
        ips = {plain_ip(each) for each in probe.addresses}
        return probe.addresses if len(ips) == 1 else ()

    # --- version 2 ------------------------------------------------------------------------------

    async def _ask_v2(self, probe: Probe) -> Answer:
        nonce = secrets.randbits(_NONCE_BITS)
        expected = self._expected[nonce] = _Expected(trio.current_time())
        try:
            stream = await self._open(probe, DIAL_REQUEST)
            async with finishing(stream):
                response = await self._request(stream, probe, nonce)
        finally:
            del self._expected[nonce]
        return _judge(probe, response, expected)

    async def _request(self, stream: Stream, probe: Probe, nonce: int) -> DialResponse:
        await self._send(stream, DialRequest(addresses=probe.addresses, nonce=nonce))
        message = await self._receive_v2(stream)
        if isinstance(message, DialDataRequest):
            if message.index >= len(probe.addresses):
                raise ProtocolError("dial data was asked for an address that there is not")
            if message.size > self._settings.max_dial_data:
                raise ProtocolError(f"{message.size} bytes of dial data are too much to ask for")
            for piece in dial_data_pieces(message.size):
                await self._send(stream, piece)
            message = await self._receive_v2(stream)
        if not isinstance(message, DialResponse):
            raise ProtocolError("an AutoNAT request was answered by something else")
        return message

    async def _receive_dial_back(self, stream: Stream) -> None:
        with trio.move_on_after(self._settings.read_timeout) as scope:
            data = await stream.receive_prefixed(MAX_NONCE_MESSAGE)
            if data is None:
                raise ProtocolError("a dial-back ended without a nonce")
            expected = self._expected.get(decode_dial_back(data))
            if expected is None:
                raise StreamResetError("nobody was asked for this dial-back, or long ago")
            expected.connection = stream.connection
            await stream.send_all(varint.prefixed(DIAL_BACK_RESPONSE))
        if scope.cancelled_caught:
            raise StreamResetError("a dial-back took too long")

    # --- both -----------------------------------------------------------------------------------

    async def _open(self, probe: Probe, protocol: str) -> Stream:
        connection = await self._host.connect(probe.peer_id, direct=True)
        return await connection.open_stream([protocol])

    async def _send(self, stream: Stream, message: V2Message) -> None:
        await stream.send_all(varint.prefixed(encode_v2(message)))

    async def _receive(self, stream: Stream) -> bytes:
        data = await stream.receive_prefixed(self._settings.max_message_bytes)
        if data is None:
            raise ProtocolError("an AutoNAT stream ended without an answer")
        return data

    async def _receive_v2(self, stream: Stream) -> V2Message:
        data = await self._receive(stream)
        return decode_v2(data, limit=self._settings.max_requested_addresses)


def _judge(probe: Probe, response: DialResponse, expected: _Expected) -> Answer:
    """Say what a response of version 2 means, given who has come."""
    if response.status is not ResponseStatus.OK:
        return Answer(result=Result.USELESS, text=response.status.name)
    if response.index >= len(probe.addresses):
        return Answer(result=Result.USELESS, text="it speaks of an address that there is not")
    address = probe.addresses[response.index]
    said = response.dial_status.name
    if _proves(expected, address):
        return Answer(result=Result.REACHED, text=said, about=(address,))
    if response.dial_status is DialStatus.E_DIAL_ERROR:
        return Answer(result=Result.FAILED, text=said, about=(address,))
    if response.dial_status is DialStatus.OK:
        said = "it says that it reached us; nobody came"
    return Answer(result=Result.USELESS, text=said)


def _proves(expected: _Expected, address: Multiaddr) -> bool:
    """Tell whether the nonce has come on a connection that was dialled at such an address."""
    connection = expected.connection
    return (
        connection is not None
        and connection.direction == "inbound"
        and not connection.is_relayed
        and connection.opened_at >= expected.since
        and _kind(connection.local_address) == _kind(address)
    )


def _kind(address: Multiaddr) -> tuple[int | None, str]:
    ip = plain_ip(address)
    names = [each.name for each in address.protocols()]
    return None if ip is None else ip.version, names[1] if len(names) > 1 else ""
