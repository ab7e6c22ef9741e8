"""What a session does in the device thread: its caches, and one step through its blocks."""

from collections.abc import Sequence

import torch

from p2pnode.errors import ExpertFailedError, SchemaError, UnknownExpertError
from p2pnode.experts.backend import ExpertBackend, all_finite
from p2pnode.experts.failures import failures
from p2pnode.models.cache import KeyValueCache, cache_bytes
from p2pnode.models.transformer import DecoderBlock


def bytes_of_caches(chain: Sequence[ExpertBackend], rows: int, length: int) -> int:
    """Return what the caches of a session will hold.

    Raises:
        SchemaError: one of the experts is no block of a language model.
    """
    return sum(cache_bytes(block.config, rows, length) for block in _blocks(chain))


class Caches:
    """The caches of one session, one for each of its blocks.

    Raises:
        ExpertFailedError: the device has no room for them.
    """

    def __init__(self, chain: Sequence[ExpertBackend], rows: int, length: int) -> None:
        self._blocks = _blocks(chain)
        with failures(chain, "opening a session"):
            self._caches = [
                KeyValueCache(block.config, rows, length, backend.device)
                for block, backend in zip(self._blocks, chain, strict=True)
            ]

    def step(
        self,
        chain: Sequence[ExpertBackend],
        *,
        hidden: torch.Tensor,
        position: int,
        order: Sequence[int] | None,
    ) -> list[torch.Tensor]:
        """Run the next positions through the blocks.

        Args:
            chain: the session's blocks, as they are hosted now.
            hidden: of shape (rows, positions, hidden_size).
            position: of the first of them.
            order: the row that each row goes on from, or None to go on from itself.

        Returns:
            What the last block gives, on the CPU.

        Raises:
            UnknownExpertError: a block was replaced by another one since the session began.
            ExpertFailedError: a block failed; what is behind `position` counts no more.
        """
        if any(a is not b for a, b in zip(_blocks(chain), self._blocks, strict=True)):
            raise UnknownExpertError(
                f"{chain[0].uid.name} or a block after it was built anew; open another session"
            )
        for expert in chain:
            expert.check_usable()
        with torch.no_grad(), failures(chain, "a step of a session"):
            for backend, block, cache in zip(chain, self._blocks, self._caches, strict=True):
                if order is not None:
                    cache.reorder(order, position)
                hidden = block(hidden.to(backend.device), cache, position)
            hidden = hidden.cpu()
        if not all_finite([hidden]):
            raise ExpertFailedError(f"{chain[-1].uid.name} has outputs that are not finite")
        return [hidden]


def _blocks(chain: Sequence[ExpertBackend]) -> list[DecoderBlock]:
    blocks = [each.module for each in chain if isinstance(each.module, DecoderBlock)]
    if len(blocks) != len(chain):
        raise SchemaError(
            f"{chain[0].uid.name} or an expert after it is no block of a language model, so it has"
            " no sessions"
        )
    return blocks
