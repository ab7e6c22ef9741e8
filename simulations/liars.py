"""Nodes that lie: members of the DHT like all others, but for how they answer.

| kind          | what it answers                                                               |
|---------------|-------------------------------------------------------------------------------|
| `silent`      | nothing, ever                                                                 |
| `garbage`     | bytes that are no message                                                     |
| `strangers`   | peers that do not exist, as close to the key as one likes                     |
| `accomplices` | other liars only, whatever the key                                            |
| `forgeries`   | values that are forged or out of date; that it has stored what it has not     |
| `mixed`       | each liar one of these, drawn at random                                       |

All of them take part in the DHT by themselves, so that honest nodes meet them and keep them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import trio

from p2pnode.host import Stream
from p2pnode.protocols.kad.messages import Contact, Message, MessageType, Record, decode, encode
from p2pnode.wire import varint
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.keys import PrivateKey
from simulations.node import Node

KINDS: Final = ("silent", "garbage", "strangers", "accomplices", "forgeries")
_NAMED: Final = 20  # peers in an answer, as honest nodes name
_MAX_REMEMBERED: Final = 1024  # values that a liar keeps the first version of


class Liar:
    """Answers in a node's place.

    Args:
        node: whose DHT it spoils.
        kind: one of `KINDS`.
        rng: the source of chance.
        others: gives the liars that are up.
    """

    def __init__(
        self, node: Node, kind: str, rng: random.Random, others: Callable[[], Sequence[Node]]
    ) -> None:
        self.kind = kind
        self._node = node
        self._rng = rng
        self._others = others
        self._first: dict[bytes, bytes] = {}

    def start(self) -> None:
        """Take over the node's side of the DHT's protocol."""
        self._node.host.set_handler(self._node.settings.dht.protocol, self.handle)

    async def handle(self, stream: Stream) -> None:
        """Answer the requests of one stream.

        Raises:
            RemoteError: the stream broke.
        """
        settings = self._node.settings.dht
        while True:
            data = await stream.receive_prefixed(settings.max_message_bytes)
            if data is None:
                return
            if self.kind == "silent":
                await trio.sleep_forever()
            if self.kind == "garbage":
                answer = self._rng.randbytes(self._rng.randint(1, 300))
            else:
                answer = encode(self.lie(decode(data)))
            await stream.send_all(varint.prefixed(answer))

    def lie(self, request: Message) -> Message:
        """Return the answer to a request."""
        if self.kind == "forgeries":
            return self._forge(request)
        contacts = self._strangers() if self.kind == "strangers" else self._accomplices()
        return Message(type=request.type, key=request.key, closer=contacts, record=request.record)

    def _strangers(self) -> tuple[Contact, ...]:
        """Make up peers at addresses where nobody is."""
        return tuple(
            Contact(
                PrivateKey.from_seed(self._rng.randbytes(32)).peer_id,
                (tcp_address(f"203.0.113.{self._rng.randint(1, 254)}", 4001),),
            )
            for _ in range(_NAMED)
        )

    def _accomplices(self) -> tuple[Contact, ...]:
        others = [each for each in self._others() if each is not self._node]
        chosen = self._rng.sample(others, min(_NAMED, len(others)))
        return tuple(Contact(each.peer_id, tuple(each.host.addresses)) for each in chosen)

    def _forge(self, request: Message) -> Message:
        """Take every value, keep its first version, and give that, spoilt or out of date."""
        answer = replace(request, closer=())
        if request.record is not None and len(self._first) < _MAX_REMEMBERED:
            self._first.setdefault(request.key, request.record.value)
        if request.type is not MessageType.GET_VALUE:
            return answer
        value = self._first.get(request.key) or self._rng.randbytes(64)
        if self._rng.random() < 0.5:
            place = self._rng.randrange(len(value))
            value = value[:place] + bytes([value[place] ^ 0xFF]) + value[place + 1 :]
        return replace(answer, record=Record(request.key, value))
