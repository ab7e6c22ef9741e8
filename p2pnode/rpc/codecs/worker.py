"""Encoding and decoding beside the network: large tensors would hold its loop up."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import trio

from p2pnode.config import RpcSettings
from p2pnode.rpc.codecs.transform import decode, encode
from p2pnode.rpc.schema import TensorMeta
from p2pnode.rpc.staging import to_main_memory
from p2pnode.rpc.tensors import buffer_of

T = TypeVar("T")


class Transcoder:
    """Does what is little at once, and the rest in a few threads, one call's tensors in each.

    Cancelling waits until the thread is done, so that none outlives its call.
    """

    def __init__(self, settings: RpcSettings) -> None:
        self._inline_bytes = settings.codec_inline_bytes
        self._limiter = trio.CapacityLimiter(settings.codec_threads)

    async def encode(
        self, tensors: Sequence[torch.Tensor], metas: Sequence[TensorMeta]
    ) -> list[memoryview]:
        """Return what travels of each tensor; with the codec `none` that is its own memory.

        Raises:
            NonFiniteError: a tensor holds NaN or infinite values, which its codec cannot carry.
        """
        are_here = all(tensor.is_cpu for tensor in tensors)
        size = _coded_bytes(metas)
        if are_here and not size:
            return list(map(buffer_of, tensors))

        def work() -> list[memoryview]:
            pairs = zip(tensors, metas, strict=True)
            return list(map(buffer_of, to_main_memory([encode(*pair) for pair in pairs])))

        if are_here:
            return await self.do(work, size)
        # To fetch a tensor from another device is to wait for what computes it.
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def decode(
        self, received: Sequence[torch.Tensor], metas: Sequence[TensorMeta]
    ) -> list[torch.Tensor]:
        """Return the tensors of which `received` has travelled, in main memory.

        Raises:
            ProtocolError: what has travelled is malformed.
        """
        size = _coded_bytes(metas)
        if not size:
            return list(received)

        def work() -> list[torch.Tensor]:
            return [decode(each, meta) for each, meta in zip(received, metas, strict=True)]

        return await self.do(work, size)

    async def do(self, work: Callable[[], T], size: int) -> T:
        """Do something like it with tensors of `size` bytes in all, which are in main memory."""
        if size <= self._inline_bytes:
            return work()
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _coded_bytes(metas: Sequence[TensorMeta]) -> int:
    return sum(meta.nbytes for meta in metas if meta.codec != "none")
