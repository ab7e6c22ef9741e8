"""A scenario: a story, what can be changed in it, and what it is called."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from simulations.parameters import Parameter, Value, resolve

if TYPE_CHECKING:
    from simulations.simulation import Simulation

FIDELITIES: Final = ("light", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What `p2pnode simulate` runs.

    Args:
        name: what it is called, in lower case and with dashes.
        summary: what it shows, in one line.
        parameters: what can be changed, by name. Names with a dot, such as `churn.mean`, belong
            together. Those of `simulations.world.NETWORK` and its like are understood by `world`.
        run: the story; an async function of a `Simulation`.
        fidelities: those in which it runs, the default one first.
    """

    name: str
    summary: str
    run: "Callable[[Simulation], Awaitable[None]]"
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    fidelities: tuple[str, ...] = FIDELITIES

    def resolve(self, chosen: Mapping[str, Any]) -> dict[str, Value]:
        """Return the value of each parameter, given those that somebody chose.

        Raises:
            ParameterError: a name is unknown, or a value does not fit.
        """
        return resolve(self.parameters, chosen, scenario=self.name)
