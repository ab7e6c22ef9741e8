"""Real daemons: processes started by the command a user types, on loopback."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "cli.main"]
START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("P2PNODE_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def p2pnode(*arguments, check=True):
    """Run one command to its end; returns its parsed JSON, or the finished process."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
        check=False,
        env=environment(),
    )
    if not check:
        return done
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done


class Daemon:
    """A running `p2pnode join --json`."""

    def __init__(self, data_dir, *arguments, command="join", listen="/ip4/127.0.0.1/tcp/0"):
        self.data_dir = data_dir
        self.log = (data_dir.parent / f"{data_dir.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*COMMAND, command, "--json", "--data-dir", data_dir, "--listen", listen]
            + [str(each) for each in arguments],
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment(),
        )
        self.ready = self.wait_for("ready")

    def wait_for(self, event, timeout=START_TIMEOUT):
        """Read events until one of this name."""
        until = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while selector.select(until - time.monotonic()):
                line = self.process.stdout.readline()
                assert line, f"the daemon ended: {Path(self.log.name).read_text()}"
                found = json.loads(line)
                if found["event"] == event:
                    return found
                assert found["event"] != "error", found
        raise AssertionError(f"no {event!r} within {timeout} s")

    @property
    def peer_id(self):
        return self.ready["peer_id"]

    @property
    def address(self):
        return self.ready["addresses"][0]

    def ask(self, *arguments):
        return p2pnode(*arguments, "--data-dir", self.data_dir, "--json")

    def kill(self):
        self.process.kill()
        self.process.wait(STOP_TIMEOUT)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT)

    def close(self):
        self.kill()
        self.process.stdout.close()
        self.log.close()
