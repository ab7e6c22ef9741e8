"""What sessions do in the device thread: their caches, and steps through their blocks.

Steps of several sessions that run through the same blocks are computed as one. For a few tokens a
block's time goes into reading its weights, and those are read once for all; the attention alone is
computed for each session, over its own cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from p2pnode.errors import CallError, ExpertFailedError, SchemaError, UnknownExpertError
from p2pnode.experts.backend import ExpertBackend
from p2pnode.experts.batches import Outcome
from p2pnode.experts.failures import failures
from p2pnode.experts.states import all_finite
from p2pnode.models.cache import KeyValueCache, cache_bytes
from p2pnode.models.transformer import DecoderBlock, Stretch


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

    def begin(self, chain: Sequence[ExpertBackend], step: "CachedStep") -> None:
        """Make the caches ready for a step: let its rows go on from those it names.

        Raises:
            UnknownExpertError: a block was replaced by another one since the session began.
            ExpertFailedError: it failed.
        """
        if any(a is not b for a, b in zip(_blocks(chain), self._blocks, strict=True)):
            raise UnknownExpertError(
                f"{chain[0].uid.name} or a block after it was built anew; open another session"
            )
        for expert in chain:
            expert.check_usable()
        if step.order is not None:
            with failures(chain, "a step of a session"):
                for cache in self._caches:
                    cache.reorder(step.order, step.position)

    def of(self, number: int) -> KeyValueCache:
        """Return the cache of a block, counted from the session's first."""
        return self._caches[number]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedStep:
    """The next positions of one session.

    Attributes:
        caches: the session's.
        hidden: of shape (rows, positions, hidden_size).
        position: of the first of them.
        order: the row that each row goes on from, or None to go on from itself.
    """

    caches: Caches
    hidden: torch.Tensor
    position: int
    order: tuple[int, ...] | None


def compute_steps(chain: Sequence[ExpertBackend], steps: Sequence[CachedStep]) -> list[Outcome]:
    """Run steps of several sessions through their blocks at once.

    What fails together is computed again step by step, so that no session fails another's.

    Args:
        chain: the blocks of all of the sessions, as they are hosted now.
        steps: each of another session.

    Returns:
        For each what the last block gives, on the CPU, or why it failed: then what is behind its
        position counts no more.
    """
    outcomes: dict[int, Outcome] = {}
    for number, step in enumerate(steps):
        try:
            step.caches.begin(chain, step)
        except CallError as error:
            outcomes[number] = type(error)(str(error))  # without the frames, which hold tensors
    ready = [number for number in range(len(steps)) if number not in outcomes]
    outcomes |= zip(ready, _computed(chain, [steps[number] for number in ready]), strict=True)
    return [outcomes[number] for number in range(len(steps))]


def _computed(chain: Sequence[ExpertBackend], steps: Sequence[CachedStep]) -> list[Outcome]:
    reason = ""
    try:
        with torch.no_grad(), failures(chain, "a step of a session"):
            answers = _alone(chain, *steps) if len(steps) == 1 else _together(chain, steps)
    except ExpertFailedError as error:
        reason = str(error)
    if not reason:
        return [_checked(chain, answer) for answer in answers]
    if len(steps) == 1:
        return [ExpertFailedError(reason)]
    return [outcome for step in steps for outcome in _computed(chain, [step])]


def _alone(chain: Sequence[ExpertBackend], step: CachedStep) -> list[torch.Tensor]:
    hidden = step.hidden
    for number, (backend, block) in enumerate(zip(chain, _blocks(chain), strict=True)):
        hidden = block(hidden.to(backend.device), step.caches.of(number), step.position)
    return [hidden.cpu()]


def _together(chain: Sequence[ExpertBackend], steps: Sequence[CachedStep]) -> list[torch.Tensor]:
    if not steps:
        return []
    hidden = torch.cat([step.hidden.flatten(0, 1) for step in steps])
    for number, (backend, block) in enumerate(zip(chain, _blocks(chain), strict=True)):
        stretches = [
            Stretch(
                rows=step.hidden.shape[0],
                length=step.hidden.shape[1],
                position=step.position,
                cache=step.caches.of(number),
            )
            for step in steps
        ]
        hidden = block.forward_stretches(hidden.to(backend.device), stretches)
    sizes = [step.hidden.shape[0] * step.hidden.shape[1] for step in steps]
    parts = torch.split(hidden.cpu(), sizes)
    # Own memory for each: an answer that waits for its caller must not keep those of all.
    return [part.clone().view(step.hidden.shape) for part, step in zip(parts, steps, strict=True)]


def _checked(chain: Sequence[ExpertBackend], answer: torch.Tensor) -> Outcome:
    if not all_finite([answer]):
        return ExpertFailedError(f"{chain[-1].uid.name} has outputs that are not finite")
    return [answer]


def _blocks(chain: Sequence[ExpertBackend]) -> list[DecoderBlock]:
    blocks = [each.module for each in chain if isinstance(each.module, DecoderBlock)]
    if len(blocks) != len(chain):
        raise SchemaError(
            f"{chain[0].uid.name} or an expert after it is no block of a language model, so it has"
            " no sessions"
        )
    return blocks
