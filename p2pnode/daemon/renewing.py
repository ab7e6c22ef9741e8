"""What the owner of a run says anew, while its units are hosted: taken without a restart.

The owner may change how experts learn, and what the run consists of. Both stand in its description,
which is looked up from time to time. What the owner has said before and says no more is each host's
own again. What would need an expert to be built anew, such as another
layer, is told once, and left for the next start.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from p2pnode.daemon.descriptions import Descriptions
from p2pnode.daemon.placing import Placing
from p2pnode.errors import (
    ConfigError,
    ExpertFailedError,
    MemoryLimitError,
    P2PNodeError,
    UnknownExpertError,
)
from p2pnode.events import Event, EventBus
from p2pnode.security.tokens import Membership
from p2pnode.swarm.description import RunDescription, agreed

if TYPE_CHECKING:
    from p2pnode.daemon.hosting import Hosting

_NEVER: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptionTaken(Event):
    """What a run's owner has said anew applies from now on."""

    level = "info"

    run: str
    sequence: int
    experts: int  # that learn in another way than before


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptionNotTaken(Event):
    """What a run's owner has said anew cannot be done here, or not without a restart."""

    level = "warning"

    run: str
    sequence: int
    reason: str


class Renewing:
    """Looks at the descriptions of the runs that are hosted, while `run` runs.

    Args:
        descriptions: what the owners say.
        placing: told of the units of runs in which this node chooses.
        hosting: what is hosted; None before anything is.
        period: seconds between two looks.
        events: where `DescriptionTaken` and `DescriptionNotTaken` go.
    """

    def __init__(
        self,
        descriptions: Descriptions,
        placing: Placing,
        *,
        hosting: Callable[[], "Hosting | None"],
        period: float,
        events: EventBus,
    ) -> None:
        self._descriptions = descriptions
        self._placing = placing
        self._hosting = hosting
        self._period = period
        self._events = events
        # By run id, the sequence of the description that was looked at last, and of the last that
        # is either in use or never will be.
        self._tried: dict[str, int] = {}
        self._applied: dict[str, int] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look and apply, again and again; never returns."""
        task_status.started()
        while True:
            await trio.sleep(self._period)
            hosting = self._hosting()
            for membership in [] if hosting is None else hosting.memberships():
                assert hosting is not None, "it has memberships"
                await self._renew(hosting, membership)

    async def _renew(self, hosting: "Hosting", membership: Membership) -> None:
        try:
            description = await self._descriptions.find(membership)
        except P2PNodeError as error:  # of the disk: what was said before still counts
            self._tell(membership, _NEVER, str(error))
            return
        if description is None or self._applied.get(membership.run_id) == description.sequence:
            return
        is_new = self._tried.get(membership.run_id) != description.sequence
        self._tried[membership.run_id] = description.sequence
        try:
            changed, without_room = await self._retune(hosting, membership, description)
            changed_units = self._placing.renew(membership, description)
        except P2PNodeError as error:
            self._applied[membership.run_id] = description.sequence
            self._tell(membership, description.sequence, str(error))
            return
        if without_room is None:
            self._applied[membership.run_id] = description.sequence
        elif is_new:  # tried again at each look, and told once: there may be room by then
            self._tell(membership, description.sequence, str(without_room))
        if changed or changed_units:
            self._events.emit(
                DescriptionTaken(
                    run=membership.name, sequence=description.sequence, experts=changed
                )
            )

    async def _retune(
        self, hosting: "Hosting", membership: Membership, description: RunDescription
    ) -> tuple[int, MemoryLimitError | ExpertFailedError | None]:
        """Let all experts of a run learn as its owner says.

        Returns:
            How many learn otherwise now; and why some do not, for which there is no room.

        Raises:
            ConfigError: some would have to be built anew, or the settings do not fit here.
        """
        changed, failures = 0, list[ConfigError]()
        without_room: MemoryLimitError | ExpertFailedError | None = None
        for uid in hosting.experts.uids:
            if uid.run != membership.run_id:
                continue
            try:
                settings = hosting.experts.settings(uid)
                own = replace(hosting.own_settings(uid), device=settings.device)
                wanted = agreed(own, description, uid.block)
                if wanted != settings:
                    await hosting.retune(uid, wanted)
                    changed += 1
            except UnknownExpertError:  # it has moved away meanwhile
                continue
            except ConfigError as error:
                failures.append(error)
            except (MemoryLimitError, ExpertFailedError) as error:
                without_room = without_room or error
        if failures:
            raise failures[0]
        return changed, without_room

    def _tell(self, membership: Membership, sequence: int, reason: str) -> None:
        self._events.emit(
            DescriptionNotTaken(run=membership.name, sequence=sequence, reason=reason)
        )
