"""Which backward calls were applied, and what they were answered: pure, and bounded.

A caller that lost the reply repeats its call with the same id. Here it is found again, so that
the optimiser steps at most once for it. For each expert the last so many ids are remembered; the
answers share a number of bytes, and the oldest answers go first. A call whose answer is gone is
computed again, and steps only those experts of its span that it has not stepped; an id that is
itself gone is taken for a new call.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final

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

    def knows(self, uids: Iterable[Uid], key: bytes) -> bool:
        """Tell whether a call was applied to any of `uids`."""
        return bool(self.applied(uids, key))

    def find(self, uids: Sequence[Uid], key: bytes) -> Any:
        """Return the kept answer of a call that was applied to all of `uids`, or None.

        An answer is the gradient of what the first expert took, whatever the span it came from.
        """
        found = self._answers.get((uids[0], key))
        if found is None or len(self.applied(uids, key)) < len(uids):
            return None
        return found[0]

    def applied(self, uids: Iterable[Uid], key: bytes) -> list[Uid]:
        """Return those of `uids` that a call was applied to."""
        return [uid for uid in uids if key in self._applied.get(uid, ())]

    def record(self, uids: Sequence[Uid], key: bytes, answer: Any, size: int) -> None:
        """Remember that a call was applied to all of `uids`, and its answer of `size` bytes."""
        uid = uids[0]
        for each in uids:
            self._remember(each, key)
        if size > self._max_bytes:
            return  # keeping it would push out all others, and then itself
        self._drop_answer(uid, key)  # of a shorter span that the call went through before
        self._answers[uid, key] = (answer, size)
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, (_, freed) = self._answers.popitem(last=False)
            self.bytes -= freed

    def remember(self, uid: Uid, key: bytes) -> None:
        """Remember that a call was applied whose answer is not kept here."""
        self._remember(uid, key)

    def keys(self, uid: Uid) -> list[bytes]:
        """Return the remembered calls of an expert, the oldest first."""
        return list(self._applied.get(uid, ()))

    def replace(self, uid: Uid, keys: Iterable[bytes]) -> None:
        """Remember the calls that an expert's new state contains, and no others.

        The answers of those that were remembered already are kept.
        """
        earlier = self._applied.pop(uid, OrderedDict())
        for key in keys:
            self._remember(uid, key)
        for key in earlier:
            if key not in self._applied.get(uid, ()):
                self._drop_answer(uid, key)

    def _remember(self, uid: Uid, key: bytes) -> None:
        applied = self._applied.setdefault(uid, OrderedDict())
        applied[key] = None
        while len(applied) > self._max_calls:
            forgotten, _ = applied.popitem(last=False)
            self._drop_answer(uid, forgotten)

    def _drop_answer(self, uid: Uid, key: bytes) -> None:
        _, freed = self._answers.pop((uid, key), (None, 0))
        self.bytes -= freed
