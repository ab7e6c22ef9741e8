"""A simulated node: the parts of a daemon that talk to others, on a host of the virtual network.

They are put together by `p2pnode.swarm.network`, as the daemon's are. What a simulated node lacks
is what needs a machine: the data directory, the control socket, mDNS and the device loop.
"""

import math
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import Settings
from p2pnode.errors import NoPeersError
from p2pnode.host import Host
from p2pnode.protocols.kad.keys import point
from p2pnode.swarm.announce import Announcer
from p2pnode.swarm.index import EntryCache
from p2pnode.swarm.network import build_dht
from p2pnode.testing.network import Machine
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

JOIN_PAUSE: Final = 10.0  # seconds before a node whose bootstrap peers did not answer tries again

Peers = Sequence[tuple[PeerId, Multiaddr]]


class Node:
    """One node while it is up; a node that comes back is another `Node` of the same key.

    Attributes:
        number: of the node in its world, in the order of starting.
        name: how the log calls it, such as `n17`; one that comes back keeps it.
        key: its identity.
        machine: what it runs on.
        host: its network side.
        dht: its DHT.
        directory: how it finds experts.
        point: where it is on the DHT's map of keys.
        started_at: when it started, in virtual seconds.
        joined_at: when it had joined the DHT, or None.
        is_up: whether it runs.
        liar: how it lies, or None.
    """

    def __init__(
        self,
        host: Host,
        machine: Machine,
        *,
        key: PrivateKey,
        number: int,
        name: str,
        settings: Settings,
        rng: random.Random,
        cache: EntryCache,
    ) -> None:
        self.number = number
        self.name = name
        self.key = key
        self.machine = machine
        self.host = host
        self.settings = settings
        self.rng = rng
        self.dht, self.directory = build_dht(host, settings, rng, cache)
        self.point = point(host.peer_id)
        self.started_at = trio.current_time()
        self.joined_at: float | None = None
        self.is_up = True
        self.liar: str | None = None
        self._announcer: Announcer | None = None
        self._announcing = trio.CancelScope()
        self._announcing_ended = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._settled = trio.Event()  # whether it joins was decided
        self._services: trio.Nursery | None = None

    def __repr__(self) -> str:
        """Return its name: an address in memory would differ between runs."""
        return f"<Node {self.name}>"

    @property
    def peer_id(self) -> PeerId:
        """Who it is."""
        return self.host.peer_id

    @property
    def took_to_join(self) -> float:
        """Seconds from its start until it had joined; infinity when it has not."""
        return math.inf if self.joined_at is None else self.joined_at - self.started_at

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run its services until it is stopped."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.dht.run)
                    self._services = nursery
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self.is_up = False
            self._services = None
            self._ended.set()
            self._settled.set()

    async def join(self, peers: Peers) -> bool:
        """Join the DHT, trying again while nobody answers; a node without `peers` is the first.

        Args:
            peers: whom to ask.

        Returns:
            Whether it has joined, before it went down.
        """
        while self.is_up:
            try:
                await self.dht.bootstrap(peers)
            except NoPeersError:
                await trio.sleep(JOIN_PAUSE * self.rng.uniform(0.5, 1.5))
            else:
                self.joined_at = trio.current_time()
                break
        self._settled.set()
        return self.joined_at is not None

    async def wait_joined(self) -> bool:
        """Wait until `join` has ended; returns whether the node has joined."""
        await self._settled.wait()
        return self.joined_at is not None

    def announce(self, uids: Iterable[Uid]) -> None:
        """Announce experts from now on; uids name their run by its id.

        Raises:
            InvalidUidError: they would need too many records.
            RuntimeError: the node is down.
        """
        self.announcer().add(uids)

    def announcer(self, throughput: Callable[[], float] = lambda: 0.0) -> Announcer:
        """Return what announces its experts; it begins when it is asked for first.

        Args:
            throughput: rows a second through each of them; only the first caller's counts.

        Raises:
            RuntimeError: the node is down.
        """
        if self._services is None:
            raise RuntimeError(f"{self.name} is down")
        if self._announcer is None:
            self._announcer = Announcer(
                self.host,
                self.dht,
                self.key,
                self.settings.hosting,
                throughput=throughput,
                rng=self.rng,
            )
            self._services.start_soon(self._announce, self._announcer)
        return self._announcer

    def start_soon(self, service: Callable[[], Awaitable[object]]) -> None:
        """Run a service of its own while it is up.

        Raises:
            RuntimeError: the node is down.
        """
        if self._services is None:
            raise RuntimeError(f"{self.name} is down")
        self._services.start_soon(service)

    @property
    def experts(self) -> frozenset[Uid]:
        """The experts it announces."""
        return frozenset() if self._announcer is None else self._announcer.uids

    async def withdraw(self) -> None:
        """Stop announcing, and take back what was announced."""
        if self._announcer is not None:
            self._announcing.cancel()
            await self._announcing_ended.wait()

    def stop(self) -> None:
        """End its services at once."""
        self.is_up = False
        self._scope.cancel()

    async def wait_ended(self) -> None:
        """Wait until its services have ended."""
        await self._ended.wait()

    async def _announce(self, announcer: Announcer) -> None:
        try:
            with self._announcing:
                await announcer.run()
        finally:
            self._announcing_ended.set()
