"""Trainers that come, call and go, and what became of their calls."""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import trio
from multiaddr import Multiaddr

from p2pnode.config import RpcSettings
from p2pnode.config.experts import Codec
from p2pnode.errors import OverloadedError, P2PNodeError
from p2pnode.host.node import NetworkHost
from p2pnode.rpc.client import TensorClient
from p2pnode.rpc.framing import IncomingMessage
from p2pnode.rpc.messages import CALL_ID_BYTES, PROTOCOL, Request, decode_reply
from p2pnode.rpc.schema import ExpertInfo, TensorMeta
from p2pnode.security.tokens import Membership
from p2pnode.testing.soak.spoilt import WAYS
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

RUN: Final = "soak"
WIDTH: Final = 64
NOP: Final = Uid(RUN, "nop.0")
FFN: Final = Uid(RUN, "ffn.0")
PATIENCE: Final = 60.0  # seconds for an answer; more than any queue is long
# What trainers do, by how often; the rest are small forward calls.
_BACKWARD, _INFO, _LARGE = 0.1, 0.02, 0.01
_CODECS: Final[tuple[Codec, ...]] = ("none", "float16", "bfloat16", "blockwise-int8")
_LEAVES_WITHOUT_A_WORD: Final = 0.3
_IN_GOOD_ORDER: Final = 0.5


@dataclass(slots=True)
class Outcomes:
    """What became of calls.

    Attributes:
        wanted: how many calls are to be made.
        begun: how many have been.
        valid: those of the valid ones that are over, by how they ended.
        spoilt: the same of those that were malformed.
        faults: what must not happen, in words; a daemon with any has failed.
        trainers: how many have come.
    """

    wanted: int = 0
    begun: int = 0
    valid: Counter[str] = field(default_factory=Counter)
    spoilt: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    trainers: int = 0

    def describe(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {
            "calls": self.begun,
            "trainers": self.trainers,
            "valid": dict(self.valid.most_common()),
            "malformed": dict(self.spoilt.most_common()),
            "faults": dict(self.faults.most_common()),
        }

    def take(self) -> bool:
        """Begin one more call, if one is wanted."""
        if self.begun == self.wanted:
            return False
        self.begun += 1
        return True


async def come_and_go(
    peer_id: PeerId,
    address: Multiaddr,
    outcomes: Outcomes,
    rng: random.Random,
    *,
    malformed: float,
) -> None:
    """Be one trainer after the other until no more calls are wanted."""
    while outcomes.begun < outcomes.wanted:
        outcomes.trainers += 1
        async with trio.open_nursery() as nursery:
            host = NetworkHost(PrivateKey.from_seed(rng.randbytes(32)), transports=[TcpTransport()])
            await nursery.start(host.run)
            try:
                await host.connect(peer_id, [address])
                trainer = _Trainer(host, peer_id, outcomes, rng)
                await trainer.make_calls(rng.randint(50, 1000), malformed)
                if rng.random() < _IN_GOOD_ORDER:
                    for connection in host.connections():
                        await connection.aclose()
            except P2PNodeError as error:
                outcomes.faults[f"a trainer could not stay: {type(error).__name__}"] += 1
            nursery.cancel_scope.cancel()


class _Trainer:
    def __init__(
        self, host: NetworkHost, peer_id: PeerId, outcomes: Outcomes, rng: random.Random
    ) -> None:
        self._host = host
        self._peer_id = peer_id
        self._outcomes = outcomes
        self._rng = rng
        self._client = TensorClient(host, RpcSettings(), {RUN: Membership.open(RUN)})
        self._infos: dict[Uid, ExpertInfo] = {}

    async def make_calls(self, count: int, malformed: float) -> None:
        for uid in (NOP, FFN):
            self._infos[uid] = await self._client.info(self._peer_id, uid, timeout=PATIENCE)
        for _ in range(count):
            if not self._outcomes.take():
                return
            if self._rng.random() < malformed:
                await self._send_spoilt()
            else:
                await self._call()
        if self._rng.random() < _LEAVES_WITHOUT_A_WORD and self._outcomes.take():
            with trio.move_on_after(self._rng.random() * 0.001):
                await self._forward(NOP, 1, "none")
            self._outcomes.valid["given up by the trainer"] += 1

    async def _call(self) -> None:
        kind = self._rng.random()
        try:
            with trio.fail_after(PATIENCE + 10):
                if kind < _BACKWARD:
                    await self._backward()
                elif kind < _BACKWARD + _INFO:
                    await self._client.info(self._peer_id, FFN, timeout=PATIENCE)
                elif kind < _BACKWARD + _INFO + _LARGE:
                    await self._forward(NOP, 2048, self._rng.choice(_CODECS))
                else:
                    uid = self._rng.choice((NOP, NOP, FFN))
                    await self._forward(uid, self._rng.randint(1, 8), "none")
        except OverloadedError:
            self._outcomes.valid["refused: OverloadedError"] += 1
        except (P2PNodeError, trio.TooSlowError) as error:
            self._outcomes.faults[f"a valid call ended with {type(error).__name__}"] += 1
        else:
            self._outcomes.valid["answered"] += 1

    async def _forward(self, uid: Uid, rows: int, codec: Codec) -> None:
        x = torch.full((rows, WIDTH), self._rng.random())
        (y,) = await self._client.forward(
            self._peer_id, uid, [x], timeout=PATIENCE, info=self._infos[uid], codec=codec
        )
        if uid == NOP and not torch.allclose(x, y, atol=0.01):
            self._outcomes.faults["a wrong answer"] += 1

    async def _backward(self) -> None:
        rows = self._rng.randint(1, 8)
        x = torch.full((rows, WIDTH), self._rng.random())
        call_id = self._rng.randbytes(CALL_ID_BYTES)
        for _ in range(self._rng.choice((1, 1, 1, 2))):  # some are repeated
            (gradient,) = await self._client.backward(
                self._peer_id, FFN, [x], [x / 100], call_id=call_id, timeout=PATIENCE
            )
            if gradient.shape != x.shape:
                self._outcomes.faults["a wrong answer"] += 1

    async def _send_spoilt(self) -> None:
        name, spoil = self._rng.choice(list(WAYS.items()))
        rows = self._rng.randint(1, 4)
        request = Request(
            operation="forward",
            uid=NOP.in_run(Membership.open(RUN).run_id),
            tensors=(TensorMeta("float32", (rows, WIDTH)),),
            milliseconds=5000,
        )
        spoilt = spoil(self._rng, request, bytes(4 * rows * WIDTH))
        how = "left unanswered"
        try:
            with trio.fail_after(PATIENCE):
                connection = await self._host.connect(self._peer_id)
                stream = await connection.open_stream([PROTOCOL])
                await stream.send_all(spoilt.data)
                if spoilt.hangs_up:
                    stream.reset()
                    how = "hung up"
                else:
                    await stream.send_eof()
                    reply = decode_reply(await IncomingMessage(stream).header(64 * 1024))
                    how = "refused" if reply.error is not None else "taken for a valid one"
                    await stream.aclose()
        except P2PNodeError as error:
            how = f"ended: {type(error).__name__}"
        except trio.TooSlowError:
            self._outcomes.faults[f"{name}: neither answered nor ended"] += 1
        self._outcomes.spoilt[how] += 1
