"""The commands `pause` and `resume` of the control socket, and what `status` shows of them."""

from collections.abc import Mapping
from typing import Any

from p2pnode.daemon.control.service import Method
from p2pnode.daemon.owner.service import OwnerService
from p2pnode.errors import BadRequestError


class OwnerCommands:
    """What the owner says to a running node."""

    def __init__(self, owner: OwnerService) -> None:
        self._owner = owner

    def methods(self) -> dict[str, Method]:
        """Return the commands by name."""
        return {"pause": self._pause, "resume": self._resume}

    async def _pause(self, params: Mapping[str, Any]) -> Any:
        seconds = params.get("seconds")
        if seconds is not None and type(seconds) not in (int, float):
            raise BadRequestError("seconds must be a number")
        self._owner.pause(seconds)
        return describe_owner(self._owner)

    async def _resume(self, _params: Mapping[str, Any]) -> Any:
        self._owner.resume()
        return describe_owner(self._owner)


def describe_owner(owner: OwnerService) -> dict[str, Any]:
    """Describe whether the node runs, and why it does not."""
    decision = owner.decision
    return {
        "paused": decision.paused,
        "cause": decision.cause,
        "reason": decision.reason,
        "until": decision.until,
        "missing": owner.missing,
    }
