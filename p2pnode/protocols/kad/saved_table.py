"""The routing table on disk.

```
{"format": 1, "peers": {"<peer id>": ["<multiaddr>", …]}}
```

With it a node finds the DHT again after a restart though none of its bootstrap peers runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from multiaddr import Multiaddr

from p2pnode.host.kept_table import TableFormat
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.peer_id import PeerId

Saved = Mapping[PeerId, Sequence[Multiaddr]]


def _to_json(addresses: Sequence[Multiaddr]) -> list[str]:
    return list(map(str, addresses))


def _from_json(_: PeerId, addresses: Any) -> Sequence[Multiaddr]:
    return [parse_address(each) for each in addresses]


FORMAT: Final = TableFormat(name="routing table", number=1, to_json=_to_json, from_json=_from_json)
