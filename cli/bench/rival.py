"""hivemind beside us: its own processes, under an interpreter that has it."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from cli.bench.processor import processor_seconds
from p2pnode.errors import LocalError

_SCRIPT: Final = Path(__file__).with_name("rival_end.py")
_STOP_TIMEOUT: Final = 20.0


class Hivemind:
    """A client of hivemind, and the servers it calls."""

    def __init__(self, client: "AskedProcess", servers: "Sequence[AskedProcess]") -> None:
        self._client = client
        self._servers = servers

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, python: Path, place: Path, *, callers: int, hidden_dim: int, threads: int
    ) -> Iterator[Self]:
        """Run servers and client for the time of a block.

        Args:
            python: the interpreter.
            place: a folder for their logs.
            callers: at once, each with a `nop` and an `ffn` of its own.
            hidden_dim: of the experts.
            threads: of torch, in the servers.

        Raises:
            LocalError: one of them did not start.
        """
        shape = (str(callers), str(hidden_dim), str(threads))
        with contextlib.ExitStack() as running:
            addresses, servers = [], []
            for layer in ("nop", "ffn"):
                command = [str(python), str(_SCRIPT), "serve", layer, *shape]
                server = running.enter_context(
                    AskedProcess.started(command, place, f"hivemind-{layer}")
                )
                servers.append(server)
                addresses.append(server.read()["address"])
            command = [str(python), str(_SCRIPT), "call", *shape, *addresses]
            client = running.enter_context(AskedProcess.started(command, place, "hivemind-client"))
            client.read()
            yield cls(client, servers)

    def calls_per_second(self, seconds: float) -> float:
        """Call `nop` with one row from all callers at once, for so long."""
        return self._ask(work="calls", rows=1, seconds=seconds)

    def samples_per_second(self, rows: int, seconds: float) -> float:
        """Run `ffn` forward and backward from all callers at once, for so long."""
        return rows * self._ask(work="samples", rows=rows, seconds=seconds)

    def processor_seconds(self) -> float:
        """Return what all of it has computed so far."""
        return sum(each.processor_seconds() for each in (self._client, *self._servers))

    def _ask(self, **question: Any) -> float:
        self._client.write(question)
        return float(self._client.read()["rate"])


class AskedProcess:
    """A process that is asked, and answers, in lines of JSON."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    @contextlib.contextmanager
    def started(cls, command: list[str], place: Path, name: str) -> Iterator[Self]:
        """Run it for the time of a block; it ends with its input.

        Args:
            command: what to run.
            place: a folder for its log.
            name: of the log, and in errors.
        """
        log = place / f"{name}.log"
        with (
            log.open("wb") as errors,
            subprocess.Popen(  # noqa: S603  # the interpreter that the user named
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            ) as process,
        ):
            try:
                yield cls(process, log)
            finally:
                assert process.stdin is not None
                process.stdin.close()
                try:
                    process.wait(_STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()

    def processor_seconds(self) -> float:
        """Return what it and the processes it has started have computed so far."""
        return processor_seconds(self._process.pid)

    def write(self, message: Any) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Wait for the next line that is one of ours.

        Raises:
            LocalError: the process has ended.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(b"{"):  # its libraries print there, too
                found: dict[str, Any] = json.loads(line)
                return found
        tail = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        raise LocalError(
            f"the process {self._log.stem} has ended: {' '.join(tail) or 'it said nothing'}"
        )
