"""Peers that break the rules, one module for each layer they break them in.

An `Attacker` is honest up to a step of its choosing. What it does then is an async function of it,
bounded in bytes and in time. The tests in `tests/hostile` say how each attack must end, and
`python -m p2pnode.testing.hostile` measures what it costs a well-behaved peer meanwhile.
"""

from p2pnode.testing.hostile.attacker import Attack, Attacker

__all__ = ["Attack", "Attacker"]
