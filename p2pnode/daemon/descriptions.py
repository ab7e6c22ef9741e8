"""What the runs of this node consist of: found in the DHT, kept on disk, published again.

Any member may store its run's description again, since the owner signed it; so it outlives both the
owner's absence and the DHT's memory, which is two days.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

import trio

from p2pnode.config import RoundsSettings
from p2pnode.daemon.control.params import text
from p2pnode.daemon.control.service import Method
from p2pnode.daemon.runs import RunStore
from p2pnode.errors import ConnectionClosedError, NoPeersError, NotFoundError
from p2pnode.protocols.kad.service import KadDht
from p2pnode.security.tokens import Membership
from p2pnode.swarm.description import RunDescription, agreed_rounds, key_of

FIND_TIMEOUT: Final = 10.0  # seconds, after which what is known here has to do


class Descriptions:
    """The descriptions of this node's runs; they are published while `run` runs.

    Args:
        runs: where they are kept.
        dht: where they are looked up and published.
    """

    def __init__(self, runs: RunStore, dht: KadDht) -> None:
        self._runs = runs
        self._dht = dht
        self._waiting: dict[str, None] = {}  # runs whose description is to be published
        self._added = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish what is known here, and what is found or changed later; never returns.

        Raises:
            KeyFileError: what is kept here cannot be read.
        """
        self._waiting.update((membership.name, None) for membership in self._runs.all())
        task_status.started()
        while True:
            self._added = trio.Event()
            while self._waiting:
                name = next(iter(self._waiting))
                del self._waiting[name]
                await self._publish(name)
            await self._added.wait()

    async def find(self, membership: Membership) -> RunDescription | None:
        """Return what a run consists of: the newest that the DHT or this node has; None if neither.

        Raises:
            KeyFileError, LocalError: what is kept here cannot be read or replaced.
        """
        if membership.is_open:
            await trio.lowlevel.checkpoint()
            return None
        with trio.move_on_after(FIND_TIMEOUT), contextlib.suppress(NotFoundError, NoPeersError):
            found = await self._dht.get_value(key_of(membership.run_id))
            self._runs.keep_description(membership.name, found)
        self._publish_soon(membership.name)
        return self._runs.description(membership.name)

    async def agreed_rounds(
        self, membership: Membership, settings: RoundsSettings
    ) -> RoundsSettings:
        """Return a participant's settings with those that the run's owner has chosen for all.

        Raises:
            ConfigError: they do not fit here.
            KeyFileError, LocalError: as `find`.
        """
        description = await self.find(membership)
        return settings if description is None else agreed_rounds(settings, description)

    def methods(self) -> dict[str, Method]:
        """Return the commands of the control socket by name."""
        return {"run.publish": self._receive_publish}

    async def _receive_publish(self, params: Mapping[str, Any]) -> Any:
        return {"stored": await self._publish(text(params, "run"))}

    def _publish_soon(self, name: str) -> None:
        self._waiting[name] = None
        self._added.set()

    async def _publish(self, name: str) -> int:
        """Store a description in the DHT, where it is stored again regularly; returns how often."""
        membership, sealed = self._runs.get(name), self._runs.sealed_description(name)
        if membership is None or sealed is None:
            await trio.lowlevel.checkpoint()
            return 0
        try:
            return await self._dht.put_value(key_of(membership.run_id), sealed, publish=True)
        except (NoPeersError, ConnectionClosedError):  # the DHT tries again, if it still runs
            return 0
