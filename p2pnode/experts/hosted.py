"""One expert as its host keeps it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from p2pnode.config import HostingSettings
from p2pnode.errors import SchemaError
from p2pnode.experts.backend import ExpertBackend
from p2pnode.experts.devices import Device
from p2pnode.experts.runtime import WaitedCall
from p2pnode.rpc.schema import ExpertInfo
from p2pnode.wire.uids import Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStatus:
    """What `p2pnode experts` shows of an expert."""

    uid: Uid
    layer: str
    steps: int  # optimiser steps, restored ones included
    rows: int  # trained on, restored ones included
    queued: int  # calls waiting
    saved_at: float | None  # wall-clock seconds of the last save by this process
    restored: bool
    device: str
    stopped: str  # why it is out of service; empty while it serves


@dataclass(slots=True, kw_only=True)
class Hosted:
    """An expert, and where it stands between the network, the device and the disk."""

    backend: ExpertBackend
    settings: HostingSettings  # it was built with
    device: Device
    info: ExpertInfo
    restored: bool
    saved_steps: int | None  # None when what is on the disk is not what is served
    saved_at: float | None = None
    leaving: bool = False  # no new calls: it is being removed
    removed: bool = False
    stopped: str = ""  # why it is out of service
    suspected: bool = False  # somebody looks after it
    failures: int = 0  # calls that failed in a row
    restarts: int = 0
    restarted_at: float = -math.inf
    pending: dict[bytes, WaitedCall] = field(default_factory=dict)  # backward calls not yet settled

    @property
    def uid(self) -> Uid:
        """The expert."""
        return self.backend.uid

    @property
    def changed(self) -> bool:
        """Whether it has learnt something that is not on the disk."""
        return self.saved_steps != self.backend.steps


def info_of(span: Sequence[Hosted]) -> ExpertInfo:
    """Describe experts that are called as one: what the first takes and the last gives.

    Raises:
        SchemaError: one does not take what the one before it gives.
    """
    if len(span) == 1:
        return span[0].info
    for before, after in itertools.pairwise(span):
        if after.info.keywords or before.info.outputs != after.info.inputs:
            raise SchemaError(
                f"{after.uid.name} does not take what {before.uid.name} gives; call them one by one"
            )
    return replace(span[0].info, outputs=span[-1].info.outputs)
