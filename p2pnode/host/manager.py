"""Which peers this node would rather keep."""

from p2pnode.wire.peer_id import PeerId


class ProtectedPeers:
    """The peers whose connections are not trimmed, each with the reasons why."""

    def __init__(self) -> None:
        self._tags: dict[PeerId, set[str]] = {}

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._tags

    def protect(self, peer_id: PeerId, tag: str) -> None:
        """Note one more reason to keep a peer; giving it twice changes nothing."""
        self._tags.setdefault(peer_id, set()).add(tag)

    def unprotect(self, peer_id: PeerId, tag: str) -> bool:
        """Take a reason back; returns whether others remain."""
        tags = self._tags.get(peer_id, set())
        tags.discard(tag)
        if not tags:
            self._tags.pop(peer_id, None)
        return bool(tags)
