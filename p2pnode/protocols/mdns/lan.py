"""The local network itself, by python-zeroconf: multicast sockets, timing, caches.

mDNS has rules that keep a hundred machines from answering at once and from answering twice (RFC
6762: probing, delays, known answers, goodbyes). python-zeroconf is the library that Home Assistant
lives on; it keeps them, on every platform, and bounds what it remembers of others.

It runs on asyncio. Here it gets an event loop in one thread, whose life is a call of
`trio.to_thread.run_sync`: `run_zeroconf` returns, or is cancelled, when the thread has ended and
not before. Texts of others cross over by trio's token, one callback each.
"""

import asyncio
import contextlib
import ipaddress
import socket
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import trio

from p2pnode.protocols.mdns.core import SERVICE, Advertisement
from p2pnode.wire.addresses import IpAddress

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

Receive = Callable[[list[bytes]], None]

_REQUEST_TIMEOUT: Final = 3000  # milliseconds, for a TXT record that did not come by itself
_REQUESTS_AT_ONCE: Final = 32  # names beyond that are asked for when they are announced anew
_PORT: Final = 4001  # SRV records must name one; libp2p does not read it
_IP_MULTICAST_ALL: Final = 49  # Linux, ip(7); Python has no name for it


async def run_zeroconf(
    ours: Advertisement, receive: Receive, *, label: str, close_timeout: float
) -> None:
    """Say `ours` and listen to others until cancelled.

    Args:
        ours: what is said, and on which interfaces.
        receive: called in trio's thread with the TXT data of each peer, first and when it changes.
        label: our name while it runs, drawn anew each time.
        close_timeout: seconds for taking our records back at the end.

    Raises:
        OSError: the interfaces do not carry multicast, their port cannot be shared, or somebody
            else claims our name.
    """
    token = trio.lowlevel.current_trio_token()

    def pass_on(texts: list[bytes]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(receive, texts)

    session = _Session(ours, pass_on, label, close_timeout)
    failure: OSError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_when_cancelled, session)
        try:
            await trio.to_thread.run_sync(session.run, limiter=trio.CapacityLimiter(1))
        except OSError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _stop_when_cancelled(session: "_Session") -> None:
    try:
        await trio.sleep_forever()
    finally:
        session.stop()


class _Session:
    """What runs in the thread; only `stop` is called from outside."""

    def __init__(
        self, ours: Advertisement, pass_on: Receive, label: str, close_timeout: float
    ) -> None:
        self._ours = ours
        self._pass_on = pass_on
        self._close_timeout = close_timeout
        self._label = label
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._stopped = False
        self._requests: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        """Run until `stop` is called."""
        asyncio.run(self._run())

    def stop(self) -> None:
        """Let `run` come to its end; from any thread, at any time."""
        self._stopped = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def _run(self) -> None:
        # Nodes that do not use it need not load it.
        from zeroconf import Error  # noqa: PLC0415  # see above
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf  # noqa: PLC0415  # see above

        self._loop = asyncio.get_running_loop()
        if self._stopped:  # before there was a loop to be told by
            return
        _check_presence(self._ours.interfaces)
        network = AsyncZeroconf(interfaces=[str(ip) for ip in self._ours.interfaces])
        tasks: list[asyncio.Task[Any]] = []
        try:
            await network.zeroconf.async_wait_for_start()
            _hear_own_interfaces_only(network.zeroconf)
            AsyncServiceBrowser(network.zeroconf, SERVICE, handlers=[self._receive_change])
            register = asyncio.create_task(self._register(network))
            stopping = asyncio.create_task(self._stopping.wait())
            tasks += register, stopping
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if register.done():
                register.result()
            await stopping
        except Error as error:  # somebody holds the name, for one
            raise OSError(f"mDNS failed: {type(error).__name__} {error}") from error
        finally:
            for task in (*self._requests, *tasks):
                task.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(network.async_close(), self._close_timeout)

    async def _register(self, network: "AsyncZeroconf") -> None:
        from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415  # see `_run`

        info = AsyncServiceInfo(
            SERVICE,
            f"{self._label}.{SERVICE}",
            port=_PORT,
            properties=self._ours.text,
            server=f"{self._label}.local.",
            addresses=[ip.packed for ip in self._ours.interfaces],
        )
        await (await network.async_register_service(info))

    def _receive_change(
        self,
        zeroconf: "Zeroconf",
        service_type: str,  # noqa: ARG002  # zeroconf passes it by name
        name: str,
        state_change: "ServiceStateChange",
    ) -> None:
        if name == f"{self._label}.{SERVICE}" or state_change.name == "Removed":
            return
        if texts := _texts_of(zeroconf, name):
            self._pass_on(texts)
        elif len(self._requests) < _REQUESTS_AT_ONCE:
            task = asyncio.create_task(self._request(zeroconf, name))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _request(self, zeroconf: "Zeroconf", name: str) -> None:
        """Ask for a TXT record that did not come together with its name."""
        from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415  # see `_run`

        await AsyncServiceInfo(SERVICE, name).async_request(zeroconf, _REQUEST_TIMEOUT)
        if texts := _texts_of(zeroconf, name):
            self._pass_on(texts)


def _check_presence(interfaces: Iterable[IpAddress]) -> None:
    """Refuse addresses that no interface has, as zeroconf would pass over them or leak a socket."""
    import ifaddr  # noqa: PLC0415  # see `_Session._run`

    present = {
        ipaddress.ip_address(each.ip if isinstance(each.ip, str) else each.ip[0].partition("%")[0])
        for adapter in ifaddr.get_adapters()
        for each in adapter.ips
    }
    if missing := [str(ip) for ip in interfaces if ip not in present]:
        raise OSError(f"no network interface has the address {' or '.join(missing)}")


def _texts_of(zeroconf: "Zeroconf", name: str) -> list[bytes]:
    from zeroconf import DNSText  # type: ignore[attr-defined]  # noqa: PLC0415  # not in __all__

    records = zeroconf.cache.entries_with_name(name)
    return [record.text for record in records if isinstance(record, DNSText)]


def _hear_own_interfaces_only(zeroconf: "Zeroconf") -> None:
    """Have the system deliver only what comes in by the interfaces we joined the group on.

    By default Linux gives a socket every multicast packet for its port that any program on the
    machine asked for, on any interface.
    """
    if sys.platform == "linux":
        for reader in zeroconf.engine.readers:
            opened = reader.transport.get_extra_info("socket")
            if opened is not None:
                with contextlib.suppress(OSError):
                    opened.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
