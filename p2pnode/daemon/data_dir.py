"""One directory holds a node's state: its identity, its memberships, its checkpoints.

```
identity.key     the node's private key, a libp2p PrivateKey protobuf, mode 0600
lock             held by the running daemon
control.sock     where the command line reaches the running daemon
peers.json       addresses of peers met before
dht-table.json   the routing table of the DHT
reputation.json  what peers were found to have done
runs/NAME.json   membership of a run: its id and our token, mode 0600
runs/NAME.key    the key of a run we own, mode 0600
experts/         checkpoints
weights/         states that are given to other hosts, or fetched from them
```

Secrets are written under a temporary name and moved into place, so a crash leaves the old file or
the new one; a file that cannot be read is reported and never overwritten.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from p2pnode.errors import (
    DataDirInUseError,
    DeadlineExceededError,
    InvalidKeyError,
    KeyFileError,
    LocalError,
)
from p2pnode.wire.keys import PrivateKey

MAX_SECRET_BYTES: Final = 64 * 1024  # the largest secret file, a membership, needs under 4 KiB
_LOCK_POLL: Final = 0.05


def default_data_dir() -> Path:
    """Return `$P2PNODE_DATA_DIR`, or `p2pnode` under the XDG data home."""
    if chosen := os.environ.get("P2PNODE_DATA_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "p2pnode"


class DataDir:
    """The paths of one node's state, and the rules by which its secret files are kept.

    Raises:
        LocalError: the path starts in a home directory that cannot be found.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.path = path.expanduser().absolute()
        except RuntimeError as error:  # the user has no entry in the password file, nor $HOME
            raise LocalError(f"cannot find the home of {path}; choose a --data-dir") from error

    @property
    def identity_file(self) -> Path:
        """Where the node's private key lives."""
        return self.path / "identity.key"

    @property
    def control_socket(self) -> Path:
        """Where the running daemon listens for commands."""
        return self.path / "control.sock"

    @property
    def peers_file(self) -> Path:
        """Where addresses of known peers are kept."""
        return self.path / "peers.json"

    @property
    def table_file(self) -> Path:
        """Where the routing table of the DHT is kept."""
        return self.path / "dht-table.json"

    @property
    def reputation_file(self) -> Path:
        """Where it is kept what peers were found to have done."""
        return self.path / "reputation.json"

    @property
    def runs(self) -> Path:
        """Where memberships and run keys live."""
        return self.path / "runs"

    @property
    def experts(self) -> Path:
        """Where checkpoints live."""
        return self.path / "experts"

    @property
    def weights(self) -> Path:
        """Where states lie that are given to other hosts, or fetched from them."""
        return self.path / "weights"

    def create(self) -> None:
        """Create the directory for this user alone.

        Raises:
            LocalError: it cannot be created.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LocalError(
                f"cannot create the data directory {self.path} ({error.strerror}); "
                "choose another with --data-dir"
            ) from error

    def load_or_create_identity(self) -> PrivateKey:
        """Return the node's key, made on first use.

        Raises:
            KeyFileError: the file is corrupt, unreadable, or readable by other users.
        """
        self.create()
        with contextlib.suppress(FileExistsError):
            if not self.identity_file.exists():
                write_secret(self.identity_file, PrivateKey.generate().to_bytes(), replace=False)
        try:
            return PrivateKey.from_bytes(read_secret(self.identity_file))
        except InvalidKeyError as error:
            raise KeyFileError(
                f"the identity file {self.identity_file} is corrupt ({error}); restore it from a "
                "backup, or move it away to start with a new identity"
            ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one daemon.

        Raises:
            DataDirInUseError: another daemon holds it.
            LocalError: its lock file cannot be opened.
        """
        self.create()
        file = self.path / "lock"
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalError(f"cannot open {file}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "?"
                raise DataDirInUseError(
                    f"a daemon (process {holder}) already runs on {self.path}; stop it with "
                    "`p2pnode stop`, or give this one another --data-dir"
                ) from None
            try:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
            except OSError as error:
                raise self._not_writable(error) from error
            yield
        finally:
            os.close(descriptor)

    def _not_writable(self, error: OSError) -> LocalError:
        return LocalError(
            f"cannot write in the data directory {self.path} ({error.strerror}); make room or "
            "give this user access, or choose another with --data-dir"
        )

    def wait_unlocked(self, timeout: float) -> None:
        """Block until no daemon holds the directory.

        Raises:
            DeadlineExceededError: one still does after `timeout` seconds.
        """
        until = time.monotonic() + timeout
        while True:
            try:
                with self.lock():
                    return
            except DataDirInUseError as error:
                if time.monotonic() > until:
                    raise DeadlineExceededError(
                        f"the daemon on {self.path} is still running after {timeout:g} s"
                    ) from error
            time.sleep(_LOCK_POLL)


def read_secret(path: Path) -> bytes:
    """Read a secret file.

    Raises:
        KeyFileError: it cannot be read, is too large, or other users can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from error
    if mode & 0o077:
        raise KeyFileError(
            f"{path} can be read by other users (mode {mode:04o}); protect it with "
            f"`chmod 600 {path}`"
        )
    if len(data) > MAX_SECRET_BYTES:
        raise KeyFileError(f"{path} is too large to be what it should be")
    return data


def write_secret(path: Path, data: bytes, *, replace: bool) -> None:
    """Write a secret file with mode 0600, whole or not at all.

    Raises:
        FileExistsError: the file exists and `replace` is false.
        LocalError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise LocalError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
