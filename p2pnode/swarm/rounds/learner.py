"""What a participant brings: data of its own, and a way to train and to score its layer."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from p2pnode.experts.checkpoints import Checkpoint


class Learner(Protocol):
    """Trains and scores the layer that this node hosts, on this participant's own data.

    The hold-out is neither trained on nor the test set that the run is judged by: scores on it
    choose between weights. All calls come from one task, never two at a time. A call that is
    cancelled must leave the layer usable.
    """

    @property
    def held_out(self) -> int:
        """How many examples the hold-out has."""
        ...

    @property
    def data_digest(self) -> bytes:
        """The SHA-256 of the hold-out, which tells others whether it is like theirs."""
        ...

    @property
    def is_lasting(self) -> bool:
        """Whether the same weights always score the same.

        They do not where a score is of a whole network, whose other layers learn meanwhile.
        """
        ...

    async def train(self, samples: int) -> None:
        """Train the layer as it is hosted on the next examples.

        Args:
            samples: how many.

        Raises:
            P2PNodeError: it cannot be trained now; the round goes on with what it has learnt.
        """
        ...

    async def score(self, checkpoint: "Checkpoint | None") -> float:
        """Return the part of the hold-out that is classified right, from 0 to 1.

        Args:
            checkpoint: weights to be used in the place of the layer's own, which stay as they are;
                None for the layer as it is hosted. Nobody has vouched for them.

        Raises:
            CheckpointError: they do not fit the layer.
            P2PNodeError: they cannot be scored now.
        """
        ...
