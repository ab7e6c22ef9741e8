"""Weights that depend on a seed and a name alone, whoever draws them and in whatever order."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Let torch's CPU generator start from a seed and a name, and leave it as it was.

    So hosts of one expert begin alike, and a trainer can build the same one locally.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield
