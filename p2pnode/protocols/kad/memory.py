"""What earlier look-ups found for a key: who holds its value, or that nobody does."""

from collections import OrderedDict
from typing import Final

from p2pnode.wire.peer_id import PeerId

MAX_KEYS: Final = 4096  # a host of 4096 experts announces about as many prefixes at the worst


class PeersByKey:
    """Peers by key, for `lifetime` seconds and a bounded number of keys, the latest kept."""

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._keys: OrderedDict[bytes, tuple[list[PeerId], float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def remember(self, key: bytes, peers: list[PeerId], now: float) -> None:
        """Note what a look-up found."""
        self._keys[key] = (peers, now)
        self._keys.move_to_end(key)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)

    def recall(self, key: bytes, now: float) -> list[PeerId]:
        """Return what was found, or nothing when that is too long ago."""
        peers, since = self._keys.get(key, ([], now))
        return peers if now < since + self._lifetime else []

    def forget(self, key: bytes) -> None:
        """Make the next look-up of `key` a full one."""
        self._keys.pop(key, None)


class Absences:
    """Keys under which a search found nothing, for `lifetime` seconds, a bounded number."""

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._keys: OrderedDict[bytes, float] = OrderedDict()
        self._stored: OrderedDict[bytes, float] = OrderedDict()  # lately, by this node: when

    def __len__(self) -> int:
        return len(self._keys)

    def remember(self, key: bytes, begun: float, now: float) -> None:
        """Note that a search found nothing, unless this node stored a value after it had begun."""
        if self._stored.get(key, float("-inf")) >= begun:
            return
        self._keys[key] = now
        self._keys.move_to_end(key)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)

    def holds(self, key: bytes, now: float) -> bool:
        """Tell whether a search would most likely find nothing again."""
        since = self._keys.get(key)
        return since is not None and now < since + self._lifetime

    def forget(self, key: bytes) -> None:
        """Make the next search of `key` a real one."""
        self._keys.pop(key, None)

    def receive_stored(self, key: bytes, now: float) -> None:
        """Note that there is something, or may be."""
        self._keys.pop(key, None)
        self._stored[key] = now
        self._stored.move_to_end(key)
        if len(self._stored) > MAX_KEYS:
            self._stored.popitem(last=False)
