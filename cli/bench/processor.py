"""How long processes have computed: less of it is chance than of the time on the clock."""

import contextlib

import psutil


def processor_seconds(process_id: int | None = None) -> float:
    """Return what a process, by default this one, and those it has started have computed so far."""
    own = psutil.Process(process_id)
    total = 0.0
    for each in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total
