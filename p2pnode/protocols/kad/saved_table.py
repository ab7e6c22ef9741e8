"""The routing table on disk: JSON that a person can read, replaced whole or not at all.

```
{"format": 1, "peers": {"<peer id>": ["<multiaddr>", …]}}
```

With it a node finds the DHT again after a restart though none of its bootstrap peers runs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import trio
from multiaddr import Multiaddr

from p2pnode.errors import InvalidAddressError, InvalidKeyError
from p2pnode.host.saved_peers import PeersNotKept, write_atomically
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.peer_id import PeerId

FORMAT: Final = 1
MAX_PEERS: Final = 1024  # read from a file; a table of a million nodes holds 320

Saved = Mapping[PeerId, Sequence[Multiaddr]]


class SavedTable:
    """The file of a table. It is a convenience: what fails is told, and the node goes on.

    Args:
        path: where it is, or None to keep nothing.
        emit: told of failures.
    """

    def __init__(self, path: Path | None, emit: Callable[[PeersNotKept], object]) -> None:
        self._path = path
        self._emit = emit

    @property
    def is_kept(self) -> bool:
        """Whether there is a file at all."""
        return self._path is not None

    def load(self) -> Saved:
        """Read the file, if there is one; a broken one is put aside."""
        path = self._path
        if path is None or not path.exists():
            return {}
        try:
            try:
                return parse(path.read_text("utf-8"))
            except ValueError as error:
                aside = path.with_name(path.name + ".broken")
                path.replace(aside)
                reason = f"the file is broken ({error}); it is now {aside.name}"
                self._emit(PeersNotKept(path=path, reason=reason))
        except OSError as error:
            self._emit(PeersNotKept(path=path, reason=f"cannot be read: {error.strerror}"))
        return {}

    async def save(self, peers: Saved) -> None:
        """Write the file, in a thread."""
        if self._path is None:
            return
        try:
            await trio.to_thread.run_sync(write_atomically, self._path, render(peers))
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            self._emit(PeersNotKept(path=self._path, reason=reason))


def render(peers: Saved) -> str:
    """Return the text of a table."""
    listed = {str(peer): list(map(str, addresses)) for peer, addresses in peers.items()}
    return json.dumps({"format": FORMAT, "peers": listed}, indent=1)


def parse(text: str) -> Saved:
    """Read what `render` wrote.

    Raises:
        ValueError: it is of another format, or something in it is broken.
    """
    try:
        document: Any = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r} is not known")
        return {
            PeerId.from_text(name): [parse_address(each) for each in addresses]
            for name, addresses in list(document["peers"].items())[:MAX_PEERS]
        }
    except (
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        InvalidKeyError,
        InvalidAddressError,
    ) as error:
        raise ValueError(f"not a saved routing table: {error}") from error
