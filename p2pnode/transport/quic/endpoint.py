"""All connections that share one UDP socket: which datagram is whose. Pure.

Connections are told apart by the id that the receiver has chosen, so they survive a peer whose
address changes. What belongs to none may begin one:

1. A version we do not speak is answered with those we do (RFC 9000, section 6).
2. The first datagram of a client must be of full size, so that nobody gets more than three times
   back what he sends in somebody else's name (section 8.1).
3. When many handshakes are under way, a client must first show by a token that it receives at the
   address it sends from (Retry, section 8.1.2). That costs this side nothing but the answer.
4. When there are too many, the oldest one of whoever has most of them gives way, see
   `p2pnode.transport.handshakes`.
5. A first packet that cannot be read begins nothing.

Everything else is noise, and is dropped without a word.
"""

import heapq
import ipaddress
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from aioquic._buffer import Buffer
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConnectionClosedError
from p2pnode.transport.handshakes import Handshakes
from p2pnode.transport.quic.core import Address, QuicCore, Verify
from p2pnode.transport.quic.engine import Engine
from p2pnode.transport.quic.state import StreamEvent

VERSIONS: Final = (QuicProtocolVersion.VERSION_1,)
ID_BYTES: Final = 8
_IP6_HOST_BITS: Final = 64  # one household has them all

Datagram = tuple[bytes, Address]


class Received(NamedTuple):
    """What came of a datagram.

    Attributes:
        core: the session it belongs to, or None.
        events: of its streams.
        is_new: whether the session has just begun, from the other side.
        replies: datagrams to send that belong to no session.
    """

    core: QuicCore | None = None
    events: Sequence[StreamEvent] = ()
    is_new: bool = False
    replies: Sequence[Datagram] = ()


class QuicEndpoint:
    """The connections of one socket; see the module.

    Args:
        configuration: of each connection, from this side's certificate to its windows.
        verify: tells whose certificates these are.
        settings: limits.
        token_bytes: gives so many bytes that nobody can guess.

    Attributes:
        is_listening: whether others may begin connections.
    """

    def __init__(
        self,
        configuration: QuicConfiguration,
        *,
        verify: Verify,
        settings: NetworkSettings,
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self.is_listening = False
        self._server = replace(configuration, is_client=False)
        self._client = replace(configuration, is_client=True)
        self._verify = verify
        self._settings = settings
        self._token_bytes = token_bytes
        self._tokens = QuicRetryTokenHandler()
        self._handshakes = Handshakes(settings.quic_max_handshakes)
        self._waiting: dict[QuicCore, ExitStack] = {}  # begun by others, and not taken yet
        self._names: dict[bytes, QuicCore] = {}
        self._names_of: dict[QuicCore, list[bytes]] = {}
        self._timers: list[tuple[float, int, QuicCore]] = []  # a heap; some are out of date
        self._deadlines: dict[QuicCore, float] = {}
        self._numbers = itertools.count()
        self._given_up: list[QuicCore] = []

    def __len__(self) -> int:
        return len(self._names_of)

    @property
    def handshakes(self) -> int:
        """How many connections others have begun that nobody has taken yet."""
        return len(self._waiting)

    def connect(self, address: Address, now: float) -> QuicCore:
        """Begin a connection."""
        engine = Engine(configuration=self._client, max_streams=self._settings.quic_max_streams)
        core = self._add(engine, now)
        engine.connect(address, now)
        return core

    def receive_datagram(self, data: bytes, address: Address, now: float) -> Received:
        """Take what has come to the socket."""
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=ID_BYTES)
        except ValueError:  # noise, or a hole being punched
            return Received()
        core = self._names.get(header.destination_cid)
        if core is not None:
            return Received(core=core, events=core.receive_datagram(data, address, now))
        may_begin = self.is_listening and len(data) >= SMALLEST_MAX_DATAGRAM_SIZE
        if not may_begin or header.version is None:
            return Received()
        if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return Received()  # to answer one with another would go on for ever
        if header.version not in VERSIONS:
            return Received(replies=[(_versions(header), address)])
        if header.packet_type is not QuicPacketType.INITIAL:
            return Received()
        return self._begin(header, data, address, now)

    def _begin(self, header: QuicHeader, data: bytes, address: Address, now: float) -> Received:
        original, retried = header.destination_cid, None
        proven = self._prove(header, address, now) if header.token else None
        if proven is not None:
            original, retried = proven, header.destination_cid
        elif len(self._waiting) >= self._settings.quic_retry_above:
            return Received(replies=[(self._retry(header, address, now), address)])
        engine = Engine(
            configuration=self._server,
            max_streams=self._settings.quic_max_streams,
            original_destination_connection_id=original,
            retry_source_connection_id=retried,
        )
        core = QuicCore(engine, verify=self._verify, settings=self._settings, now=now)
        events = core.receive_datagram(data, address, now)
        if not engine.has_begun:  # what cannot be read is noise, however it begins
            return Received()
        self._take_in(core)
        self._call(core, header.destination_cid)
        slot = self._waiting[core] = ExitStack()
        slot.enter_context(self._handshakes.hold(_origin(address), partial(self._give_way, core)))
        return Received(core=core, events=events, is_new=True)

    def take(self, core: QuicCore) -> None:
        """Note that somebody has taken a connection that was begun by the other side."""
        slot = self._waiting.pop(core, None)
        if slot is not None:
            slot.close()

    def _give_way(self, core: QuicCore) -> None:
        core.close(ConnectionClosedError("too many others were waiting"))
        self._given_up.append(core)

    def given_up(self) -> list[QuicCore]:
        """Return the connections that had to give way since the last call."""
        found, self._given_up = self._given_up, []
        return found

    # --- outputs --------------------------------------------------------------------------------

    def datagrams_to_send(self, core: QuicCore, now: float) -> list[Datagram]:
        """Return what a connection has to send; call it after each change to one."""
        found = core.datagrams_to_send(now)
        issued, retired = core.connection_ids()
        for name in issued:
            self._call(core, name)
        for name in retired:
            self._uncall(core, name)
        if core.failure is not None:
            self.take(core)
        if core.is_over:
            self._forget(core)
        else:
            self.set_timer(core)
        return found

    def next_deadline(self) -> float:
        """Return when `due` has something; infinity if never."""
        while self._timers and self._deadlines.get(self._timers[0][2]) != self._timers[0][0]:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else math.inf

    @property
    def is_pacing(self) -> bool:
        """Whether what is due next is data that waits for its pace."""
        return bool(self._timers) and self._timers[0][2].engine.is_paced

    def due(self, now: float) -> list[tuple[QuicCore, list[StreamEvent]]]:
        """Do what is due now; returns the connections it concerned, and what happened to each."""
        found = []
        while self.next_deadline() <= now:
            _, _, core = heapq.heappop(self._timers)
            del self._deadlines[core]
            found.append((core, core.handle_timeout(now)))
        return found

    def set_timer(self, core: QuicCore) -> None:
        """Note when something is due for a connection; call it after each change to one."""
        if core not in self._names_of:
            return
        deadline = core.next_deadline()
        if self._deadlines.get(core) != deadline:
            self._deadlines[core] = deadline
            heapq.heappush(self._timers, (deadline, next(self._numbers), core))
        if len(self._timers) > 64 + 4 * len(self._deadlines):  # too many are out of date
            live = {core: at for core, at in self._deadlines.items() if at < math.inf}
            self._timers = [(at, next(self._numbers), core) for core, at in live.items()]
            heapq.heapify(self._timers)

    # --- who is called what ---------------------------------------------------------------------

    def _add(self, engine: Engine, now: float) -> QuicCore:
        core = QuicCore(engine, verify=self._verify, settings=self._settings, now=now)
        self._take_in(core)
        return core

    def _take_in(self, core: QuicCore) -> None:
        self._names_of[core] = []
        for name in core.connection_ids()[0]:
            self._call(core, name)

    def _call(self, core: QuicCore, name: bytes) -> None:
        if core in self._names_of and name not in self._names:
            self._names[name] = core
            self._names_of[core].append(name)

    def _uncall(self, core: QuicCore, name: bytes) -> None:
        if self._names.get(name) is core:
            del self._names[name]
            self._names_of[core].remove(name)

    def _forget(self, core: QuicCore) -> None:
        for name in self._names_of.pop(core, ()):
            del self._names[name]
        self._deadlines.pop(core, None)

    # --- answers without a connection -----------------------------------------------------------

    def _prove(self, header: QuicHeader, address: Address, now: float) -> bytes | None:
        """Return what the client first called us, if its token is one of ours for its address."""
        try:
            return self._tokens.validate_token(
                address=address,
                destination_cid=header.destination_cid,
                token=header.token,
                now=now,
            )
        except ValueError:
            return None

    def _retry(self, header: QuicHeader, address: Address, now: float) -> bytes:
        name = self._token_bytes(ID_BYTES)
        token = self._tokens.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=name,
            now=now,
        )
        assert header.version is not None
        return encode_quic_retry(
            version=header.version,
            source_cid=name,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )


def _versions(header: QuicHeader) -> bytes:
    return encode_quic_version_negotiation(
        source_cid=header.destination_cid,
        destination_cid=header.source_cid,
        supported_versions=list(VERSIONS),
    )


def _origin(address: Address) -> str:
    """Return where an address is, without its port, and as far as one household goes."""
    ip = ipaddress.ip_address(address[0].partition("%")[0])
    if ip.version == 4:
        return str(ip)
    return str(ipaddress.ip_network((ip, _IP6_HOST_BITS), strict=False))
