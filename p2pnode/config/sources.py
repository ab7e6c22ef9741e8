"""Where settings are written: a TOML file, environment variables, and text on a command line."""

import dataclasses
import logging
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from p2pnode.config.checks import check_known, suggestion
from p2pnode.errors import ConfigError

Texts = Mapping[str, Mapping[str, str]]  # by section and field

_PREFIX: Final = "P2PNODE_"
_NO_SETTINGS: Final = frozenset(
    {
        "P2PNODE_DATA_DIR",  # where the command line looks for a node, see daemon/data_dir.py
        "P2PNODE_INTEROP_P2PD",  # a program for tests, see docs/interop.md
    }
)

_log = logging.getLogger(__name__)


def read_file(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not valid TOML: {error}") from error


def from_environ(sections: Mapping[str, Any], environ: Mapping[str, str]) -> Texts:
    """Return the settings among the environment variables.

    Others that begin like them are logged as a warning. They are no error, since who runs a node
    may not choose them: Kubernetes, for one, sets P2PNODE_SERVICE_HOST and P2PNODE_PORT beside
    any service of that name.

    Args:
        sections: the dataclass of each section.
        environ: the variables.
    """
    known = {
        f"{_PREFIX}{section}_{each.name}".upper(): (section, each.name)
        for section, kind in sections.items()
        for each in dataclasses.fields(kind)
    }
    found: dict[str, dict[str, str]] = {}
    for variable, text in environ.items():
        if variable in known:
            section, name = known[variable]
            found.setdefault(section, {})[name] = text
        elif variable.startswith(_PREFIX) and variable not in _NO_SETTINGS:
            _log.warning("%s is no setting and is ignored%s", variable, suggestion(variable, known))
    return found


def from_texts(sections: Mapping[str, Any], texts: Texts) -> dict[str, dict[str, Any]]:
    """Read each text as a value of its field's type.

    What cannot be read so is left as it is, and refused by name where its section is built.

    Args:
        sections: the dataclass of each section.
        texts: values as they were written.

    Raises:
        ConfigError: a section is unknown.
    """
    values: dict[str, dict[str, Any]] = {}
    for section, table in texts.items():
        check_known(section, sections, "section")
        kinds = {each.name: each.type for each in dataclasses.fields(sections[section])}
        values[section] = {
            name: _from_text(text, kinds.get(name, str)) for name, text in table.items()
        }
    return values


def _from_text(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool and text.lower() in {"1", "true", "yes", "0", "false", "no"}:
        return text.lower() in {"1", "true", "yes"}
    for number in (int, float):
        if kind is number:
            try:
                return number(text)
            except ValueError:
                return text
    return text
