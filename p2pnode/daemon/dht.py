"""The DHT as the control socket shows it: who is in the table, and what lies under a key.

A key is a text such as `/pk/12D3…` or `/p2pnode-index/open:digits/hosts/ffn.3/0`; a peer id in a
key of `/pk/` is written as people write peer ids. Values are base64. What may stand under a key,
the rules of its namespace say.
"""

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import trio

from p2pnode.daemon.control.params import text
from p2pnode.daemon.control.service import Method
from p2pnode.errors import BadRequestError
from p2pnode.protocols.kad.validators import PublicKeyValidator
from p2pnode.swarm.network import Network
from p2pnode.wire.peer_id import PeerId

_PUBLIC_KEYS: Final = f"/{PublicKeyValidator.NAMESPACE}/"

T = TypeVar("T")


class DhtCommands:
    """The commands that ask a running node's DHT."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def methods(self) -> dict[str, Method]:
        """Return them by the names they have on the control socket."""
        return {
            "dht.peers": self._peers,
            "dht.find": self._find,
            "dht.get": self._get,
            "dht.put": self._put,
        }

    async def _peers(self, _params: Mapping[str, Any]) -> Any:
        host = self._network.host
        return [
            {
                "peer_id": str(peer),
                "addresses": [str(address) for address in host.addresses_of(peer)],
                "connected": host.connection_to(peer) is not None,
            }
            for peer in sorted(self._network.dht.peers)
        ]

    async def _find(self, params: Mapping[str, Any]) -> Any:
        peer_id, _ = self._network.resolve(text(params, "peer"))
        addresses, seconds = await _timed(lambda: self._network.dht.find_peer(peer_id))
        return {"addresses": [str(address) for address in addresses], "seconds": seconds}

    async def _get(self, params: Mapping[str, Any]) -> Any:
        key = key_of(text(params, "key"))
        value, seconds = await _timed(lambda: self._network.dht.get_value(key))
        return {"value": base64.b64encode(value).decode("ascii"), "seconds": seconds}

    async def _put(self, params: Mapping[str, Any]) -> Any:
        key = key_of(text(params, "key"))
        try:
            value = base64.b64decode(text(params, "value"), validate=True)
        except binascii.Error as error:
            raise BadRequestError("a value of the DHT must be base64") from error
        stored, seconds = await _timed(lambda: self._network.dht.put_value(key, value))
        return {"stored": stored, "seconds": seconds}


def key_of(written: str) -> bytes:
    """Return the DHT key that people write like this.

    Raises:
        InvalidKeyError: the peer id in it is none.
    """
    if written.startswith(_PUBLIC_KEYS):
        peer_id = PeerId.from_text(written.removeprefix(_PUBLIC_KEYS))
        return _PUBLIC_KEYS.encode() + bytes(peer_id)
    return written.encode()


async def _timed(work: Callable[[], Awaitable[T]]) -> tuple[T, float]:
    """Do `work`; returns its result and the seconds it took."""
    began = trio.current_time()
    return await work(), trio.current_time() - began
