"""What makes torch give the same numbers in each run: sources of chance, and one thread."""

import contextlib
from collections.abc import Iterator

import torch

from simulations.simulation import Simulation


def generator(sim: Simulation, purpose: str) -> torch.Generator:
    """Return torch's kind of `Simulation.rng_for`."""
    return torch.Generator().manual_seed(sim.rng_for(purpose).getrandbits(63))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread while the block runs: sums depend on how they are split."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
