"""Linux network namespaces: made, used, and removed again whatever happens.

Each has a name that tells which process made it, so that one that was killed is swept up after by
the next that starts. Programs run in a namespace die with the thread that started them.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from p2pnode.errors import P2PNodeError

_PREFIX: Final = "p2pnode-nat"
_FOLDER: Final = Path("/run/netns")  # where ip-netns(8) keeps them
_TOOLS: Final = {"ip": "iproute2", "nft": "nftables", "setpriv": "util-linux"}
_TIMEOUT: Final = 20.0  # seconds for one configuring command; they take milliseconds
_END_TIMEOUT: Final = 5.0  # seconds for killed programs to be gone
_SETTINGS: Final = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    # Enough for tests. A router forgets a SYN that nobody answers after two minutes by default.
    "net.ipv4.tcp_syn_retries": "4",
}
_TRIAL: Final = """
table ip trial {
    chain translate {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "wan" masquerade fully-random
    }
}
"""
_counter = itertools.count()


class LabError(P2PNodeError):
    """A command that builds the laboratory failed; the text is what it printed."""


def why_not() -> str | None:
    """Return why this machine cannot hold a laboratory, or None if it can."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            return f"{tool} is missing; install the package {package}"
    try:
        with contextlib.closing(Namespace("try")) as trial:
            trial.load_rules(_TRIAL)
    except LabError as error:
        return f"this machine does not let itself be divided: {error}"
    return None


def sweep() -> None:
    """Remove the namespaces of processes that are no more, with all that runs in them."""
    if not _FOLDER.is_dir():
        return
    for path in sorted(_FOLDER.glob(f"{_PREFIX}.*")):
        _, pid, started, *_ = path.name.split(".")
        if _start_of(int(pid)) != started:
            _remove(path.name)


class Namespace:
    """One network namespace, empty but for its loopback interface.

    Args:
        label: the end of its name, for people who look with `ip netns`.
    """

    def __init__(self, label: str) -> None:
        pid = os.getpid()
        self.name = f"{_PREFIX}.{pid}.{_start_of(pid)}.{next(_counter)}.{label}"
        self._processes: list[subprocess.Popen[bytes]] = []
        _command("ip", "netns", "add", self.name)
        try:
            self.ip("link set lo up")
            self.run(["sysctl", "-qw", *(f"{name}={value}" for name, value in _SETTINGS.items())])
        except BaseException:
            self.close()
            raise

    @property
    def within(self) -> tuple[str, ...]:
        """What to put in front of a command to run it in here; it dies with its parent."""
        return "ip", "netns", "exec", self.name, "setpriv", "--pdeathsig", "KILL", "--"

    def ip(self, *lines: str) -> None:
        """Run lines of `ip`, each written without that word.

        Raises:
            LabError: one failed; those before it stand.
        """
        _command("ip", "-n", self.name, "-batch", "-", text="\n".join(lines))

    def load_rules(self, rules: str) -> None:
        """Load an nftables script.

        Raises:
            LabError: it has a fault; then nothing of it is loaded.
        """
        self.run(["nft", "-f", "-"], text=rules)

    def run(self, command: Sequence[str], *, text: str = "", timeout: float = _TIMEOUT) -> str:
        """Run a program to its end in here; returns what it printed.

        Raises:
            LabError: it failed, or took longer than `timeout` seconds.
        """
        return _command(*self.within, *command, text=text, timeout=timeout)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in here, which `close` ends; `options` are those of `Popen`."""
        process = subprocess.Popen([*self.within, *command], **options)  # noqa: S603  # the test's own
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End what runs in here, and remove it."""
        try:
            _remove(self.name)
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
            self._processes.clear()


def _command(*command: str, text: str = "", timeout: float = _TIMEOUT) -> str:
    try:
        done = subprocess.run(  # noqa: S603  # the laboratory's own commands
            command, input=text, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(command)} did not end within {timeout:g} s") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _remove(name: str) -> None:
    """End the programs of a namespace, so that nothing keeps it alive, and unname it."""
    until = time.monotonic() + _END_TIMEOUT
    while pids := [int(pid) for pid in _command("ip", "netns", "pids", name).split()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            raise LabError(f"{name} is not free of its programs {pids}")
        time.sleep(0.01)
        if all(_is_dead(pid) for pid in pids):
            break  # nobody has yet waited for them
    _command("ip", "netns", "del", name)


def _is_dead(pid: int) -> bool:
    stat = _stat(pid)
    return stat is None or stat[0] in {"Z", "X"}


def _start_of(pid: int) -> str:
    """Return when a process started, in ticks since boot: pids are used again, moments are not."""
    stat = _stat(pid)
    return "" if stat is None or stat[0] in {"Z", "X"} else stat[19]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of proc_pid_stat(5) from the state on, or None if there is no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()
