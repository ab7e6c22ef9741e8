"""What hosts and their tasks hold at one moment, to tell whether anything was left behind."""

import os
from collections import Counter
from dataclasses import dataclass

import trio

from p2pnode.host.budgets.scopes import Kind, Resource
from p2pnode.host.node import NetworkHost


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is held; two that are equal prove that nothing leaked in between.

    Attributes:
        tasks: how many run in the whole process, by the name of what they run.
        files: how many file descriptors are open, or 0 where the system does not tell.
        held: connections, streams, bytes unread and budgets in use, by host and by what it is.
    """

    tasks: Counter[str]
    files: int
    held: Counter[str]

    def growth_since(self, before: "Footprint") -> dict[str, int]:
        """Return what is more than it was, by name; empty when nothing leaked."""
        found: Counter[str] = (self.tasks - before.tasks) + (self.held - before.held)
        if self.files > before.files:
            found["open files"] = self.files - before.files
        return dict(found)


def footprint(*hosts: NetworkHost) -> Footprint:
    """Measure now."""
    held: Counter[str] = Counter()
    for number, host in enumerate(hosts):
        for what, amount in _held_by(host).items():
            held[f"host {number}: {what}"] += amount
    return Footprint(tasks=_tasks(), files=_open_files(), held=held)


def _tasks() -> Counter[str]:
    root = trio.lowlevel.current_root_task()
    found: Counter[str] = Counter()
    waiting = [root] if root is not None else []
    while waiting:
        task = waiting.pop()
        found[task.name] += 1
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # only how many there are
    except OSError:
        return 0


def _held_by(host: NetworkHost) -> Counter[str]:
    # What no public name shows is read here in one place, rather than shown to everybody.
    held: Counter[str] = Counter()
    info = host.info()
    held["handshakes"] = info.handshakes
    held["dials"] = info.dials
    for connection in host._connections:  # noqa: SLF001
        held["connections"] += 1
        held.update(connection._muxer.holdings)  # noqa: SLF001
    for kind in Kind:
        for scope in host._budgets.scopes.of(kind):  # noqa: SLF001
            for resource, used in zip(Resource, scope.used, strict=True):
                held[f"{kind} {resource.name}"] += used
    return held
