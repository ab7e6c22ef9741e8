"""Real daemons: processes started by the command a user types, for end-to-end tests."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from p2pnode.errors import DeadlineExceededError, P2PNodeError

COMMAND: Final = (sys.executable, "-m", "cli.main")
START_TIMEOUT: Final = 60.0  # importing torch on a busy machine takes most of it
STOP_TIMEOUT: Final = 30.0
LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"


def environment() -> dict[str, str]:
    """Return this process's environment without p2pnode's settings, one thread for each process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("P2PNODE_")}
    return kept | {"OMP_NUM_THREADS": "1"}


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(  # noqa: S603  # our own command
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
        check=False,
        env=environment(),
    )


def ask_command(*arguments: object) -> Any:
    """Run one command that must succeed, and return what it prints as JSON.

    Raises:
        P2PNodeError: it failed; the text is all it printed.
    """
    done = run_command(*arguments, "--json")
    if done.returncode:
        raise P2PNodeError(done.stdout + done.stderr)
    return json.loads(done.stdout)


class Daemon:
    """A running `p2pnode join --json` or `p2pnode host --json`; a context manager that ends it."""

    def __init__(
        self,
        data_dir: Path,
        *arguments: object,
        command: str = "join",
        listen: str = LOOPBACK,
        within: Sequence[str] = (),  # a command that runs another one elsewhere, as `ip netns exec`
    ) -> None:
        self.data_dir = data_dir
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        self.log = data_dir.parent / f"{data_dir.name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603  # our own command
                [*within, *COMMAND, command, "--json", "--data-dir", str(data_dir)]
                + ["--listen", listen]
                + [str(each) for each in arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
            )
        self._unread = b""
        try:
            self.ready = self.wait_for("ready")
        except BaseException:
            self.close()
            raise

    def wait_for(self, event: str, timeout: float = START_TIMEOUT) -> dict[str, Any]:
        """Read events until one of this name.

        Raises:
            P2PNodeError: the daemon reported an error, or ended.
            DeadlineExceededError: no such event within `timeout` seconds.
        """
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            line = self._read_line(until)
            found: dict[str, Any] = json.loads(line)
            if found["event"] == event:
                return found
            if found["event"] == "error":
                raise P2PNodeError(str(found))
        raise DeadlineExceededError(f"no {event} within {timeout:g} s")

    def _read_line(self, until: float) -> bytes:
        stdout = self.process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(until - time.monotonic(), 0)):
                    raise DeadlineExceededError(f"the daemon is silent; see {self.log}")
                data = os.read(stdout.fileno(), 65536)
                if not data:
                    raise P2PNodeError(f"the daemon ended: {self.log.read_text()}")
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    @property
    def peer_id(self) -> str:
        """Who the daemon is."""
        return str(self.ready["peer_id"])

    @property
    def address(self) -> str:
        """Where to reach it, its peer id at the end."""
        return str(self.ready["addresses"][0])

    def ask(self, *arguments: object) -> Any:
        """Run a command on the daemon's data directory, and return what it prints as JSON."""
        return ask_command(*arguments, "--data-dir", self.data_dir)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait(STOP_TIMEOUT)

    def terminate(self) -> int:
        """End it in good order; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT)

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        """Return the daemon."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """End the daemon."""
        self.close()
