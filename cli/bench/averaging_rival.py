"""hivemind's side of `bench averaging`: one peer that averages.

Run by the interpreter of an environment that has hivemind (1.1.12 was used), which need not have
this package: `averaging_rival.py PEERS ELEMENTS COUNT [ADDRESS]`. It prints a line of JSON with its
address when it is ready, and answers two lines for each line of its input: that it has found its
group, and, when it is told to go, how long reducing took. It ends with its input.
"""

import json
import sys
import time
from typing import Any

import torch
from hivemind import DHT
from hivemind.averaging import DecentralizedAverager
from hivemind.averaging.control import AveragingStage
from hivemind.compression import Float16Compression, NoCompression

CODECS = {"none": NoCompression, "float16": Float16Compression}


def say(**message: Any) -> None:
    """Print one line for whoever started this."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(peers: int, elements: int, count: int, addresses: list[str]) -> None:
    """Average until the input ends."""
    torch.set_num_threads(1)
    host = ["/ip4/127.0.0.1/tcp/0"]
    dht = DHT(initial_peers=addresses, host_maddrs=host, start=True)
    averagers = {
        codec: DecentralizedAverager(
            [torch.zeros(elements) for _ in range(count)],
            dht,
            prefix=f"bench_{codec}",
            target_group_size=peers,
            min_group_size=peers,
            min_matchmaking_time=3.0,
            request_timeout=2.0,
            compression=kind(),
            bandwidth=1.0,
            start=True,
        )
        for codec, kind in CODECS.items()
    }
    say(address=str(dht.get_visible_maddrs()[0]))
    for line in sys.stdin:
        question = json.loads(line)
        averager = averagers[question["codec"]]
        with averager.get_tensors() as tensors:
            for number, tensor in enumerate(tensors):
                tensor.fill_(question["value"] + number)
        step = averager.step(wait=False, require_trigger=True, timeout=120.0)
        while step.stage is not AveragingStage.AWAITING_TRIGGER and not step.done():
            time.sleep(0.01)
        say(ready=True)
        sys.stdin.readline()
        began = time.perf_counter()
        step.allow_allreduce()
        step.result()
        taken = time.perf_counter() - began
        with averager.get_tensors() as tensors:
            say(seconds=taken, value=float(tensors[0][-1]))
    for averager in averagers.values():
        averager.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
