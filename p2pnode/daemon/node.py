"""The node: everything above and below put together, opened in order and closed in reverse.

```
lock, identity -> host (listen) -> identify, ping -> DHT -> bootstrap -> hosting -> control socket
```

Each part is a task of one of two nurseries: `network`, which carries connections, outlives
`services`, so that a service can still say goodbye while it shuts down. Torch is imported only
when the node hosts its first expert.
"""

import functools
import importlib
import os
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import trio
from multiaddr import Multiaddr

from p2pnode import __version__
from p2pnode.config import NodeSettings, Settings
from p2pnode.daemon.control.service import ControlServer
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.runs import RunStore
from p2pnode.errors import AddressInUseError, BadRequestError, ConfigError, NoPeersError
from p2pnode.events import EventBus
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.kad.service import KadDht
from p2pnode.protocols.kad.validators import PublicKeyValidator
from p2pnode.protocols.ping.service import PingService
from p2pnode.security.tokens import Membership, verify_token
from p2pnode.swarm.index import NAMESPACE, IndexValidator
from p2pnode.swarm.lookup import ExpertDirectory
from p2pnode.transport.base import Transport
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import parse_address, peer_address, with_p2p
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid, expand

if TYPE_CHECKING:
    from p2pnode.daemon.hosting import Hosting

REJOIN_INTERVAL = 30.0  # how often a node without peers tries its bootstrap addresses again
MAX_PINGS = 100


class Node:
    """One volunteer's daemon.

    `run` is the only way to have one running: `await nursery.start(node.run)` returns when it is
    ready to serve, and cancelling it, or `request_stop`, ends everything it started.
    """

    def __init__(
        self,
        data_dir: DataDir,
        settings: Settings,
        *,
        transports: Sequence[Transport] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.events = EventBus()
        self._data_dir = data_dir
        self._runs = RunStore(data_dir)
        self._rng = rng or random.Random()
        self._transports = transports if transports is not None else [TcpTransport()]
        self._stop = trio.Event()
        self._hosting: Hosting | None = None
        self._hosting_lock = trio.Lock()
        self._joined: dict[str, Membership] = {}
