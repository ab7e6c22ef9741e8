"""The peerstore on disk.

```
{"format": 2, "peers": {"<peer id>": {
    "addresses": {"<multiaddr>": ["certified", <expiry, seconds since the epoch>]},
    "preferred": "<multiaddr>", "key": "<PublicKey, base64>", "record": "<Envelope, base64>"}}}
```

The last three may be missing. Reading checks the signature of each record anew: what is handed on
to others must not depend on who could write to a disk.
"""

import base64
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.clock import wall_time
from p2pnode.host.kept_table import KeptTable, TableFormat, TableNotKept
from p2pnode.host.peerstore import KnownAddress, KnownPeer, Origin, Peerstore
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PublicKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.records import PeerRecord

COPIED_AT_ONCE: Final = 100  # peers; about a millisecond of work


class SavedPeers:
    """The file of a peerstore.

    Args:
        path: where it is, or None to keep nothing.
        peerstore: what is read and written.
        emit: told of failures.
    """

    def __init__(
        self, path: Path | None, peerstore: Peerstore, emit: Callable[[TableNotKept], object]
    ) -> None:
        self._file = KeptTable(path, FORMAT, emit)
        self._peerstore = peerstore

    async def load(self) -> None:
        """Read the file, if there is one."""
        self._peerstore.restore(await self._file.load(), trio.current_time(), wall_time())

    async def save(self) -> None:
        """Write the file; others run while the peers are copied for it."""
        if not self._file.is_kept:
            return
        known: dict[PeerId, KnownPeer] = {}
        peers = list(self._peerstore)
        for start in range(0, len(peers), COPIED_AT_ONCE):
            some = peers[start : start + COPIED_AT_ONCE]
            known |= self._peerstore.snapshot(trio.current_time(), wall_time(), some)
            await trio.lowlevel.checkpoint()
        await self._file.save(known)


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


FORMAT: Final = TableFormat(name="peerstore", number=2, to_json=_to_json, from_json=_from_json)
