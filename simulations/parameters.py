"""What can be changed in a scenario: typed, bounded, documented, with defaults and units.

Values come as Python objects (from a scenario or a TOML file) or as texts (from the command line);
both are checked in the same way. The type of a parameter is that of its default.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from simulations.errors import ParameterError, suggest

Value = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

_TRUTHS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NOUNS: Final = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a scenario.

    Args:
        default: its value when nobody chooses one; its type is the parameter's type. A tuple takes
            several values (`10,20,30` on the command line), and must not be empty.
        help: what it does, in one line.
        unit: of a number, such as `s`, `ms`, `%`.
        minimum: the least it may be, if anything.
        maximum: the most it may be, if anything.
        choices: what a text may be, if not anything.
    """

    default: Value
    help: str
    unit: str = ""
    minimum: float = -math.inf
    maximum: float = math.inf
    choices: tuple[str, ...] = ()

    @property
    def kind(self) -> type:
        """The type of one value."""
        return type(self.default[0] if isinstance(self.default, tuple) else self.default)

    @property
    def bounds(self) -> str:
        """What it may be, for people: `0 to 1`, `at least 1`, `a or b`; empty when anything."""
        if self.choices:
            return " or ".join(self.choices)
        if self.minimum > -math.inf and self.maximum < math.inf:
            return f"{self.minimum:g} to {self.maximum:g}"
        if self.minimum > -math.inf:
            return f"at least {self.minimum:g}"
        return f"at most {self.maximum:g}" if self.maximum < math.inf else ""

    def check(self, name: str, value: Any) -> Value:
        """Return `value` as this parameter's type.

        Args:
            name: the parameter's, for the error.
            value: an object, or the text of one.

        Raises:
            ParameterError: it does not fit.
        """
        if not isinstance(self.default, tuple):
            one: Value = self._check_one(name, value)
            return one
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            parts = [parts]
        if not parts:
            raise ParameterError(f"{name} takes values such as 1,2,3, not {value!r}")
        return tuple(self._check_one(name, part) for part in parts)

    def _check_one(self, name: str, value: Any) -> Any:
        found = self._convert(value)
        number = isinstance(found, int | float) and not isinstance(found, bool)
        fits = found is not None and (not self.choices or found in self.choices)
        if number:
            fits = self.minimum <= found <= self.maximum  # false for NaN, too
        if not fits:
            unit = f" of {self.unit}" if self.unit and self.kind is not str else ""
            bounds = f", {self.bounds}" if self.bounds else ""
            hint = suggest(str(value), self.choices)
            raise ParameterError(
                f"{name} takes {_NOUNS[self.kind]}{unit}{bounds}, not {value!r}{hint}"
            )
        return found

    def _convert(self, value: Any) -> Any:
        """Return the value as this parameter's kind, or None where it is none."""
        text = value.strip() if isinstance(value, str) else None
        if self.kind is bool:
            return value if isinstance(value, bool) else _TRUTHS.get((text or "").lower())
        if self.kind is str:
            return value if isinstance(value, str) else None
        if isinstance(value, bool):
            return None
        try:
            if self.kind is int:
                whole = int((text or "").replace("_", "")) if text is not None else value
                return int(whole) if whole == int(whole) else None
            number = float(text if text is not None else value)
        except (TypeError, ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None


def resolve(
    parameters: Mapping[str, Parameter], chosen: Mapping[str, Any], *, scenario: str
) -> dict[str, Value]:
    """Return the value of every parameter, in the order the scenario declares them.

    Args:
        parameters: what the scenario declares.
        chosen: objects or texts, by name.
        scenario: its name, for errors.

    Raises:
        ParameterError: a name is unknown, or a value does not fit.
    """
    for name in chosen:
        if name not in parameters:
            raise ParameterError(
                f"the scenario {scenario} has no parameter {name!r}{suggest(name, parameters)}; "
                f"`p2pnode simulate --list {scenario}` shows those it has"
            )
    return {
        name: parameter.check(name, chosen.get(name, parameter.default))
        for name, parameter in parameters.items()
    }


def as_text(value: Value | Sequence[Any]) -> str:
    """Write a value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(as_text(each) for each in value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
