"""Who may call: verifies tokens once, and remembers the verdict for a while."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import NotAMemberError, WrongRunError
from p2pnode.security.tokens import Membership, Operation, is_open, verify_token
from p2pnode.wire.peer_id import PeerId

# A holder can append checks of its own to a token, on the time among others; they are looked at
# anew so often. One verification takes 0.15 ms.
RECHECK_INTERVAL: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Grant:
    token: bytes
    until: float


class Authority:
    """Decides for the runs this node takes part in whether a peer may do an operation.

    A verdict holds for the peer on all its connections, since its identity is proven on each.

    Args:
        memberships: this node's own, by any key; read at each decision, so they may change.
        cache_size: how many verdicts are remembered; the least recently used ones go first.
    """

    def __init__(self, memberships: Mapping[str, Membership], cache_size: int) -> None:
        self._memberships = memberships
        self._cache_size = cache_size
        self._grants: OrderedDict[tuple[PeerId, str, Operation], _Grant] = OrderedDict()

    def authorise(
        self,
        peer_id: PeerId,
        run_id: str,
        token: bytes | None,
        operation: Operation,
        now: float,
    ) -> None:
        """Return if the peer may do `operation` in the run.

        Args:
            peer_id: the peer, as Noise proved.
            run_id: the run whose experts it asks for.
            token: what it sent with this call; None makes its earlier one count.
            operation: `train` for tensor calls, `host` to serve experts.
            now: wall-clock seconds.

        Raises:
            WrongRunError: this node takes no part in the run, or the token is of another.
            NotAMemberError: no token was shown, or it is not valid; the subclasses say why.
        """
        if not any(run_id == each.run_id for each in self._memberships.values()):
            raise WrongRunError(
                f"this host takes no part in the run {run_id[:64]}; use an invite to the run of"
                " its experts"
            )
        if is_open(run_id):
            return
        key = (peer_id, run_id, operation)
        grant = self._grants.get(key)
        if grant is not None and now < grant.until and token in {None, grant.token}:
            self._grants.move_to_end(key)
            return
        if token is None and grant is not None:
            token = grant.token
        if token is None:
            raise NotAMemberError(
                "the run takes members only; ask its owner for an invite and join with it"
            )
        expires_at = verify_token(token, run_id, peer_id, operation, now)
        self._grants[key] = _Grant(token, min(expires_at, now + RECHECK_INTERVAL))
        self._grants.move_to_end(key)
        while len(self._grants) > self._cache_size:
            self._grants.popitem(last=False)
