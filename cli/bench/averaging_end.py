"""One peer of `bench averaging`: `python -m cli.bench.averaging_end ELEMENTS COUNT`.

It prints a line of JSON with its address, and is told those of all peers. It then answers two lines
for each line of its input: that it is ready, and, when it is told to go, how long reducing took. It
ends with its input.
"""

import json
import sys
import time
from typing import Any, Final

import torch
import trio

from p2pnode.config import Settings
from p2pnode.host.node import NetworkHost
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.rpc.codecs.names import find_codec
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.security.tokens import Membership
from p2pnode.swarm.averaging.group import Group, Member
from p2pnode.swarm.averaging.service import AllReduce
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import peer_address, tcp_address, with_p2p
from p2pnode.wire.keys import PrivateKey

RUN: Final = Membership.open("bench")
_KNOWN_FOR: Final = 3600.0  # seconds that the peers' addresses are remembered


def _say(**message: Any) -> None:
    """Print one line for whoever started this."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _hear() -> Any:
    """Wait for the next line from there; None when there will be none."""
    line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return json.loads(line) if line else None


async def main(elements: int, count: int) -> None:
    """Reduce until the input ends."""
    torch.set_num_threads(1)
    host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
    settings = Settings()
    reducer = AllReduce(
        host,
        Access(host, {"bench": RUN}),
        Authority({"bench": RUN}, 16),
        settings.averaging,
        budget=Budget(settings.rpc),
        transcoder=Transcoder(settings.rpc),
    )
    tensors = [torch.empty(elements) for _ in range(count)]
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        (address,) = await host.listen(tcp_address("127.0.0.1", 0))
        _say(address=str(with_p2p(address, host.peer_id)))
        peers = [peer_address(each) for each in await _hear()]
        for peer_id, where in peers:
            if peer_id != host.peer_id:
                host.add_addresses(peer_id, [where], _KNOWN_FOR)
        members = tuple(Member(peer_id=peer_id) for peer_id, _ in peers)
        number = 0
        while (question := await _hear()) is not None:
            for place, tensor in enumerate(tensors):
                tensor.fill_(question["value"] + place)
            number += 1
            group = Group(
                run_id=RUN.run_id,
                round_id=b"%d" % number,
                members=members,
                codec=find_codec(question["codec"]),
            )
            _say(ready=True)
            await _hear()
            began = time.perf_counter()
            reduced = await reducer.reduce(group, tensors, quorum=len(members))
            taken = time.perf_counter() - began
            _say(seconds=taken, value=float(reduced.tensors[0][-1]))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
