"""mDNS discovery over a host: says where this node listens, and meets those who say so too.

It speaks on the interfaces of the node's own listen addresses and on no others: a node that
listens on 127.0.0.1 stays within its machine. When the addresses change, it starts over.

Whoever is on the network can make nodes dial: what is heard waits in a bounded queue, is dialled
by few tasks with pauses in between, and each peer a few times only. Both of two nodes that start
together hear of each other at once; each waits a moment of its own, so that they do not collide.
"""

import random
import string
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio
from multiaddr import Multiaddr

from p2pnode.config import MdnsSettings
from p2pnode.errors import P2PNodeError
from p2pnode.events import Event
from p2pnode.host import LocalPeerChanged
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.mdns.core import (
    Advertisement,
    Announcement,
    compose,
    read_texts,
    within_reach,
)
from p2pnode.protocols.mdns.lan import Receive, run_zeroconf
from p2pnode.wire.peer_id import PeerId

_LABEL_CHARACTERS: Final = string.ascii_lowercase + string.digits
_LABEL_LENGTHS: Final = (32, 63)  # the specification's least, and the longest DNS can carry


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerDiscovered(Event):
    """A peer on the local network said where it is."""

    level = "info"

    peer_id: PeerId
    addresses: tuple[Multiaddr, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryFailed(Event):
    """The local network cannot be searched for peers now; it is tried again later."""

    level = "warning"

    reason: str


class Lan(Protocol):
    """A local network; `run_zeroconf` is the real one."""

    def __call__(
        self, ours: Advertisement, receive: Receive, *, label: str, close_timeout: float
    ) -> Awaitable[None]:
        """Say `ours` and pass on what others say until cancelled, or raise OSError."""


class MdnsService:
    """Finds peers on the local network, and lets them find this node, while `run` runs.

    Args:
        host: whose addresses are told, and which dials those found.
        settings: bounds and pauses.
        rng: chance, for labels and moments.
        lan: the network.
    """

    def __init__(
        self,
        host: NetworkHost,
        settings: MdnsSettings | None = None,
        rng: random.Random | None = None,
        *,
        lan: Lan = run_zeroconf,
    ) -> None:
        self._host = host
        self._settings = settings or MdnsSettings()
        self._rng = rng or random.Random()
        self._lan = lan
        self._changed = trio.Event()
        self._found: OrderedDict[PeerId, tuple[Multiaddr, ...]] = OrderedDict()
        self._meeting: set[PeerId] = set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Search and be found until cancelled."""
        heard, to_hear = trio.open_memory_channel[Announcement](self._settings.max_waiting)
        undo = self._host.events.on(LocalPeerChanged, self._receive_changed)
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._settings.dials_at_once):
                    nursery.start_soon(self._meet_each, to_hear)
                task_status.started()
                while True:
                    await self._search_until_moved(heard)
        finally:
            undo()

    def _receive_changed(self, _event: LocalPeerChanged) -> None:
        self._changed.set()

    # --- the network ----------------------------------------------------------------------------

    async def _search_until_moved(self, heard: trio.MemorySendChannel[Announcement]) -> None:
        """Search with the present addresses, until there are others."""
        ours = self._compose()
        async with trio.open_nursery() as nursery:
            if ours is not None:
                nursery.start_soon(self._search, ours, heard)
            while self._compose() == ours:
                self._changed = trio.Event()
                await self._changed.wait()
                await trio.sleep(self._settings.restart_delay)  # changes come in bursts
            nursery.cancel_scope.cancel()

    def _compose(self) -> Advertisement | None:
        return compose(self._host.peer_id, self._host.listening)

    async def _search(
        self, ours: Advertisement, heard: trio.MemorySendChannel[Announcement]
    ) -> None:
        while True:
            try:
                await self._lan(
                    ours,
                    self._listener(ours, heard),
                    label=draw_label(self._rng),
                    close_timeout=self._settings.close_timeout,
                )
            except OSError as error:
                self._host.events.emit(DiscoveryFailed(reason=str(error)))
            await trio.sleep(self._settings.retry_interval)

    def _listener(
        self, ours: Advertisement, heard: trio.MemorySendChannel[Announcement]
    ) -> Callable[[list[bytes]], None]:
        def receive(texts: list[bytes]) -> None:
            told = read_texts(texts, limit=self._settings.max_addresses)
            if told is None or told.peer_id == self._host.peer_id:
                return
            addresses = within_reach(told.addresses, ours.interfaces)
            if addresses:
                try:
                    heard.send_nowait(Announcement(peer_id=told.peer_id, addresses=addresses))
                except trio.WouldBlock:
                    return  # it will say so again

        return receive

    # --- the peers ------------------------------------------------------------------------------

    async def _meet_each(self, to_hear: trio.MemoryReceiveChannel[Announcement]) -> None:
        async for told in to_hear:
            self._note(told)
            is_known = self._host.connection_to(told.peer_id) is not None
            if is_known or told.peer_id in self._meeting:
                continue
            self._meeting.add(told.peer_id)
            try:
                await self._meet(told)
            finally:
                self._meeting.discard(told.peer_id)
            await trio.sleep(self._settings.dial_pause)

    def _note(self, told: Announcement) -> None:
        self._host.add_addresses(told.peer_id, told.addresses, self._settings.address_ttl)
        is_news = self._found.pop(told.peer_id, None) != told.addresses
        self._found[told.peer_id] = told.addresses
        while len(self._found) > self._settings.max_peers:
            self._found.popitem(last=False)
        if is_news:
            self._host.events.emit(PeerDiscovered(peer_id=told.peer_id, addresses=told.addresses))

    async def _meet(self, told: Announcement) -> None:
        for attempt in range(self._settings.dial_tries):
            await trio.sleep(self._rng.random() * self._settings.dial_jitter * 2**attempt)
            try:
                await self._host.connect(told.peer_id, told.addresses)
            except P2PNodeError:
                continue  # the host's events and the next try tell more
            return


def draw_label(rng: random.Random) -> str:
    """Draw a name for one session."""
    return "".join(rng.choices(_LABEL_CHARACTERS, k=rng.randint(*_LABEL_LENGTHS)))
