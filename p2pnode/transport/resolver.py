"""From addresses with names to addresses with numbers: `/dns`, `/dns4`, `/dns6` and `/dnsaddr`.

A `/dnsaddr` name stands for a list of addresses, kept in TXT records of the form `dnsaddr=/…` at
`_dnsaddr.<name>`; those may hold names again. What peers are called is up to strangers, so every
address has a bounded time, depth and number of names. (libp2p/specs, addressing.)

The system answers for names of machines, hosts file included, unless the settings list servers.
"""

import contextlib
import functools
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import NetworkSettings
from p2pnode.errors import ConfigError, DialError, InvalidAddressError
from p2pnode.wire.addresses import (
    IpAddress,
    NamePart,
    name_of,
    parse_address,
    split_p2p,
    with_ip,
)
from p2pnode.wire.peer_id import PeerId

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver as DnsResolver

_DNSADDR: Final = "dnsaddr="
_DNS_PORT: Final = 53
# Seconds. Some servers never answer for IPv6; once IPv4 is known they are not waited for, nor the
# other way round (RFC 8305, section 3).
_OTHER_FAMILY_PATIENCE: Final = 0.5
_PORTS: Final = range(1, 1 << 16)
_FAMILIES: Final = {
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}
_RECORDS: Final = {"dns": ("AAAA", "A"), "dns4": ("A",), "dns6": ("AAAA",)}


def parse_server(text: str) -> tuple[str, int]:
    """Read a name server's address: an IP address, with a port if it is not 53.

    Raises:
        ConfigError: it cannot be read.
    """
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text)), _DNS_PORT
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        return str(ipaddress.ip_address(host)), _PORTS[_PORTS.index(int(port))]
    except ValueError as error:
        raise ConfigError(
            f"network.dns_servers: {text!r} is not an IP address such as 192.0.2.1 or [::1]:53"
        ) from error


class Resolver:
    """Resolves the names in addresses; one serves a whole host.

    Raises:
        ConfigError: `settings` list a name server that is no IP address.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._servers = [parse_server(each) for each in settings.dns_servers]
        # A thread that waits for the system's resolver cannot be stopped, only left behind. With a
        # limiter of their own, slow names delay other names and nothing else.
        self._threads = trio.CapacityLimiter(settings.dns_lookups_at_once)
        self._queries = trio.CapacityLimiter(settings.dns_lookups_at_once)

    async def resolve(self, address: Multiaddr, peer_id: PeerId | None = None) -> list[Multiaddr]:
        """Turn an address into those to dial, without names and without their `/p2p` part.

        Args:
            address: with or without a name; without one, it is its own meaning.
            peer_id: who shall be reached. What a list says about other peers is left out.

        Raises:
            DialError: the name cannot be resolved, or means nothing of use.
        """
        await trio.lowlevel.checkpoint()
        address, named = split_p2p(address)
        name = name_of(address)
        if name is None:
            return [address]
        search = _Search(self, self._settings, peer_id or named)
        with trio.move_on_after(self._settings.dns_timeout) as scope:
            await search.follow([address], depth=0)
        if search.found:
            return list(search.found)[: self._settings.dns_max_addresses]
        if search.failure is None and scope.cancelled_caught:
            search.failure = f"no answer within {self._settings.dns_timeout:g} s"
        raise DialError(
            f"the name {name.name} cannot be resolved: {search.failure or 'it has no addresses'}"
        )

    async def ask_addresses(self, name: NamePart) -> list[IpAddress]:
        """Return the addresses of a machine.

        Raises:
            LookupError: it has none, or none could be had; the message says why.
        """
        if not self._servers:
            return await self._ask_system(name)
        records = _RECORDS[name.kind]
        found: dict[str, list[str]] = {}
        failures: dict[str, str] = {}

        async def ask(record: str) -> None:
            try:
                found[record] = await self._ask_servers(name.name, record)
            except LookupError as error:
                failures[record] = str(error)
            else:
                nursery.cancel_scope.deadline = trio.current_time() + _OTHER_FAMILY_PATIENCE

        async with trio.open_nursery() as nursery:
            for record in records:
                nursery.start_soon(ask, record)
        if not found:
            raise LookupError(next(failures[each] for each in records if each in failures))
        texts = [text for record in records for text in found.get(record, ())]
        return list(map(ipaddress.ip_address, texts))

    async def ask_list(self, name: str) -> list[str]:
        """Return the texts kept under a `/dnsaddr` name; raises as `ask_addresses` does."""
        return await self._ask_servers(f"_dnsaddr.{name}", "TXT")

    async def _ask_system(self, name: NamePart) -> list[IpAddress]:
        ask = functools.partial(
            socket.getaddrinfo,
            name.name,
            None,
            family=_FAMILIES[name.kind],
            type=socket.SOCK_STREAM,
        )
        try:
            answers = await trio.to_thread.run_sync(
                ask, limiter=self._threads, abandon_on_cancel=True
            )
        except (OSError, UnicodeError) as error:
            raise LookupError(_sentence(error)) from error
        texts = [str(answer[4][0]).partition("%")[0] for answer in answers]
        return list(map(ipaddress.ip_address, dict.fromkeys(texts)))

    async def _ask_servers(self, name: str, record: str) -> list[str]:
        # Importing these takes as long as the rest of the network code, and few nodes need them.
        import dns.asyncbackend  # noqa: PLC0415  # see above
        import dns.exception  # noqa: PLC0415  # see above

        backend = dns.asyncbackend.get_backend("trio")
        try:
            async with self._queries:
                answer = await self._dns_resolver().resolve(
                    name.rstrip(".") + ".", record, backend=backend, search=False
                )
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise LookupError(_sentence(error)) from error
        if record == "TXT":
            return [b"".join(each.strings).decode("utf-8", "replace") for each in answer]
        return [str(each.address) for each in answer]

    def _dns_resolver(self) -> "DnsResolver":
        """Return a fresh one: the system's servers change when a machine moves."""
        import dns.asyncresolver  # noqa: PLC0415  # see `_ask_servers`
        import dns.nameserver  # noqa: PLC0415  # see `_ask_servers`

        resolver = dns.asyncresolver.Resolver(configure=not self._servers)
        if self._servers:
            resolver.nameservers = [
                dns.nameserver.Do53Nameserver(host, port) for host, port in self._servers
            ]
        resolver.lifetime = self._settings.dns_timeout
        return resolver


class _Search:
    """Everything one address leads to."""

    def __init__(
        self, resolver: Resolver, settings: NetworkSettings, peer_id: PeerId | None
    ) -> None:
        self.found: dict[Multiaddr, None] = {}  # in the order of the answers
        self.failure: str | None = None
        self._resolver = resolver
        self._settings = settings
        self._peer_id = peer_id
        self._followed: set[Multiaddr] = set()
        self._names = 0

    async def follow(self, addresses: Sequence[Multiaddr], depth: int) -> None:
        """Resolve `addresses`, all of which start with names, and what they lead to."""
        meanings: list[list[Multiaddr]] = [[] for _ in addresses]

        async def look_up(place: int, address: Multiaddr) -> None:
            try:
                meanings[place] = await self._meaning(address)
            except LookupError as error:
                self._fail(str(error))

        try:
            async with trio.open_nursery() as nursery:
                for place, address in enumerate(addresses):
                    if self._may_follow(address, depth):
                        nursery.start_soon(look_up, place, address)
        finally:  # one silent name must not cost what the others have told in time
            further = self._take_in(each for one in meanings for each in one)
        if further and len(self.found) < self._settings.dns_max_addresses:
            await self.follow(further, depth + 1)

    def _take_in(self, meanings: Iterable[Multiaddr]) -> list[Multiaddr]:
        """Keep those without names; returns the others."""
        further: list[Multiaddr] = []
        for each in meanings:
            address, peer_id = split_p2p(each)
            if self._peer_id and peer_id and peer_id != self._peer_id:
                continue
            if name_of(address) is None:
                self.found[address] = None
            else:
                further.append(address)
        return further

    async def _meaning(self, address: Multiaddr) -> list[Multiaddr]:
        name = name_of(address)
        assert name is not None
        if name.kind != "dnsaddr":
            return [with_ip(address, ip) for ip in await self._resolver.ask_addresses(name)]
        rest = b"".join(part.to_bytes() for part in address.split()[1:])
        listed = read_list(await self._resolver.ask_list(name.name))
        return [each for each in listed if split_p2p(each)[0].to_bytes().endswith(rest)]

    def _may_follow(self, address: Multiaddr, depth: int) -> bool:
        """Whether `address` is new, and within the bounds."""
        if address in self._followed:
            return False
        self._followed.add(address)
        if depth > self._settings.dnsaddr_max_depth:
            self._fail("its lists lead to lists too often")
            return False
        self._names += 1
        if self._names > self._settings.dnsaddr_max_names:
            self._fail("it leads to too many names")
            return False
        return True

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason


def read_list(texts: Iterable[str]) -> list[Multiaddr]:
    """Read the texts at a `/dnsaddr` name; what is no address this node can read is left out."""
    found: dict[Multiaddr, None] = {}
    for text in texts:
        if text.startswith(_DNSADDR):
            try:
                found[parse_address(text.removeprefix(_DNSADDR))] = None
            except InvalidAddressError:
                continue
    return list(found)


def _sentence(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
