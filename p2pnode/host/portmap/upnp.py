"""UPnP by miniupnpc: the C library that most programs which map ports are built on.

It is kept since 2005, has no dependencies, and brings wheels. async-upnp-client, the other one that
is kept, is for asyncio and comes with aiohttp and seven more, to speak to light bulbs as well.

Its calls block, without the interpreter's lock, for up to three seconds of silence in each step.
So each runs in a thread that is left behind when time is up, at most one of them for a service:
the limiter's token goes with the thread. An object that a thread was left with is not used again.
"""

import random
from collections.abc import Callable, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import Any, ClassVar, Final, TypeVar

import trio

from p2pnode.config import PortmapSettings
from p2pnode.errors import PortMappingError
from p2pnode.host.portmap.interfaces import Mapping, Port, PortMapper
from p2pnode.host.portmap.route import Gateway

_SEARCH_SHARE: Final = 0.5  # of the time for finding a router, spent on waiting for answers
_OTHER_PORTS: Final = range(20_000, 60_000)  # tried when the port asked for is taken
_TRIES: Final = 4
_DESCRIPTION: Final = "p2pnode"
_TAKEN: Final = "ConflictInMappingEntry"  # error 718
_FOR_EVER_ONLY: Final = "OnlyPermanentLeasesSupported"  # error 725

T = TypeVar("T")


class UpnpMapper(PortMapper):
    """Asks by UPnP.

    Args:
        gateway: the router; UPnP finds it by itself, on the network that leads there.
        settings: how long to wait.
        rng: which other ports to try.
        threads: how many threads may be in use, or left behind, at once.
    """

    name: ClassVar[str] = "UPnP"

    def __init__(
        self,
        gateway: Gateway,
        settings: PortmapSettings,
        rng: random.Random,
        threads: trio.CapacityLimiter,
    ) -> None:
        self._own = str(gateway.own)
        self._settings = settings
        self._rng = rng
        self._threads = threads
        self._router: Any = None
        self._for_ever = False
        self._abandoned = False

    async def find(self) -> None:
        """See `PortMapper`."""
        timeout = self._settings.find_timeout
        self._router = await self._call(self._search, timeout * _SEARCH_SHARE, timeout=timeout)

    async def map(self, port: Port, external_port: int, lifetime: float) -> Mapping:
        """See `PortMapper`."""
        for place in range(_TRIES):
            number = self._rng.choice(_OTHER_PORTS) if place else external_port
            try:
                external_ip = await self._call(self._add, port, number, lifetime)
            except PortMappingError as error:
                if _FOR_EVER_ONLY in str(error) and not self._for_ever:
                    self._for_ever = True
                    return await self.map(port, external_port, lifetime)
                if _TAKEN in str(error) and place < _TRIES - 1:
                    continue
                raise
            return Mapping(
                port=port, external_ip=external_ip, external_port=number, lifetime=lifetime
            )
        raise AssertionError("the last try returns or raises")

    async def unmap(self, mapping: Mapping) -> None:
        """See `PortMapper`."""
        await self._call(
            self._router.deleteportmapping, mapping.external_port, mapping.port.kind.upper()
        )

    async def check(self, held: Sequence[Mapping]) -> bool:
        """See `PortMapper`."""
        return await self._call(self._has, held)

    # --- in a thread ----------------------------------------------------------------------------

    def _search(self, patience: float) -> Any:
        # Nodes that do not use it need not load it.
        import miniupnpc  # noqa: PLC0415  # see above

        router = miniupnpc.UPnP(multicastif=self._own, discoverdelay=int(patience * 1000))
        router.discover()
        router.selectigd()
        return router

    def _add(self, port: Port, external_port: int, lifetime: float) -> IPv4Address:
        external_ip = self._external_ip()
        self._router.addportmapping(
            external_port,
            port.kind.upper(),
            self._own,
            port.number,
            _DESCRIPTION,
            "",
            0 if self._for_ever else int(lifetime),
        )
        return external_ip

    def _has(self, held: Sequence[Mapping]) -> bool:
        external_ip = self._external_ip()
        for each in held:
            entry = self._router.getspecificportmapping(
                each.external_port, each.port.kind.upper(), ""
            )
            if entry is None or entry[:2] != (self._own, each.port.number):
                return False
        return all(each.external_ip == external_ip for each in held)

    def _external_ip(self) -> IPv4Address:
        try:
            return IPv4Address(self._router.externalipaddress() or "")
        except AddressValueError as error:
            raise PortMappingError("the router does not tell its own public address") from error

    # --- outside --------------------------------------------------------------------------------

    async def _call(self, what: Callable[..., T], *args: Any, timeout: float | None = None) -> T:
        if self._abandoned:
            raise PortMappingError("the router left an earlier request unanswered")
        timeout = self._settings.request_timeout if timeout is None else timeout
        finished = False
        try:
            with trio.fail_after(timeout):
                result = await trio.to_thread.run_sync(
                    what, *args, abandon_on_cancel=True, limiter=self._threads
                )
            finished = True
        except trio.TooSlowError as error:
            raise PortMappingError(f"the router takes longer than {timeout:g} s") from error
        except PortMappingError:
            finished = True
            raise
        except Exception as error:  # the library raises nothing narrower
            finished = True
            raise PortMappingError(f"the router's UPnP says: {error}") from error
        else:
            return result
        finally:
            self._abandoned = not finished
