"""The demo's daemons: real processes, started by the command a user types."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.errors import DeadlineExceededError, LocalError

START_TIMEOUT: Final = 90.0  # four processes importing torch at once on a slow disk
STOP_TIMEOUT: Final = 15.0  # the daemons' own grace for running calls, and for saving
_SIGTERM_EXIT: Final = 128 + signal.SIGTERM
_POLL: Final = 0.05
_LISTEN: Final = "/ip4/127.0.0.1/tcp/0"


class DemoDaemon:
    """One daemon; starting it again after a kill makes a replacement on the same data directory.

    Args:
        name: of its log files.
        data_dir: its state.
        logs: where `NAME.jsonl` (its events) and `NAME.log` (its standard error) go.
        arguments: what follows the command.
        command: which of `p2pnode`'s starts it.
    """

    def __init__(
        self,
        name: str,
        data_dir: Path,
        logs: Path,
        arguments: Sequence[str],
        *,
        command: Sequence[str] = ("join",),
    ) -> None:
        self.name = name
        self._command = command
        self.data_dir = DataDir(data_dir)
        self.ready: dict[str, Any] | None = None  # what the current process said when it was
        self._arguments = arguments
        self._events = logs / f"{name}.jsonl"
        self._log = logs / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0  # how far the events were read

    def join(self, bootstrap: str) -> None:
        """Join through this address, too, from the next start on."""
        self._arguments = (*self._arguments, "--bootstrap", bootstrap)

    def start(self) -> None:
        """Start a process; it is ready when `poll` says so."""
        assert self._process is None, f"{self.name} runs already"
        self.ready = None
        command = [
            *(sys.executable, "-P", "-m", "cli.demo.leash", str(os.getpid())),
            *(*self._command, "--json", "--listen", _LISTEN, "--data-dir", str(self.data_dir.path)),
            *self._arguments,
        ]
        with self._events.open("ab") as events, self._log.open("ab") as log:
            self._read = events.tell()
            # A session of its own: Ctrl-C reaches the demo alone, which then ends its daemons.
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                command,
                stdin=subprocess.DEVNULL,
                stdout=events,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )

    def poll(self) -> bool:
        """Tell whether the current process has become ready.

        Raises:
            LocalError: it ended, or could not start.
        """
        if self.ready is not None:
            return True
        assert self._process is not None, f"{self.name} was not started"
        ended = not self.is_running
        for event in self.events():
            if event["event"] == "ready":
                self.ready = event
                return True
            if event["event"] == "error":
                raise LocalError(f"{self.name} cannot start: {event['message']}")
        if ended:
            raise LocalError(
                f"{self.name} ended with code {self._process.returncode} before it was ready;"
                f" see {self._log}"
            )
        return False

    @property
    def is_running(self) -> bool:
        """Whether the current process, if there is one, has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int:
        """The current process's number."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def address(self) -> str:
        """Where others reach it, once it is ready."""
        assert self.ready is not None, f"{self.name} is not ready"
        return str(self.ready["addresses"][0])

    def experts(self) -> list[dict[str, Any]]:
        """Ask the daemon about its experts, as `p2pnode experts --json` does."""
        found: list[dict[str, Any]] = call_daemon(self.data_dir.control_socket, "experts")
        return found

    def kill(self) -> None:
        """End the process by SIGKILL: no goodbye, nothing saved."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> None:
        """Ask the process to end in good order, without waiting for it."""
        if self._process is not None:
            self._process.terminate()

    def wait_ended(self, until: float) -> None:
        """Wait for the process to end; it is killed at `until` on the monotonic clock."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, until - time.monotonic()))
            self.kill()

    def events(self) -> Iterator[dict[str, Any]]:
        """Give what the daemon has told since the last time; of `poll`, what came behind it."""
        with self._events.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # the rest of it is still being written
                self._read += len(line)
                yield json.loads(line)


def start_all(daemons: Sequence[DemoDaemon], bootstrap: Sequence[str] = ()) -> None:
    """Start daemons, the others at once when the first is ready to be joined through.

    Args:
        daemons: the daemons.
        bootstrap: what the first joins through.

    Raises:
        LocalError: one of them could not start.
        DeadlineExceededError: it took too long.
    """
    first, *others = daemons
    for address in bootstrap:
        first.join(address)
    first.start()
    wait_until(first.poll, f"starting {first.name}", START_TIMEOUT)
    for daemon in others:
        daemon.join(first.address)
        daemon.start()
    for daemon in others:
        wait_until(daemon.poll, f"starting {daemon.name}", START_TIMEOUT)


@contextlib.contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM end the block as an exception does, so that the daemons are ended, too."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_SIGTERM_EXIT)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ending(daemons: Sequence[DemoDaemon]) -> Iterator[None]:
    """End all daemons with the block: in good order, or by force when that takes too long."""
    try:
        yield
    finally:
        try:
            for daemon in daemons:
                daemon.terminate()
            until = time.monotonic() + STOP_TIMEOUT
            for daemon in daemons:
                daemon.wait_ended(until)
        finally:  # a second Ctrl-C
            for daemon in daemons:
                daemon.kill()


def wait_until(condition: Callable[[], bool], what: str, timeout: float) -> None:
    """Poll until `condition` holds.

    Raises:
        DeadlineExceededError: it did not within `timeout` seconds.
    """
    until = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > until:
            raise DeadlineExceededError(f"{what} took longer than {timeout:g} s; see the logs")
        time.sleep(_POLL)


def is_saved(daemon: DemoDaemon) -> bool:
    """Tell whether the daemon has saved every expert that has learnt something, at least once.

    Raises:
        DaemonNotRunningError: it has ended.
    """
    experts = daemon.experts()
    return all(expert["saved_at"] is not None for expert in experts if expert["steps"])


def _environment() -> dict[str, str]:
    """Return this process's environment without settings that would change the daemons."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("P2PNODE_")}
    return kept | {"OMP_NUM_THREADS": "1"}
