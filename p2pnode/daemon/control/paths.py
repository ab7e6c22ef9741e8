"""Names of Unix sockets that are short enough for the kernel."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Name `path` in few bytes: a Unix socket's address holds about 100.

    Linux names an open directory under `/proc/self/fd`, which keeps data directories free to be
    as deep as they like; elsewhere the plain path has to do.
    """
    if not Path("/proc/self/fd").is_dir():
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
