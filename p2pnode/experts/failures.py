"""What goes wrong inside a module, as the errors that its callers are told."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from p2pnode.errors import ExpertFailedError

if TYPE_CHECKING:
    from p2pnode.experts.backend import ExpertBackend


class OutOfDeviceMemoryError(ExpertFailedError):
    """The device has no memory for so many rows at once; fewer may fit."""


@contextlib.contextmanager
def failures(chain: Sequence["ExpertBackend"], what: str) -> Iterator[None]:
    """Turn whatever a module raises into an `ExpertFailedError`.

    Raises:
        OutOfDeviceMemoryError: the device has no memory left.
        ExpertFailedError: anything else went wrong.
    """
    try:
        yield
    except ExpertFailedError:
        raise
    except Exception as error:
        kind = OutOfDeviceMemoryError if _is_lack_of_memory(error) else ExpertFailedError
        raise kind(f"{named(chain)} failed in {what}: {type(error).__name__}: {error}") from error


def _is_lack_of_memory(error: Exception) -> bool:
    # On CUDA it has a class of its own; torch's allocator of main memory says it in words.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("can't allocate memory", "not enough memory"))
    )


def named(chain: Sequence["ExpertBackend"]) -> str:
    """Return what to call a chain in a message."""
    first, last = chain[0].uid.name, chain[-1].uid.name
    return first if len(chain) == 1 else f"{first} to {last}"
