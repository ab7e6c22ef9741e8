"""What the model reads: English text as bytes, a part of it held out.

Python ships some: `pydoc_data.topics`, the language reference behind `help()`, 465 kB in Python
3.11. Its topics repeat one another, so paragraphs that were seen before are left out; 377 kB stay.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from p2pnode.errors import ConfigError, LocalError

_HELD_OUT: Final = 10  # the last tenth of a text is never trained on
_EVALUATED: Final = 32  # windows of the held-out part that are evaluated, evenly spread


@dataclass(frozen=True, slots=True)
class Text:
    """A text in two parts, each int64 of shape (bytes,)."""

    train: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def split(cls, data: bytes, context: int) -> "Text":
        """Hold out the end of a text.

        Raises:
            ConfigError: it is too short for windows of `context` bytes.
        """
        if len(data) // _HELD_OUT <= context:
            raise ConfigError(
                f"a text of {len(data)} bytes is too short for a context of {context}; take one of"
                f" {_HELD_OUT * (context + 1)} bytes or more"
            )
        tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
        cut = len(tokens) - len(tokens) // _HELD_OUT
        return cls(tokens[:cut], tokens[cut:])

    def windows(self, context: int) -> torch.Tensor:
        """Return windows of the held-out part, always the same: (windows, context + 1)."""
        last = len(self.held_out) - context - 1
        starts = torch.linspace(0, last, min(_EVALUATED, last + 1)).long()
        return torch.stack([self.held_out[start : start + context + 1] for start in starts])


class Batches:
    """An endless row of windows from the training part; the seed decides all of it."""

    def __init__(self, text: Text, rows: int, context: int, seed: int) -> None:
        self._tokens = text.train
        self._rows = rows
        self._context = context
        self._random = torch.Generator().manual_seed(seed)

    def draw(self) -> torch.Tensor:
        """Return the next batch, (rows, context + 1)."""
        last = len(self._tokens) - self._context - 1
        starts = torch.randint(last + 1, (self._rows,), generator=self._random)
        return torch.stack([self._tokens[start : start + self._context + 1] for start in starts])


def read(path: Path | None) -> bytes:
    """Read a text, or Python's own documentation.

    Raises:
        LocalError: it is not there, or cannot be read.
    """
    if path is None:
        return _documentation()
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalError(f"cannot read the text {path}: {error.strerror}") from error


def _documentation() -> bytes:
    try:
        from pydoc_data.topics import topics  # noqa: PLC0415  # some systems ship Python without
    except ModuleNotFoundError as error:
        raise LocalError(
            "this Python comes without its documentation (pydoc_data); name a text with --text"
        ) from error
    paragraphs = dict.fromkeys(
        paragraph.strip("\n")
        for name in sorted(topics)
        for paragraph in re.split(r"\n[ \t]*\n", topics[name])
        if paragraph.strip()
    )
    return "\n\n".join(paragraphs).encode()
