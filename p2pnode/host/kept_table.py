"""Tables of peers that outlive the process: JSON that a person can read, never half written.

```
{"format": <number>, "peers": {"<peer id>": …}}
```

Such a file is a convenience: a broken one is put aside, what fails is told, and the node goes on
without it. Thousands of peers take a second to write as text, so reading and writing are done in a
thread.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import trio

from p2pnode.errors import P2PNodeError
from p2pnode.events import Event
from p2pnode.wire.peer_id import PeerId

MAX_FILE_BYTES: Final = 64 * 1024 * 1024  # a full peerstore takes twenty

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableNotKept(Event):
    """What is known of peers could not be read or saved; the node goes on without."""

    level = "warning"

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFormat(Generic[T]):
    """How a table is written.

    Attributes:
        name: what it is a table of, for people.
        number: the format's; a file with another one is broken.
        to_json: writes what is known of a peer.
        from_json: reads that; may raise `ValueError`, `KeyError`, `TypeError`, `AttributeError` and
            errors of ours.
    """

    name: str
    number: int
    to_json: Callable[[T], Any]
    from_json: Callable[[PeerId, Any], T]

    def render(self, table: Mapping[PeerId, T]) -> str:
        """Return the text of a table."""
        peers = {str(peer_id): self.to_json(known) for peer_id, known in table.items()}
        return json.dumps({"format": self.number, "peers": peers}, indent=1)

    def parse(self, text: str) -> dict[PeerId, T]:
        """Read what `render` wrote.

        Raises:
            ValueError: it is of another format, or something in it is broken.
        """
        try:
            document: Any = json.loads(text)
            if document["format"] != self.number:
                raise ValueError(f"format {document['format']!r} is not known")
            found = {}
            for name, fields in document["peers"].items():
                peer_id = PeerId.from_text(name)
                found[peer_id] = self.from_json(peer_id, fields)
        except (KeyError, TypeError, AttributeError, RecursionError, P2PNodeError) as error:
            raise ValueError(f"not a saved {self.name}: {error}") from error
        return found


class KeptTable(Generic[T]):
    """The file of a table.

    Args:
        path: where it is, or None to keep nothing.
        form: how it is written.
        emit: told of failures.
    """

    def __init__(
        self, path: Path | None, form: TableFormat[T], emit: Callable[[TableNotKept], object]
    ) -> None:
        self._path = path
        self._form = form
        self._emit = emit

    @property
    def is_kept(self) -> bool:
        """Whether there is a file at all."""
        return self._path is not None

    async def load(self) -> dict[PeerId, T]:
        """Read the file, if there is one; a broken one is put aside, and nothing is known."""
        path = self._path
        if path is None or not path.exists():
            return {}
        try:
            try:
                return await trio.to_thread.run_sync(self._read, path)
            except ValueError as error:
                aside = path.with_name(path.name + ".broken")
                path.replace(aside)
                self._tell(path, f"the file is broken ({error}); it is now {aside.name}")
        except OSError as error:
            self._tell(path, f"cannot be read: {error.strerror}")
        return {}

    async def save(self, table: Mapping[PeerId, T]) -> None:
        """Write the file; `table` must not change meanwhile."""
        path = self._path
        if path is None:
            return
        try:
            await trio.to_thread.run_sync(lambda: write_atomically(path, self._form.render(table)))
        except OSError as error:
            self._tell(path, f"cannot be written: {error.strerror}")

    def _read(self, path: Path) -> dict[PeerId, T]:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        return self._form.parse(path.read_text("utf-8"))

    def _tell(self, path: Path, reason: str) -> None:
        self._emit(TableNotKept(path=path, reason=reason))


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path`, so that a crash leaves the old or the new one whole.

    Raises:
        OSError: that is not possible; the old one stays.
    """
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
