"""What is held against peers, on disk.

```
{"format": 1, "peers": {"<peer id>": {
    "points": <float>, "noted": <seconds since the epoch>, "offences": {"<offence>": <count>},
    "reason": "<of the last one>", "back_off": <seconds>, "until": <seconds since the epoch>}}}
```

With it a liar is not believed anew because this node has restarted. Points and back-offs pass while
the node is down, too, by the wall clock.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config.gossip import GossipSettings
from p2pnode.host.kept_table import KeptTable, TableFormat, TableNotKept
from p2pnode.swarm.gossip.reputation import MAX_REASON_CHARS, Offence, Record, Reputation
from p2pnode.wire.peer_id import PeerId

_MAX_COUNT: Final = 2**53
_NAMES: Final = frozenset(each.value for each in Offence)


class SavedReputation:
    """The file of a node's reputation.

    Args:
        path: where it is, or None to keep nothing.
        reputation: what is read and written.
        settings: how often.
        emit: told of failures.
    """

    def __init__(
        self,
        path: Path | None,
        reputation: Reputation,
        settings: GossipSettings,
        emit: Callable[[TableNotKept], object],
    ) -> None:
        self._file = KeptTable(path, FORMAT, emit)
        self._reputation = reputation
        self._settings = settings
        self._saved = 0  # changes

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the file, and save what has changed, now and then and in the end."""
        records = list((await self._file.load()).values())
        self._reputation.restore(records, trio.current_time(), wall_time())
        self._saved = self._reputation.changes
        task_status.started()
        try:
            while True:
                await trio.sleep(self._settings.save_interval)
                await self._save()
        finally:
            with trio.CancelScope(shield=True):  # one small file
                await self._save()

    async def _save(self) -> None:
        """Write the file, if there is news."""
        if self._saved == self._reputation.changes:
            return
        self._saved = self._reputation.changes
        records = self._reputation.snapshot(trio.current_time(), wall_time())
        await self._file.save({each.peer_id: each for each in records})


def _to_json(record: Record) -> dict[str, Any]:
    return {
        "points": record.points,
        "noted": record.noted,
        "offences": dict(record.offences),
        "reason": record.reason,
        "back_off": record.back_off,
        "until": record.until,
    }


def _from_json(peer_id: PeerId, fields: Any) -> Record:
    offences, reason = fields["offences"], fields["reason"]
    if not isinstance(reason, str) or not all(
        each in _NAMES and type(count) is int and 0 < count <= _MAX_COUNT
        for each, count in offences.items()
    ):
        raise ValueError(f"what {peer_id} has done is no list of offences")
    points, noted, back_off, until = (
        _number(fields[each]) for each in ("points", "noted", "back_off", "until")
    )
    return Record(
        peer_id=peer_id,
        points=points,
        noted=noted,
        offences=offences,
        reason=reason[:MAX_REASON_CHARS],
        back_off=back_off,
        until=until,
    )


def _number(value: Any) -> float:
    if type(value) not in {int, float} or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no amount")
    return float(value)


FORMAT: Final = TableFormat(name="reputation", number=1, to_json=_to_json, from_json=_from_json)
