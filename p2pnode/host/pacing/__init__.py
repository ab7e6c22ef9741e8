"""Holding to a rate: bytes of all streams together, small pieces before large ones."""

from p2pnode.host.pacing.core import Pace
from p2pnode.host.pacing.service import Bandwidth

__all__ = ["Bandwidth", "Pace"]
