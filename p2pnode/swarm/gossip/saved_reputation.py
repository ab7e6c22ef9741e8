"""What is held against peers, on disk: JSON that a person can read, replaced whole or not at all.

```
{"format": 1, "peers": {"<peer id>": {
    "points": <float>, "noted": <seconds since the epoch>, "offences": {"<offence>": <count>},
    "reason": "<of the last one>", "back_off": <seconds>, "until": <seconds since the epoch>}}}
```

With it a liar is not believed anew because this node has restarted. Points and back-offs pass while
the node is down, too, by the wall clock.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.clock import wall_time
from p2pnode.config.gossip import GossipSettings
from p2pnode.errors import InvalidKeyError
from p2pnode.events import Event
from p2pnode.host.saved_peers import write_atomically
from p2pnode.swarm.gossip.reputation import MAX_REASON_CHARS, Offence, Record, Reputation
from p2pnode.wire.peer_id import PeerId

FORMAT: Final = 1
MAX_FILE_BYTES: Final = 8 * 1024 * 1024  # 4096 offenders take one
_MAX_COUNT: Final = 2**53
_NAMES: Final = frozenset(each.value for each in Offence)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReputationNotKept(Event):
    """What is held against peers could not be read or saved; the node goes on without."""

    level = "warning"

    path: Path
    reason: str


class SavedReputation:
    """The file of a node's reputation. What fails is told, and the node goes on.

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
        emit: Callable[[ReputationNotKept], object],
    ) -> None:
        self._path = path
        self._reputation = reputation
        self._settings = settings
        self._emit = emit
        self._saved = 0  # changes

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the file, and save what has changed, now and then and in the end."""
        self._load()
        task_status.started()
        try:
            while True:
                await trio.sleep(self._settings.save_interval)
                await self._save()
        finally:
            with trio.CancelScope(shield=True):  # one small file
                await self._save()

    def _load(self) -> None:
        """Read the file, if there is one; a broken one is put aside."""
        path = self._path
        if path is None or not path.exists():
            return
        try:
            try:
                records = parse(_text_of(path))
            except ValueError as error:
                aside = path.with_name(path.name + ".broken")
                path.replace(aside)
                reason = f"the file is broken ({error}); it is now {aside.name}"
                self._emit(ReputationNotKept(path=path, reason=reason))
            else:
                self._reputation.restore(records, trio.current_time(), wall_time())
                self._saved = self._reputation.changes
        except OSError as error:
            self._emit(ReputationNotKept(path=path, reason=f"cannot be read: {error.strerror}"))

    async def _save(self) -> None:
        """Write the file in a thread, if there is news."""
        if self._path is None or self._saved == self._reputation.changes:
            return
        self._saved = self._reputation.changes
        records = self._reputation.snapshot(trio.current_time(), wall_time())
        path = self._path
        try:
            await trio.to_thread.run_sync(lambda: write_atomically(path, render(records)))
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            self._emit(ReputationNotKept(path=path, reason=reason))


def render(records: Sequence[Record]) -> str:
    """Return the text of what is held against peers."""
    listed = {
        str(each.peer_id): {
            "points": each.points,
            "noted": each.noted,
            "offences": dict(each.offences),
            "reason": each.reason,
            "back_off": each.back_off,
            "until": each.until,
        }
        for each in records
    }
    return json.dumps({"format": FORMAT, "peers": listed}, indent=1)


def parse(text: str) -> list[Record]:
    """Read what `render` wrote.

    Raises:
        ValueError: it is of another format, or something in it is broken.
    """
    try:
        document: Any = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r} is not known")
        return [_read(name, fields) for name, fields in document["peers"].items()]
    except (KeyError, TypeError, AttributeError, RecursionError, InvalidKeyError) as error:
        raise ValueError(f"not a saved reputation: {error}") from error


def _text_of(path: Path) -> str:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    return path.read_text("utf-8")


def _read(name: str, fields: Any) -> Record:
    offences, reason = fields["offences"], fields["reason"]
    if not isinstance(reason, str) or not all(
        each in _NAMES and type(count) is int and 0 < count <= _MAX_COUNT
        for each, count in offences.items()
    ):
        raise ValueError(f"what {name} has done is no list of offences")
    points, noted, back_off, until = (
        _number(fields[each]) for each in ("points", "noted", "back_off", "until")
    )
    return Record(
        peer_id=PeerId.from_text(name),
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
