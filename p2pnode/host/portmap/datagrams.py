"""PCP and NAT-PMP over UDP: asking, repeating, waiting; and hearing what routers announce.

A fresh socket for each question: its port is one more thing that who answers must know, besides
the router's address. Questions are repeated after 250 ms, and then after twice as long each time,
as RFC 6886 has it (section 3.1); PCP would begin at 3 s, which is long for somebody who waits for
his node to be reachable.
"""

import contextlib
import hmac
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import ClassVar, Final, TypeVar

import trio

from p2pnode.config import PortmapSettings
from p2pnode.errors import PortMappingError, ProtocolError
from p2pnode.host.portmap import natpmp, pcp
from p2pnode.host.portmap.core import Epoch
from p2pnode.host.portmap.interfaces import Mapping, Port, PortMapper
from p2pnode.host.portmap.route import Gateway

_FIRST_PAUSE: Final = 0.25  # seconds until a question is repeated
_ANNOUNCEMENTS: Final = ("224.0.0.1", 5350)  # where routers speak unasked; section 3.2.1
_LARGEST: Final = pcp.MAX_BYTES + 1

T = TypeVar("T")


class _Asker:
    """Asks a router at one port.

    Args:
        gateway: whom, and as whom.
        timeout: seconds for one question, repetitions included.
        port: where.
    """

    def __init__(self, gateway: Gateway, timeout: float, port: int) -> None:
        self._gateway = gateway
        self._timeout = timeout
        self._port = port

    async def ask(self, request: bytes, read: Callable[[bytes], T | None]) -> T:
        """Send `request` until `read` makes something of an answer.

        Raises:
            PortMappingError: the router says no, or nothing.
        """
        place = f"{self._gateway.ip} does not answer at port {self._port}"
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            try:
                await opened.bind((str(self._gateway.own), 0))
                await opened.connect((str(self._gateway.ip), self._port))
                with trio.move_on_after(self._timeout):
                    return await self._repeat(opened, request, read)
            except OSError as error:  # nobody is there, or there is no way now
                raise PortMappingError(f"{place}: {error.strerror or error}".lower()) from error
        raise PortMappingError(place)

    async def _repeat(
        self,
        opened: trio.socket.SocketType,
        request: bytes,
        read: Callable[[bytes], T | None],
    ) -> T:
        pause = _FIRST_PAUSE
        while True:
            await opened.send(request)
            with trio.move_on_after(pause):
                while True:
                    data = await opened.recv(_LARGEST)
                    with contextlib.suppress(ProtocolError):  # somebody else's, or garbage
                        if (answer := read(data)) is not None:
                            return answer
            pause *= 2


class PcpMapper(PortMapper):
    """Asks by PCP.

    Args:
        gateway: the router.
        settings: how long to wait.
        secret: what the nonces are made from that keep others from changing our mappings. Who keeps
            it over a restart may renew what it had before: routers refuse that to anybody else.
        port: where the router listens.
    """

    name: ClassVar[str] = "PCP"

    def __init__(
        self,
        gateway: Gateway,
        settings: PortmapSettings,
        secret: bytes,
        *,
        port: int = natpmp.PORT,
    ) -> None:
        self._gateway = gateway
        self._secret = secret
        self._asker = _Asker(gateway, settings.request_timeout, port)
        self._epoch = Epoch(drift=1 / 16, may_run_ahead=False)
        self._forgot = False

    async def find(self) -> None:
        """See `PortMapper`."""
        await self._announce()

    async def map(self, port: Port, external_port: int, lifetime: float) -> Mapping:
        """See `PortMapper`."""
        answer = await self._map(port, external_port, int(lifetime))
        if not answer.lifetime or not answer.external_port:
            raise PortMappingError("the router grants a mapping for no time at all")
        return Mapping(
            port=port,
            external_ip=answer.external_ip,
            external_port=answer.external_port,
            lifetime=min(float(answer.lifetime), lifetime),
        )

    async def unmap(self, mapping: Mapping) -> None:
        """See `PortMapper`."""
        await self._map(mapping.port, 0, 0)

    async def check(self, held: Sequence[Mapping]) -> bool:
        """See `PortMapper`.

        A renewal tells more than an announcement: also whether the router's address has changed.
        """
        same = True
        if held:
            answer = await self._map(held[0].port, held[0].external_port, int(held[0].lifetime))
            same = (answer.external_ip, answer.external_port) == (
                held[0].external_ip,
                held[0].external_port,
            )
        else:
            await self._announce()
        forgot, self._forgot = self._forgot, False
        return same and not forgot

    async def _announce(self) -> None:
        def read(data: bytes) -> pcp.Announced | None:
            answer = pcp.read(data)
            return answer if isinstance(answer, pcp.Announced) else None

        answer = await self._asker.ask(pcp.announce_request(self._gateway.own), read)
        self._note(answer.epoch)

    async def _map(self, port: Port, external_port: int, lifetime: int) -> pcp.Mapped:
        name = f"{port.kind}/{port.number}".encode()
        nonce = hmac.digest(self._secret, name, "sha256")[: pcp.NONCE_BYTES]

        def read(data: bytes) -> pcp.Mapped | None:
            answer = pcp.read(data)
            fits = isinstance(answer, pcp.Mapped) and (answer.nonce, answer.port) == (nonce, port)
            return answer if isinstance(answer, pcp.Mapped) and fits else None

        request = pcp.map_request(self._gateway.own, nonce, port, external_port, lifetime)
        answer = await self._asker.ask(request, read)
        self._note(answer.epoch)
        return answer

    def _note(self, epoch: int) -> None:
        self._forgot |= not self._epoch.receive(epoch, trio.current_time())


class NatPmpMapper(PortMapper):
    """Asks by NAT-PMP.

    Args:
        gateway: the router.
        settings: how long to wait.
        port: where the router listens.
    """

    name: ClassVar[str] = "NAT-PMP"

    def __init__(
        self, gateway: Gateway, settings: PortmapSettings, *, port: int = natpmp.PORT
    ) -> None:
        self._asker = _Asker(gateway, settings.request_timeout, port)
        self._epoch = Epoch(drift=1 / 8, may_run_ahead=True)
        self._external_ip: IPv4Address | None = None
        self._forgot = False

    async def find(self) -> None:
        """See `PortMapper`."""
        await self._look()

    async def map(self, port: Port, external_port: int, lifetime: float) -> Mapping:
        """See `PortMapper`."""
        external_ip = self._external_ip or await self._look()
        answer = await self._map(port, external_port, int(lifetime))
        if not answer.lifetime or not answer.external_port:
            raise PortMappingError("the router grants a mapping for no time at all")
        return Mapping(
            port=port,
            external_ip=external_ip,
            external_port=answer.external_port,
            lifetime=min(float(answer.lifetime), lifetime),
        )

    async def unmap(self, mapping: Mapping) -> None:
        """See `PortMapper`."""
        await self._map(mapping.port, 0, 0)

    async def check(self, held: Sequence[Mapping]) -> bool:
        """See `PortMapper`."""
        before = self._external_ip
        now = await self._look()
        forgot, self._forgot = self._forgot, False
        return not forgot and now == before and all(each.external_ip == now for each in held)

    async def _look(self) -> IPv4Address:
        def read(data: bytes) -> natpmp.External | None:
            answer = natpmp.read(data)
            return answer if isinstance(answer, natpmp.External) else None

        answer = await self._asker.ask(natpmp.EXTERNAL_REQUEST, read)
        self._note(answer.epoch)
        self._external_ip = answer.ip
        return answer.ip

    async def _map(self, port: Port, external_port: int, lifetime: int) -> natpmp.Mapped:
        def read(data: bytes) -> natpmp.Mapped | None:
            answer = natpmp.read(data)
            fits = isinstance(answer, natpmp.Mapped) and answer.port == port
            return answer if isinstance(answer, natpmp.Mapped) and fits else None

        answer = await self._asker.ask(natpmp.map_request(port, external_port, lifetime), read)
        self._note(answer.epoch)
        return answer

    def _note(self, epoch: int) -> None:
        self._forgot |= not self._epoch.receive(epoch, trio.current_time())


async def hear_announcements(gateway: Gateway, heard: Callable[[], object]) -> None:
    """Call `heard` whenever the router says something unasked: it has restarted, or moved.

    What it says is not read: anybody could have sent it. It is a reason to ask.

    Raises:
        OSError: this machine does not let us listen there.
    """
    group, port = _ANNOUNCEMENTS
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await opened.bind((group, port))
        member = struct.pack("4s4s", socket.inet_aton(group), gateway.own.packed)
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        while True:
            _, sender = await opened.recvfrom(_LARGEST)
            if sender[0] == str(gateway.ip):
                heard()
