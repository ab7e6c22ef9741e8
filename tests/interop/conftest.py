"""A js-libp2p node in a process of its own, driven over its standard input and output."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
from itertools import count
from pathlib import Path

import pytest
import trio

RIG = Path(__file__).parent / "js"
OLDEST_NODE = 20
INSTALL_TIMEOUT = 300
COMMAND_TIMEOUT = 60


def find_nodejs():
    """Find Node.js; a `node` on the path may be p2pnode's own command instead."""
    for folder in os.get_exec_path():
        for name in ("node", "nodejs"):
            path = shutil.which(name, path=folder)
            if path is None:
                continue
            answer = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=60, check=False
            )
            version = re.fullmatch(r"v(\d+)\.\d+\.\d+\S*", answer.stdout.strip())
            if version and int(version[1]) >= OLDEST_NODE:
                return path
    return None


@pytest.fixture(scope="session")
def nodejs():
    """Path of Node.js, with the rig's packages installed beside `peer.mjs`."""
    nodejs = find_nodejs()
    if nodejs is None:
        pytest.skip(f"Node.js {OLDEST_NODE} or newer is not installed")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    lock = hashlib.sha256((RIG / "package-lock.json").read_bytes()).hexdigest()
    stamp = RIG / "node_modules" / ".p2pnode-installed"
    if not stamp.exists() or stamp.read_text() != lock:
        path = os.pathsep.join([str(Path(nodejs).parent), os.environ["PATH"]])
        subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=RIG,
            env=os.environ | {"PATH": path},
            timeout=INSTALL_TIMEOUT,
            check=True,
        )
        stamp.write_text(lock)
    return nodejs


class JsError(Exception):
    """A command failed inside the js-libp2p node."""


class JsPeer:
    """A running js-libp2p node."""

    def __init__(self, process):
        self._process = process
        self._numbers = count(1)
        self._answers = {}
        self.ready = trio.Event()
        self.hello = None

    @property
    def peer_id(self):
        return self.hello["peer"]

    @property
    def address(self):
        return self.hello["addresses"][0]

    async def __call__(self, do, **arguments):
        """Run a command and return its result."""
        number = next(self._numbers)
        send, receive = trio.open_memory_channel(1)
        self._answers[number] = send
        line = json.dumps({"id": number, "do": do, **arguments}) + "\n"
        with trio.fail_after(COMMAND_TIMEOUT):
            await self._process.stdin.send_all(line.encode())
            answer = await receive.receive()
        if "error" in answer:
            raise JsError("{name}: {message}".format(**answer["error"]))
        return answer["result"]

    async def read_answers(self):
        buffer = b""
        async for data in self._process.stdout:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if message.get("event") == "ready":
                    self.hello = message
                    self.ready.set()
                else:
                    await self._answers.pop(message["id"]).send(message)


@contextlib.asynccontextmanager
async def running(nodejs, log_file, nursery, *arguments):
    """Start a js-libp2p node that ends with the block."""
    with log_file.open("wb") as log:
        process = await trio.lowlevel.open_process(
            [nodejs, str(RIG / "peer.mjs"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    peer = JsPeer(process)
    nursery.start_soon(peer.read_answers)
    try:
        with trio.move_on_after(COMMAND_TIMEOUT):
            await peer.ready.wait()
        if peer.hello is None:
            pytest.fail(f"js-libp2p did not start: {log_file.read_text()}")
        yield peer
    finally:
        process.kill()
        with trio.CancelScope(shield=True), contextlib.suppress(ProcessLookupError):
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()


@pytest.fixture
async def js(nodejs, tmp_path, nursery):
    """A js-libp2p node for one test."""
    async with running(nodejs, tmp_path / "js-libp2p.log", nursery) as peer:
        yield peer


@pytest.fixture
async def js_dht(nodejs, tmp_path, nursery):
    """A js-libp2p node that serves our DHT, for one test."""
    async with running(nodejs, tmp_path / "js-libp2p-dht.log", nursery, "dht") as peer:
        yield peer
