"""What the units of a run are like on this machine, before they are hosted: weights, and bytes.

All units of one block are built alike; those of another block need not be, as the run's owner says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import trio

from p2pnode.config import HostingSettings, OwnerSettings
from p2pnode.experts.backend import build_backend
from p2pnode.experts.devices import free_memory, is_gpu
from p2pnode.swarm.description import RunDescription, agreed
from p2pnode.wire.uids import Uid

SHARE_OF_MEMORY: Final = 0.5  # of what is free, for experts; the rest is for batches, and others
_KEPT: Final = 64  # kinds, so that nothing is built again to see what it is like


@dataclass(frozen=True, slots=True)
class Kind:
    """What all units of a block are like: the weights of each, and the bytes that it uses."""

    weights: int
    size: int


class Kinds:
    """Builds one unit of each kind to see what it is like, and remembers that."""

    def __init__(self) -> None:
        self._known: dict[HostingSettings, Kind] = {}

    async def find(
        self, uids: Sequence[Uid], settings: HostingSettings, description: RunDescription | None
    ) -> dict[str, Kind]:
        """Return the kinds by block.

        Args:
            uids: the units.
            settings: this node's own.
            description: what the run's owner has chosen for all.

        Raises:
            ConfigError: one cannot be built.
        """
        found = {}
        for block, members in by_block(uids).items():
            built = replace(agreed(settings, description, block), device="cpu")
            if built not in self._known:
                kind = await trio.to_thread.run_sync(_build, members[0], built)
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[built] = kind
            found[block] = self._known[built]
        await trio.lowlevel.checkpoint()
        return found


async def find_room(owner: OwnerSettings, device: str, largest: int) -> int:
    """Return the bytes that units may take, as `Kind.size` counts them.

    Args:
        owner: what the machine's owner allows.
        device: where they are; of several, each counts with as many of the largest units as it has
            room for, since none can be on two of them.
        largest: bytes of the largest unit.
    """

    def find() -> int:
        names = list(dict.fromkeys(each.strip() for each in device.split(",")))
        found = 0
        for name in names:
            room, allowed = int(free_memory(name) * SHARE_OF_MEMORY), allowed_on(name, owner)
            room = min(room, allowed) if allowed else room
            found += room if len(names) == 1 else room // largest * largest
        return found

    return await trio.to_thread.run_sync(find)


def allowed_on(device: str, owner: OwnerSettings) -> int:
    """Return the bytes that the machine's owner allows on a device; 0 for any number."""
    return owner.max_vram if is_gpu(device) else owner.max_memory


def by_block(uids: Sequence[Uid]) -> dict[str, list[Uid]]:
    """Group units by their block."""
    found: dict[str, list[Uid]] = {}
    for uid in uids:
        found.setdefault(uid.block, []).append(uid)
    return found


def _build(uid: Uid, settings: HostingSettings) -> Kind:
    backend = build_backend(uid, settings)
    return Kind(backend.weights, max(1, backend.size))
