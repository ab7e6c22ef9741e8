"""How old the weights are that a call meets. Pure.

Training through layers on other machines is asynchronous: between a sample's forward and backward
pass, others step the layers. A forward reply tells how many steps the weights had taken that
computed it; the backward call of the same samples gives the numbers back, with the most that may
lie between. The host alone knows where its weights stand when the call's turn comes: it drops an
update that is too stale, and tells how stale one was that it took.

Source: bounded staleness as in Ho et al. 2013, "More Effective Distributed ML via a Stale
Synchronous Parallel Parameter Server", without its waiting: what is too old is dropped instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Age:
    """Where the weights of a call's layers stand, in steps; kept up to date while it is made.

    Attributes:
        since: in a backward call, what the forward call of the same samples met, for each layer;
            empty when nobody asks.
        bound: how many steps may lie between; None for any number.
        steps: what the call met; empty until it was computed, or when the host does not tell.
    """

    since: tuple[int, ...] = ()
    bound: int | None = None
    steps: tuple[int, ...] = ()

    def receive(self, steps: Sequence[int]) -> None:
        """The call is computed by weights of these steps."""
        self.steps = tuple(steps)

    @property
    def staleness(self) -> int:
        """The steps between forward and backward, of the layer where they are most.

        Weights of another host, or adopted from one, may stand behind those that forward met: then
        it is the distance that counts.
        """
        if len(self.since) != len(self.steps):
            return 0
        return max(
            (abs(now - then) for now, then in zip(self.steps, self.since, strict=True)), default=0
        )

    @property
    def is_stale(self) -> bool:
        """Whether more lies between than may."""
        return self.bound is not None and self.staleness > self.bound
