"""What became of the examples of one stretch of training: pure counting."""

from collections import Counter
from dataclasses import dataclass, field

from p2pnode.events import Event
from p2pnode.rpc.age import Age
from p2pnode.wire.uids import Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesTrained(Event):
    """A participant has sent examples of its own through all layers, and gradients back.

    Attributes:
        uid: the layer that the participant hosts.
        samples: whose gradients have reached every layer.
        stale: dropped on their way back, since a layer had taken too many steps meanwhile.
        lost: given up because a layer had no live host, or failed.
        updates: steps that layers took for these examples.
        staleness: the mean, over these steps, of the steps that the layer took between the
            examples' forward and backward pass.
        max_staleness: the most of them.
        rerouted: calls that were answered by another host than the lane's.
        seconds: how long it took.
    """

    level = "info"

    uid: Uid
    samples: int
    stale: int
    lost: int
    updates: int
    staleness: float
    max_staleness: int
    rerouted: int
    seconds: float


@dataclass(slots=True)
class Tally:
    """Counts while examples are on their way."""

    samples: int = 0
    stale: int = 0
    lost: int = 0
    rerouted: int = 0
    updates: Counter[int] = field(default_factory=Counter)  # by their staleness

    def receive_update(self, age: Age) -> None:
        """A layer was stepped."""
        self.updates[age.staleness] += 1

    def event(self, uid: Uid, seconds: float) -> SamplesTrained:
        """Sum it up."""
        count = self.updates.total()
        steps = sum(staleness * times for staleness, times in self.updates.items())
        return SamplesTrained(
            uid=uid,
            samples=self.samples,
            stale=self.stale,
            lost=self.lost,
            updates=count,
            staleness=steps / count if count else 0.0,
            max_staleness=max(self.updates, default=0),
            rerouted=self.rerouted,
            seconds=seconds,
        )
