"""Runs the command line so that it ends with the process that started it, even if that is killed.

`python -m cli.demo.leash PARENT COMMAND…` asks the kernel for a SIGTERM at the death of the
parent, and becomes `python -m cli.main COMMAND…`. Only Linux can do that; elsewhere the parent's
own cleaning up has to do.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def main() -> None:
    """Tie this process to its parent, and become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl cannot set the parent-death signal")
        if os.getppid() != int(parent):  # it died before we asked
            sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "cli.main", *command])  # noqa: S606  # ourselves


if __name__ == "__main__":
    main()
