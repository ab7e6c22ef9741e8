"""The peerstore on disk: JSON that a person can read, replaced whole or not at all.

```
{"format": 2, "peers": {"<peer id>": {
    "addresses": {"<multiaddr>": ["certified", <expiry, seconds since the epoch>]},
    "preferred": "<multiaddr>", "key": "<PublicKey, base64>", "record": "<Envelope, base64>"}}}
```

The last three may be missing. Reading checks the signature of each record anew: what is handed on
to others must not depend on who could write to a disk. Writing thousands of addresses as text
takes a second, so both are meant for a thread.
"""

import base64
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.clock import wall_time
from p2pnode.errors import InvalidAddressError, InvalidKeyError, ProtocolError
from p2pnode.events import Event
from p2pnode.host.peerstore import KnownAddress, KnownPeer, Origin, Peerstore
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PublicKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.records import PeerRecord

FORMAT: Final = 2
COPIED_AT_ONCE: Final = 100  # peers; about a millisecond of work


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersNotKept(Event):
    """The addresses of known peers could not be read or saved; the node goes on without."""

    level = "warning"

    path: Path
    reason: str


class SavedPeers:
    """The file of a peerstore. It is a convenience: what fails is told, and the node goes on.

    Args:
        path: where it is, or None to keep nothing.
        peerstore: what is read and written.
        emit: told of failures.
    """

    def __init__(
        self, path: Path | None, peerstore: Peerstore, emit: Callable[[PeersNotKept], object]
    ) -> None:
        self._path = path
        self._peerstore = peerstore
        self._emit = emit

    async def load(self) -> None:
        """Read the file, if there is one; a broken one is put aside."""
        path = self._path
        if path is None or not path.exists():
            return
        try:
            try:
                text = path.read_text("utf-8")
                saved = await trio.to_thread.run_sync(parse, text)
                self._peerstore.restore(saved, trio.current_time(), wall_time())
            except ValueError as error:
                aside = path.with_name(path.name + ".broken")
                path.replace(aside)
                reason = f"the file is broken ({error}); it is now {aside.name}"
                self._emit(PeersNotKept(path=path, reason=reason))
        except OSError as error:
            self._emit(PeersNotKept(path=path, reason=f"cannot be read: {error.strerror}"))

    async def save(self) -> None:
        """Write the file, in a thread; others run while the peers are copied for it."""
        if self._path is None:
            return
        known: dict[PeerId, KnownPeer] = {}
        peers = list(self._peerstore)
        for start in range(0, len(peers), COPIED_AT_ONCE):
            some = peers[start : start + COPIED_AT_ONCE]
            known |= self._peerstore.snapshot(trio.current_time(), wall_time(), some)
            await trio.lowlevel.checkpoint()
        try:
            await trio.to_thread.run_sync(save, self._path, known)
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            self._emit(PeersNotKept(path=self._path, reason=reason))


def render(peers: Mapping[PeerId, KnownPeer]) -> str:
    """Return the text of a snapshot of the peerstore."""
    document = {
        "format": FORMAT,
        "peers": {str(peer_id): _to_json(peer) for peer_id, peer in peers.items()},
    }
    return json.dumps(document, indent=1)


def parse(text: str) -> dict[PeerId, KnownPeer]:
    """Read what `render` wrote.

    Raises:
        ValueError: it is of another format, or something in it is broken.
    """
    try:
        document: Any = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r} is not known")
        found = {}
        for name, fields in document["peers"].items():
            peer_id = PeerId.from_text(name)
            found[peer_id] = _from_json(peer_id, fields)
    except (
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        InvalidKeyError,
        InvalidAddressError,
        ProtocolError,
    ) as error:
        raise ValueError(f"not a saved peerstore: {error}") from error
    return found


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path`, so that a crash leaves the old or the new one whole."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def save(path: Path, peers: Mapping[PeerId, KnownPeer]) -> None:
    """Write a snapshot of the peerstore to `path`.

    Raises:
        OSError: that is not possible.
    """
    write_atomically(path, render(peers))


def _to_json(peer: KnownPeer) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "addresses": {
            str(address): [known.origin.name.lower(), known.until]
            for address, known in peer.addresses.items()
        }
    }
    if peer.preferred is not None:
        fields["preferred"] = str(peer.preferred)
    if peer.key is not None:
        fields["key"] = base64.b64encode(peer.key.protobuf).decode("ascii")
    if peer.record is not None:
        fields["record"] = base64.b64encode(peer.record).decode("ascii")
    return fields


def _from_json(peer_id: PeerId, fields: dict[str, Any]) -> KnownPeer:
    addresses = {}
    for text, (origin, until) in fields["addresses"].items():
        if not isinstance(until, float | int) or not math.isfinite(until):
            raise ValueError(f"{until!r} is not a time")
        addresses[parse_address(text)] = KnownAddress(Origin[origin.upper()], float(until))
    key = record = None
    seq = 0
    if "key" in fields:
        key = PublicKey.from_bytes(base64.b64decode(fields["key"], validate=True))
        if key.peer_id != peer_id:
            raise ValueError(f"a key that is not of {peer_id} stands there as its own")
    if "record" in fields:
        record = base64.b64decode(fields["record"], validate=True)
        opened = PeerRecord.open(record)
        if opened.peer_id != peer_id:
            raise ValueError(f"a record that is not of {peer_id} stands there as its own")
        seq = opened.seq
    preferred = parse_address(fields["preferred"]) if "preferred" in fields else None
    return KnownPeer(addresses=addresses, preferred=preferred, key=key, record=record, seq=seq)
