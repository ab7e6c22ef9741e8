"""What can be wrong with a scenario before it runs."""

import difflib
from collections.abc import Iterable

from p2pnode.errors import ConfigError, LocalError


class ScenarioError(LocalError):
    """A scenario does not exist, or its file cannot be read."""


class ParameterError(ConfigError):
    """A scenario has no such parameter, or the value does not fit it."""


class SimulationFailedError(LocalError):
    """A run could not come to a result."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean …?)` when one of `known` is spelt like `name`."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
