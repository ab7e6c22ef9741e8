"""Finding scenarios: those that ship, by name; others, by the path of a Python or TOML file.

A TOML file names the scenario it is made from and sets parameters of it:

    base = "dht-churn"               # a name, or the path of a file beside this one
    name = "sessions-of-minutes"     # by default the file's own name
    summary = "…"
    fidelity = "light"               # by default that of the base

    [parameters]
    nodes = 500
    "churn.median" = 600             # or a table [parameters.churn] with median = 600
"""

import importlib
import importlib.util
import pkgutil
import sys
import tomllib
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import simulations.scenarios
from simulations.errors import ParameterError, ScenarioError, suggest
from simulations.parameters import resolve
from simulations.scenario import Scenario

_MAX_DEPTH: Final = 8  # of TOML files that are based on one another
_KEYS: Final = ("base", "name", "summary", "fidelity", "parameters")


def names() -> list[str]:
    """List the names of the scenarios that ship, in order."""
    found = [each.name for each in pkgutil.iter_modules(simulations.scenarios.__path__)]
    return sorted(name.replace("_", "-") for name in found)


def find(reference: str) -> Scenario:
    """Return a scenario by its name, or by the path of its file.

    Raises:
        ScenarioError: there is none, or its file cannot be used.
        ParameterError: a TOML file sets a parameter that its base has not, or to a bad value.
    """
    return _find(reference, Path.cwd(), _MAX_DEPTH)


def _find(reference: str, beside: Path, depth: int) -> Scenario:
    if reference.endswith((".py", ".toml")) or "/" in reference:
        path = (beside / reference).resolve()
        if not path.is_file():
            raise ScenarioError(f"there is no scenario file {reference}")
        if path.suffix == ".toml":
            return _from_toml(path, depth)
        if path.suffix == ".py":
            return _from_python(path)
        raise ScenarioError(f"a scenario is a .py or a .toml file, which {reference} is not")
    known = names()
    if reference not in known:
        raise ScenarioError(
            f"there is no scenario {reference!r}{suggest(reference, known)}; `p2pnode simulate "
            "--list` shows those that ship, and a path such as ./mine.py runs one of your own"
        )
    module = f"simulations.scenarios.{reference.replace('-', '_')}"
    return _scenario_of(importlib.import_module(module), reference)


def _scenario_of(module: Any, where: str) -> Scenario:
    scenario = getattr(module, "SCENARIO", None)
    if not isinstance(scenario, Scenario):
        raise ScenarioError(f"{where} defines no SCENARIO = Scenario(…)")
    return scenario


def _from_python(path: Path) -> Scenario:
    spec = importlib.util.spec_from_file_location(f"p2pnode_scenario_{path.stem}", path)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses of it look for their module
    sys.path.insert(0, str(path.parent))  # what lies beside a script can be imported by it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(module.__name__, None)
        cause = f"{type(error).__name__}: {error}"
        raise ScenarioError(f"{path.name} fails{_line(error, path)}: {cause}") from error
    finally:
        sys.path.remove(str(path.parent))
    return _scenario_of(module, path.name)


def _line(error: Exception, path: Path) -> str:
    """Say in which line of a file an error was met, if it was in one."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [each.lineno for each in frames if each.filename == str(path)]
    return f" in line {lines[-1]}" if lines else ""


def _from_toml(path: Path, depth: int) -> Scenario:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path.name} cannot be read: {error}") from error
    for key in content:
        if key not in _KEYS:
            raise ScenarioError(f"{path.name}: there is no key {key!r}{suggest(key, _KEYS)}")
    texts = {key: content.get(key, "") for key in _KEYS[:-1]}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ScenarioError(f"{path.name}: {key} must be a text")
    if not texts["base"] or depth == 0:
        fault = "has no key base" if depth else "is based on too many others"
        raise ScenarioError(f"{path.name} {fault}; a scenario file names the one it is made from")
    base = _find(texts["base"], path.parent, depth - 1)
    chosen = _flatten(content.get("parameters", {}), path.name)
    values = resolve(base.parameters, chosen, scenario=base.name)
    return replace(
        base,
        name=texts["name"] or path.stem,
        summary=texts["summary"] or base.summary,
        parameters={
            name: replace(parameter, default=values[name])
            for name, parameter in base.parameters.items()
        },
        fidelities=_fidelities(base, texts["fidelity"], path.name),
    )


def _flatten(table: Any, where: str) -> dict[str, Any]:
    """Return `{"churn": {"mean": 1}}` as `{"churn.mean": 1}`."""
    if not isinstance(table, Mapping):
        raise ParameterError(f"{where}: parameters must be a table")
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{rest}": each for rest, each in _flatten(value, where).items()}
        else:
            flat[name] = value
    return flat


def _fidelities(base: Scenario, first: str, where: str) -> tuple[str, ...]:
    """Return the base's fidelities, `first` in front if it is given."""
    if not first:
        return base.fidelities
    if first not in base.fidelities:
        hint = suggest(first, base.fidelities)
        raise ScenarioError(f"{where}: {base.name} does not run in the fidelity {first!r}{hint}")
    return (first, *(each for each in base.fidelities if each != first))
