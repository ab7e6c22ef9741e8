"""Publishing again and again what this node wants to be found."""

import contextlib
from typing import Final

import trio

from p2pnode.clock import wall_time
from p2pnode.errors import ProtocolError, RemoteError
from p2pnode.protocols.kad.core import KadCore
from p2pnode.protocols.kad.providers import Providers
from p2pnode.protocols.kad.publications import Publications
from p2pnode.protocols.kad.values import Values

RETRY_INTERVAL: Final = 60.0  # seconds, for what could be published nowhere


class Publisher:
    """Stores again the values, and tells again of the keys, that are due."""

    def __init__(
        self, core: KadCore, values: Values, providers: Providers, publications: Publications
    ) -> None:
        self._core = core
        self._values = values
        self._providers = providers
        self._publications = publications

    def next_due(self, _now: float) -> float:
        """Return when something is due; infinity for never."""
        return self._publications.next_due()

    async def publish(self) -> None:
        """Publish what is due; a value that has ended by its own word is dropped.

        What nobody takes is due again soon.
        """
        values: dict[bytes, bytes] = {}
        for each in self._publications.take_due(trio.current_time()):
            try:
                if each.value is None:
                    await self._providers.provide(each.key)
                else:
                    self._core.check(each.key, each.value, wall_time())
                    values[each.key] = each.value
            except ProtocolError:
                self._publications.remove(each.key)
            except RemoteError:
                self.retry(each.key)
        stored: dict[bytes, int] = {}
        with contextlib.suppress(RemoteError):  # alone, or one has ended a moment ago
            stored = await self._values.put_many(values)
        for key in values:
            if not stored.get(key):
                self.retry(key)

    def retry(self, key: bytes) -> None:
        """Publish soon again what could not be published now."""
        self._publications.retry(key, trio.current_time() + RETRY_INTERVAL)
