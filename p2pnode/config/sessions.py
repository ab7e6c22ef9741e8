"""How much of a host inference sessions may hold."""

from dataclasses import dataclass

from p2pnode.config.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """Budgets and waits of inference sessions, whose keys and values a host keeps between steps.

    A session is charged for its greatest length when it opens. One of a sequence of 2048 tokens in
    a model of 7 billion parameters takes 32 MiB of each block in bfloat16, where all of its heads
    have keys of their own.
    """

    max_sessions: int = 64
    max_sessions_per_peer: int = 16
    max_cache_bytes: int = 1024 * MIB
    max_cache_bytes_per_peer: int = 512 * MIB
    max_length: int = 1_048_576  # positions of one session, whatever the model could do
    idle_timeout: float = 120.0  # between two steps
    # How long a step waits for other sessions that are due, to be computed with theirs: less than
    # a person notices, and a fraction of what a block of a large model takes.
    join_window: float = 0.004
