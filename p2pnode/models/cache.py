"""Keys and values of the positions a block has seen, so that each is computed once."""

from collections.abc import Sequence

import torch

from p2pnode.models.config import ModelConfig
from p2pnode.rpc.schema import ITEM_BYTES
from p2pnode.rpc.tensors import dtype_of


def cache_bytes(config: ModelConfig, rows: int, length: int) -> int:
    """Return the size of one block's cache in bytes."""
    elements = 2 * rows * config.kv_heads * length * config.head_size
    return elements * ITEM_BYTES[config.dtype]


class KeyValueCache:
    """The cache of one block: room for `length` positions of `rows` sequences.

    All of it is allocated at once, so that a session that was accepted never runs out of memory in
    its middle; an operating system backs it with memory as it fills.
    """

    def __init__(
        self, config: ModelConfig, rows: int, length: int, device: torch.device | str = "cpu"
    ) -> None:
        shape = (rows, config.kv_heads, length, config.head_size)
        self._keys = torch.empty(shape, dtype=dtype_of(config.dtype), device=device)
        self._values = torch.empty_like(self._keys)

    def write(
        self, position: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values from `position` on, and return all up to their end.

        What was kept behind `position` before counts no more: so a session goes back.

        Args:
            position: of the first of them.
            keys: of shape (rows, kv_heads, positions, head_size).
            values: of the same shape.
        """
        end = position + keys.shape[2]
        self._keys[:, :, position:end] = keys
        self._values[:, :, position:end] = values
        return self._keys[:, :, :end], self._values[:, :, :end]

    def reorder(self, order: Sequence[int], length: int) -> None:
        """Let each row i go on from what row `order[i]` has seen, up to `length` positions."""
        index = torch.tensor(order, device=self._keys.device)
        for tensor in (self._keys, self._values):
            tensor[:, :, :length] = tensor[index, :, :length]
