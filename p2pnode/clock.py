"""Wall-clock time, in one place.

Durations and timeouts use `trio.current_time`. What must mean the same on two machines (record
expiries, token lifetimes, sequence numbers) uses `wall_time`, which a simulation binds to trio's
virtual clock, so that expiries pass in virtual time too.
"""

import time

import trio

_virtual_epoch: trio.lowlevel.RunVar[float | None] = trio.lowlevel.RunVar("virtual_epoch", None)


def wall_time() -> float:
    """Return seconds since the Unix epoch, virtual inside a simulation."""
    try:
        epoch = _virtual_epoch.get()
    except RuntimeError:  # called outside trio: the command line, a script
        epoch = None
    return time.time() if epoch is None else epoch + trio.current_time()


def bind_wall_time_to_trio(epoch: float) -> None:
    """Make `wall_time` count from `epoch` by trio's clock, for the current `trio.run` only."""
    _virtual_epoch.set(epoch - trio.current_time())
