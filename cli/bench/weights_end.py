"""A process of the weights benchmark: `python -m cli.bench.weights_end DIRECTORY`.

It is a peer that gives states and takes them, as a daemon does, with a disk of its own below
DIRECTORY. It prints a line of JSON with its address, obeys one line of JSON after the other from
its standard input, answers each with a line, and ends with its input.
"""

import json
import os
import random
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import trio

from cli.bench.far_end import HOST
from cli.output import print_event, print_json
from p2pnode.config import MIB, HostingSettings, RpcSettings, WeightsSettings
from p2pnode.config.experts import Codec
from p2pnode.experts.checkpoints import Checkpoint
from p2pnode.experts.service import ExpertHost
from p2pnode.experts.states import ExpertState
from p2pnode.host import Stream
from p2pnode.host.node import NetworkHost
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.swarm.weights.client import WeightsClient, WeightsFetched
from p2pnode.swarm.weights.publisher import Publisher
from p2pnode.swarm.weights.server import WeightsServer
from p2pnode.swarm.weights.store import StateStore
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import peer_address, tcp_address, with_p2p
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

RUN: Final = Membership.open("bench")
STATE: Final = Uid(RUN.run_id, "state.0")
NOP: Final = Uid(RUN.run_id, "nop.0")  # what is called meanwhile
HIDDEN_DIM: Final = 1024
_COPY: Final = "/p2pnode/bench/copy/1.0.0"
_COPIED: Final = "copied"
_PAUSE: Final = 0.01
_MATRICES: Final = 8
_MAX_LINE: Final = 64 * 1024


class _End:
    """One peer."""

    def __init__(self, directory: Path, settings: WeightsSettings) -> None:
        self._directory = directory
        memberships = {RUN.name: RUN}
        self.host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
        self.experts = ExpertHost(
            HostingSettings(layer="nop", hidden_dim=HIDDEN_DIM, threads=1), None, self.host.events
        )
        self._store = StateStore(directory / "states", settings)
        authority = Authority(memberships, RpcSettings().token_cache_size)
        publisher = Publisher(self.experts, self._store)
        budget = TensorServer(self.host, RpcSettings(), self.experts, authority).budget
        WeightsServer(self.host, settings, publisher, self._store, authority, budget=budget)
        self._client = WeightsClient(
            Access(self.host, memberships),
            settings,
            self._store,
            self.host.events,
            random.Random(),
            budget=budget,
        )
        self.host.set_handler(_COPY, self._give_copy)
        self._came = 0
        self.host.events.on(WeightsFetched, self._count)

    async def obey(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one order, and say what came of it."""
        match order["op"]:
            case "make":
                return await self._make(order["size"], order["codec"], order["seed"])
            case "know":
                for address in order["addresses"]:
                    peer_id, multiaddr = peer_address(address)
                    await self.host.connect(peer_id, [multiaddr])
                return {}
            case "fetch":
                return await self._measured(lambda: self._fetch(order["name"], order["holders"]))
            case "copy":
                return await self._measured(lambda: self._copy(order["source"], order["size"]))
            case "forget":
                return await self._forget(bytes.fromhex(order["name"]))
            case "usage":
                return {"cpu": _cpu(), "sent": self._wire()[0], "received": self._wire()[1]}
        raise ValueError(f"unknown order {order['op']!r}")

    async def _make(self, size: int, codec: Codec, seed: int) -> dict[str, Any]:
        """Publish weights of about `size` bytes; the same seed makes the same."""
        rng = torch.Generator().manual_seed(seed)
        rows = max(1, size // (4 * HIDDEN_DIM * _MATRICES))
        tensors = {
            f"module.{number}": torch.randn(rows, HIDDEN_DIM, generator=rng)
            for number in range(_MATRICES)
        }
        state = ExpertState(tensors=tensors, steps=1, rows=1, layer="bench", optimizer="sgd")
        manifest = await self._store.publish(
            STATE,
            Checkpoint(state=state, applied=(), complete=False),
            complete=False,
            codec=codec,
            origin="announced",
        )
        return {"name": manifest.name.hex(), "size": manifest.size}

    async def _forget(self, name: bytes) -> dict[str, Any]:
        """Delete a state, once nobody reads it any more."""
        while self._store.find(name) is not None:
            await self._store.forget(STATE)
            await trio.sleep(_PAUSE)
        (self._directory / _COPIED).unlink(missing_ok=True)
        return {}

    async def _measured(self, work: Callable[[], Awaitable[None]]) -> dict[str, Any]:
        cpu, (sent, received), began = _cpu(), self._wire(), trio.current_time()
        self._came = 0
        await work()
        seconds = trio.current_time() - began
        (sent_now, received_now) = self._wire()
        return {
            "seconds": seconds,
            "cpu": _cpu() - cpu,
            "chunk_bytes": self._came,
            "sent": sent_now - sent,
            "received": received_now - received,
        }

    async def _fetch(self, name: str, holders: list[str]) -> None:
        peers = [PeerId.from_text(each) for each in holders]
        await self._client.fetch(STATE, bytes.fromhex(name), peers)

    async def _copy(self, source: str, size: int) -> None:
        """Copy a file as plainly as can be: one stream, no hashes, straight to the disk."""
        connection = await self.host.connect(PeerId.from_text(source))
        stream = await connection.open_stream([_COPY])
        buffer = memoryview(bytearray(MIB))
        with (self._directory / _COPIED).open("wb") as file:
            await stream.send_all(size.to_bytes(8, "big"))
            while size:
                piece = buffer[:size]
                await stream.receive_into(piece)
                file.write(piece)
                size -= len(piece)
        await stream.aclose()

    async def _give_copy(self, stream: Stream) -> None:
        size = int.from_bytes(await stream.receive_exactly(8), "big")
        path = next((self._directory / "states").glob("*.state"))
        with path.open("rb") as file:
            while size and (data := file.read(min(size, MIB))):
                await stream.send_all(data)
                size -= len(data)

    def _count(self, event: WeightsFetched) -> None:
        self._came += event.bytes

    def _wire(self) -> tuple[int, int]:
        infos = self.host.info().connections
        return sum(each.bytes_sent for each in infos), sum(each.bytes_received for each in infos)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


async def _serve(directory: Path, settings: WeightsSettings) -> None:
    torch.set_num_threads(1)
    end = _End(directory, settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(end.host.run)
        await end.experts.add([NOP])
        await nursery.start(end.experts.run)
        (address,) = await end.host.listen(tcp_address(HOST, 0))
        print_event("ready", address=str(with_p2p(address, end.host.peer_id)))
        buffered = b""
        orders = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
        while data := await orders.receive_some(_MAX_LINE):
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                print_json(await end.obey(json.loads(line)))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_serve, Path(sys.argv[1]), WeightsSettings(**json.loads(sys.argv[2])))
