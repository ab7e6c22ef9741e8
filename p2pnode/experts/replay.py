"""Which backward calls were applied, and what they were answered: pure, and bounded.

A caller that lost the reply repeats its call with the same id. Here it is found again, so that
the optimiser steps at most once for it. For each expert the last so many ids are remembered; the
answers share a number of bytes, and the oldest answers go first. An id whose answer is gone is an
`AlreadyAppliedError`; an id that is itself gone is taken for a new call.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from p2pnode.errors import AlreadyAppliedError
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

KEY_BYTES: Final = 16


def replay_key(caller: PeerId, call_id: bytes) -> bytes:
    """Return the key of a call; no peer can name another's."""
    return hashlib.blake2b(bytes(caller) + call_id, digest_size=KEY_BYTES).digest()


class ReplayLog:
    """The applied calls of all experts of a daemon.

    Args:
        max_calls: ids remembered for each expert.
        max_bytes: of all answers together.
    """

    def __init__(self, *, max_calls: int, max_bytes: int) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._applied: dict[Uid, OrderedDict[bytes, None]] = {}
        self._answers: OrderedDict[tuple[Uid, bytes], tuple[Any, int]] = OrderedDict()
        self.bytes = 0

    def find(self, uid: Uid, key: bytes) -> Any:
        """Return the stored answer of a call, or None if it was not applied.

        Raises:
            AlreadyAppliedError: it was applied, but its answer is no longer kept.
        """
        if key not in self._applied.get(uid, ()):
            return None
        found = self._answers.get((uid, key))
        if found is None:
            raise AlreadyAppliedError(
                f"this backward call of {uid.name} was applied already, and its answer is no"
                " longer kept; go on with the next step"
            )
        return found[0]

    def record(self, uid: Uid, key: bytes, answer: Any, size: int) -> None:
        """Remember that a call was applied, and its answer of `size` bytes."""
        self._remember(uid, key)
        if size > self._max_bytes:
            return  # keeping it would push out all others, and then itself
        self._answers[uid, key] = (answer, size)
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, (_, freed) = self._answers.popitem(last=False)
            self.bytes -= freed

    def keys(self, uid: Uid) -> list[bytes]:
        """Return the remembered calls of an expert, the oldest first."""
        return list(self._applied.get(uid, ()))

    def restore(self, uid: Uid, keys: Iterable[bytes]) -> None:
        """Remember calls that a checkpoint contains; their answers are not kept."""
        for key in keys:
            self._remember(uid, key)

    def _remember(self, uid: Uid, key: bytes) -> None:
        applied = self._applied.setdefault(uid, OrderedDict())
        applied[key] = None
        while len(applied) > self._max_calls:
            forgotten, _ = applied.popitem(last=False)
            _, freed = self._answers.pop((uid, forgotten), (None, 0))
            self.bytes -= freed
