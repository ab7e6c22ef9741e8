"""What a command's parameters must be: they come from another process, as JSON has them."""

from collections.abc import Mapping
from typing import Any

from p2pnode.errors import BadRequestError


def text(params: Mapping[str, Any], name: str) -> str:
    """Return a parameter that is a text.

    Raises:
        BadRequestError: it is missing, or something else.
    """
    value = params.get(name)
    if not isinstance(value, str):
        raise BadRequestError(f"{name} must be a text")
    return value


def texts(params: Mapping[str, Any], name: str) -> list[str]:
    """Return a parameter that is a list of texts.

    Raises:
        BadRequestError: it is missing, or something else.
    """
    values = params.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadRequestError(f"{name} must be a list of texts")
    return values


def table(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a parameter that is a section of settings; an empty one where it is missing.

    Raises:
        BadRequestError: it is something else.
    """
    value = params.get(name, {})
    if not isinstance(value, dict):
        raise BadRequestError(f"{name} must be a table of settings")
    return value
