"""Keeps the ports that a host listens on mapped at its router, while `run` runs.

It asks by PCP, NAT-PMP and UPnP at once and goes on with the first of these that the router speaks.
The addresses it gets are told to the host, to be told on and verified; at the end they are given
back. A machine with a public address, or one that listens on loopback only, asks for nothing.

Where the router's own address is private, another translator stands before it, and a mapping would
lead nowhere: that is said, and no address told.
"""

import contextlib
import hashlib
import random
from collections import abc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import trio

from p2pnode.config import PortmapSettings
from p2pnode.errors import PortMappingError
from p2pnode.events import Event
from p2pnode.host.interfaces import LocalPeerChanged
from p2pnode.host.node import NetworkHost
from p2pnode.host.portmap.core import Leases
from p2pnode.host.portmap.datagrams import NatPmpMapper, PcpMapper, hear_announcements
from p2pnode.host.portmap.interfaces import Kind, Mapping, Port, PortMapper
from p2pnode.host.portmap.route import Gateway, find_gateway
from p2pnode.host.portmap.upnp import UpnpMapper
from p2pnode.host.reachability.observed import Place, tails_by_place

_KINDS: Final[dict[str, Kind]] = {"tcp": "tcp", "udp": "udp"}
_SECRET: Final = b"p2pnode: nonces of port mappings"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortsMapped(Event):
    """The router lets others in, or does so at other places than before.

    Attributes:
        protocol: how it was asked.
        gateway: the router.
        mappings: all that hold now.
    """

    level = "info"

    protocol: str
    gateway: IPv4Address
    mappings: tuple[Mapping, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMappingFailed(Event):
    """The router does not let others in; it is asked again later."""

    level = "info"

    gateway: IPv4Address
    reason: str


class PortMappingService:
    """Asks the router on behalf of a host.

    Args:
        host: whose listening ports are mapped.
        settings: times and bounds.
        rng: chance.
        find: which router there is, if any.
        ways: how that can be asked, the best first.
        announcements: calls a function whenever the router says something unasked.

    Attributes:
        protocol: how the router is asked; None as long as it is not.
        mappings: those that hold.
        failure: why there are none, or fewer than there should be; empty if all is well.
    """

    def __init__(
        self,
        host: NetworkHost,
        settings: PortmapSettings | None = None,
        rng: random.Random | None = None,
        *,
        find: Callable[[], Gateway | None] = find_gateway,
        ways: Callable[[Gateway], Sequence[PortMapper]] | None = None,
        announcements: Callable[
            [Gateway, Callable[[], object]], Awaitable[None]
        ] = hear_announcements,
    ) -> None:
        self.protocol: str | None = None
        self.mappings: tuple[Mapping, ...] = ()
        self.failure = ""
        self._host = host
        self._settings = settings or PortmapSettings()
        self._rng = rng or random.Random()
        self._find = find
        self._ways = ways or self._all_ways
        self._announcements = announcements
        # The same after a restart, and known to nobody else: signatures of Ed25519 are no chance.
        self._secret = hashlib.sha256(host.key.sign(_SECRET)).digest()
        self._threads = trio.CapacityLimiter(1)
        self._wake = trio.Event()
        self._stirred = False

    def _all_ways(self, gateway: Gateway) -> list[PortMapper]:
        return [
            PcpMapper(gateway, self._settings, self._secret),
            NatPmpMapper(gateway, self._settings),
            UpnpMapper(gateway, self._settings, self._rng, self._threads),
        ]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep ports mapped until cancelled; giving them back takes `close_timeout` at most."""
        undo = self._host.events.on(LocalPeerChanged, self._receive_changed)
        try:
            task_status.started()
            failures = 0
            refusals: dict[str, str] = {}  # ways that work, but got us nothing, and why
            while True:
                self._wake = trio.Event()
                gateway = self._find()
                pause = self._settings.check_interval
                if gateway is None or not self._ports(gateway):
                    failures, self.failure = 0, ""
                elif (mapper := await self._choose(gateway, refusals)) is not None:
                    refusal = await self._keep(gateway, mapper)
                    if refusal:
                        refusals[mapper.name] = refusal
                    else:
                        failures = 0
                    continue
                else:
                    refusals.clear()
                    pause = self._settings.retry_interval * 2 ** min(failures, 32)
                    pause = min(pause, self._settings.max_retry_interval)
                    failures += 1
                await self._sleep_while(gateway, pause)
        finally:
            undo()

    async def _sleep_while(self, gateway: Gateway | None, pause: float) -> None:
        """Wait until it is time to try again, or there is something new to map or to ask."""
        before = (gateway, self._ports(gateway) if gateway else [])
        with trio.move_on_after(pause):
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                gateway = self._find()
                if (gateway, self._ports(gateway) if gateway else []) != before:
                    return

    def _receive_changed(self, _event: LocalPeerChanged) -> None:
        self._wake.set()

    # --- which router, which ports ----------------------------------------------------------------

    def _ports(self, gateway: Gateway) -> list[Port]:
        """The ports listened on at the address that the router sees; none if that is public."""
        if gateway.own.is_global:
            return []
        return [
            Port(_KINDS[place.kind], place.port)
            for place in tails_by_place(self._host.listening)
            if place.ip == gateway.own
        ]

    async def _choose(self, gateway: Gateway, refusals: abc.Mapping[str, str]) -> PortMapper | None:
        """Ask in all ways at once; return the best that works, as soon as that is known.

        Those that got us a refusal have had their turn.
        """
        ways = self._ways(gateway)
        reasons = {i: refusals[way.name] for i, way in enumerate(ways) if way.name in refusals}
        works: set[int] = set()

        async def try_one(place: int) -> None:
            try:
                await ways[place].find()
                works.add(place)
            except PortMappingError as error:
                reasons[place] = str(error)
            if works and all(each in reasons for each in range(min(works))):
                nursery.cancel_scope.cancel()

        with trio.move_on_after(self._settings.find_timeout):
            async with trio.open_nursery() as nursery:
                for place in range(len(ways)):
                    if place not in reasons:
                        nursery.start_soon(try_one, place)
        if works:
            return ways[min(works)]
        told = [f"{way.name}: {reasons.get(i, 'no answer')}" for i, way in enumerate(ways)]
        self._fail(gateway, "; ".join(told))
        return None

    # --- keeping them -----------------------------------------------------------------------------

    async def _keep(self, gateway: Gateway, mapper: PortMapper) -> str:
        """Keep the mappings at one router, until it is silent or another one is in its place.

        Returns:
            Why it granted nothing at all, or nothing.
        """
        leases = Leases(self._settings, self._rng.random)
        self.protocol = mapper.name
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, gateway)
                refusal = await self._renew_while_there(gateway, mapper, leases)
                nursery.cancel_scope.cancel()
        finally:
            self.protocol = None
            with trio.CancelScope(shield=True) as scope:
                scope.deadline = trio.current_time() + self._settings.close_timeout
                if self._find() == gateway:
                    async with trio.open_nursery() as closing:
                        for each in leases.held(trio.current_time()):
                            closing.start_soon(_give_back, mapper, each)
            self._tell(gateway, mapper, [])
        return refusal

    async def _renew_while_there(self, gateway: Gateway, mapper: PortMapper, leases: Leases) -> str:
        check_at = trio.current_time() + self._settings.check_interval
        silences = 0
        while silences < self._settings.max_failed_checks and self._find() == gateway:
            self._wake = trio.Event()
            for each in leases.want(self._ports(gateway), trio.current_time()):
                await _give_back(mapper, each)
            refusal = await self._renew(mapper, leases)
            if refusal and not leases.has_ever_held:
                return refusal  # another way may get us more
            if refusal:
                self._fail(gateway, refusal)
            self._tell(gateway, mapper, leases.held(trio.current_time()))
            with trio.move_on_at(min(leases.next_deadline(trio.current_time()), check_at)):
                await self._wake.wait()
            if self._stirred or trio.current_time() >= check_at:
                self._stirred = False
                check_at = trio.current_time() + self._settings.check_interval
                try:
                    is_well = await mapper.check(leases.held(trio.current_time()))
                except PortMappingError as error:
                    silences += 1
                    self._fail(gateway, str(error))
                else:
                    if silences:
                        silences, self.failure = 0, ""
                    if not is_well:
                        leases.lose_all(trio.current_time())
        return ""

    async def _renew(self, mapper: PortMapper, leases: Leases) -> str:
        """Ask for all that is due; returns the last refusal, if there was one."""
        refusal = ""
        while (port := leases.next_due(trio.current_time())) is not None:
            try:
                mapping = await mapper.map(port, leases.wish_for(port), self._settings.lease)
            except PortMappingError as error:
                leases.receive_refused(port, trio.current_time())
                refusal = str(error)
            else:
                leases.receive_mapped(mapping, trio.current_time())
        return refusal

    async def _hear(self, gateway: Gateway) -> None:
        """Look at once whether all is well, whenever the router says something unasked."""
        with contextlib.suppress(OSError):  # then the regular looks have to do
            await self._announcements(gateway, self._receive_announcement)

    def _receive_announcement(self) -> None:
        self._stirred = True
        self._wake.set()

    # --- telling ----------------------------------------------------------------------------------

    def _tell(self, gateway: Gateway, mapper: PortMapper, held: Sequence[Mapping]) -> None:
        places = [(each.port, each.external_ip, each.external_port) for each in held]
        before = [(each.port, each.external_ip, each.external_port) for each in self.mappings]
        self.mappings = tuple(held)
        if places == before:
            return
        tails = tails_by_place(self._host.listening)
        self._host.set_mapped(
            [
                Place(each.external_ip, each.port.kind, each.external_port).followed_by(tail)
                for each in held
                if each.external_ip.is_global
                for tail in tails.get(Place(gateway.own, *each.port), ())
            ]
        )
        if not held:
            return
        self._host.events.emit(
            PortsMapped(protocol=mapper.name, gateway=gateway.ip, mappings=self.mappings)
        )
        private = [each.external_ip for each in held if not each.external_ip.is_global]
        if private:
            self._fail(
                gateway,
                f"the router's own address {private[0]} is not public: another translator stands "
                "before it, where the port would have to be forwarded, too",
            )
        else:
            self.failure = ""

    def _fail(self, gateway: Gateway, reason: str) -> None:
        if reason != self.failure:
            self.failure = reason
            self._host.events.emit(PortMappingFailed(gateway=gateway.ip, reason=reason))


async def _give_back(mapper: PortMapper, mapping: Mapping) -> None:
    with contextlib.suppress(PortMappingError):  # it ends when its time is up
        await mapper.unmap(mapping)
