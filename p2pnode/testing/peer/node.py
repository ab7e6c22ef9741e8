"""The peer itself: a node that serves what the checks ask for."""

import hashlib
from collections.abc import Sequence
from typing import Final

import trio

from p2pnode.config import Settings
from p2pnode.host import Stream
from p2pnode.swarm.network import Network
from p2pnode.wire.keys import PrivateKey

ECHO: Final = "/echo/1.0.0"
KAD: Final = "/ipfs/kad/1.0.0"
TOPIC: Final = "interop"
PING: Final = b"ping:"
PONG: Final = b"pong:"


class Peer:
    """A node that serves identify, ping, perf, a DHT, pub/sub, a relay and an echo.

    Args:
        key: its identity.
        kad: the DHT's protocol, which its network has in common.
    """

    def __init__(self, key: PrivateKey, *, kad: str = KAD) -> None:
        self.settings = Settings().replace(
            dht={"protocol": kad},
            perf={"serve": True},
            relay={"server": "always"},
            pubsub={"ip_colocation_factor_weight": 0.0},  # who tests has all peers on one machine
        )
        self.network = Network(key, self.settings)
        self.pubsub = self.network.pubsub

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.network.run)
            await nursery.start(self._answer_pings)
            self.network.host.set_handler(ECHO, echo)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self.network.host.remove_handler(ECHO)

    async def _answer_pings(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with self.pubsub.subscribe(TOPIC) as messages:
            task_status.started()
            async for message in messages:
                if message.data.startswith(PING):
                    await self.pubsub.publish(TOPIC, PONG + message.data.removeprefix(PING))

    async def listen(self, addresses: Sequence[str]) -> list[str]:
        """Listen on all of `addresses`; returns where to dial, the peer id at the end of each.

        Raises:
            AddressInUseError: one is taken by another program.
        """
        await self.network.listen(addresses)
        return self.network.full_addresses()


async def echo(stream: Stream) -> None:
    """Send back what comes until it ends; the host then closes our side."""
    while data := await stream.receive_some():
        await stream.send_all(data)


def key_from(seed: str | None) -> PrivateKey:
    """Make an identity, the same one for the same `seed`; Ed25519, like all of this node's."""
    if seed is None:
        return PrivateKey.generate()
    return PrivateKey.from_seed(hashlib.sha256(seed.encode()).digest())
