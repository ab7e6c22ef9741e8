"""How many files, and so connections, the system lets this process open."""

import resource
from typing import Final

WANTED: Final = 65_536
RESERVE: Final = 128  # listeners, libraries, checkpoints being written, and the like


def raise_open_files() -> int:
    """Raise the limit on open files as far as is allowed and of use; returns what it is then.

    Most systems start a process with 1024, for the sake of programs that use `select`, and allow it
    far more. Below the limits of the config, connections would end in errors instead of refusals.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
