"""hivemind's side of `bench rpc`: a server of experts, or callers of them.

Run by the interpreter of an environment that has hivemind (1.1.12 was used), which need not have
this package: `rival_end.py serve LAYER …` or `rival_end.py call …`. It prints a line of JSON
when it is ready; callers then answer a line for each line of their input. It ends with its input.
"""

import json
import sys
import threading
import time
from typing import Any

import torch
from hivemind import DHT
from hivemind.moe.server import Server, get_experts
from hivemind.moe.server.layers import register_expert_class
from torch import nn


@register_expert_class("paper_ffn", lambda rows, dim: torch.empty((rows, dim)))
class FeedForward(nn.Module):
    """The expert of the Learning@home paper, as p2pnode's `ffn`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = 4 * dim
        self.layers = nn.Sequential(
            *(nn.Linear(dim, wide), nn.LayerNorm(wide), nn.ReLU(inplace=True)),
            *(nn.Linear(wide, wide), nn.LayerNorm(wide), nn.ReLU(inplace=True)),
            nn.Linear(wide, dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (rows, dim) to the same shape."""
        found: torch.Tensor = x + self.layers(x)
        return found


def say(**message: Any) -> None:
    """Print one line for whoever started this."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def serve(layer: str, callers: int, dim: int, threads: int) -> None:
    """Serve one expert for each caller until the input ends."""
    torch.set_num_threads(threads)
    server = Server.create(
        expert_uids=[f"{layer}.{number}" for number in range(callers)],
        expert_cls="nop" if layer == "nop" else "paper_ffn",
        hidden_dim=dim,
        num_handlers=1,  # with eight, 16 callers got a little less
        device="cpu",
        optim_cls=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        start=True,
    )
    try:
        say(address=str(server.dht.get_visible_maddrs()[0]))
        sys.stdin.read()
    finally:
        server.shutdown()


def call(callers: int, dim: int, addresses: list[str]) -> None:
    """Answer questions for rates until the input ends."""
    torch.set_num_threads(1)
    layers = ("nop", "ffn")
    experts = {}
    for layer, address in zip(layers, addresses, strict=True):
        dht = DHT(initial_peers=[address], client_mode=True, start=True)
        uids = [f"{layer}.{number}" for number in range(callers)]
        while None in (found := get_experts(dht, uids)):
            time.sleep(0.1)
        experts[layer] = found
    say(ready=True)
    for line in sys.stdin:
        question = json.loads(line)
        x = torch.randn(question["rows"], dim)
        gradient = torch.randn(question["rows"], dim) / question["rows"] / 1000

        def nop(number: int, x: torch.Tensor = x) -> None:
            with torch.no_grad():
                experts["nop"][number](x)

        def ffn(number: int, x: torch.Tensor = x, gradient: torch.Tensor = gradient) -> None:
            experts["ffn"][number](x.detach().requires_grad_()).backward(gradient)

        work = nop if question["work"] == "calls" else ffn
        say(rate=rate(work, callers, question["seconds"]))


def rate(work: Any, callers: int, seconds: float) -> float:
    """Let each caller work in a thread for so long; returns how often all did, in a second."""
    start = threading.Barrier(callers + 1)
    done = [0] * callers

    def run(number: int) -> None:
        start.wait()
        while time.perf_counter() - began < seconds:
            work(number)
            done[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    start.wait()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        call(int(sys.argv[2]), int(sys.argv[3]), sys.argv[5:])
