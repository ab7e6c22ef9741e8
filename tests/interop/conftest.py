"""js-libp2p nodes in processes of their own, driven over their standard input and output.

Starting one takes a second, so the tests of a session share them; each test has a node of ours
with an identity of its own.
"""

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

from p2pnode.config import RelaySettings
from p2pnode.host import ConnectionOpened
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.protocols.ping.service import PingService
from p2pnode.protocols.relay.client import RelayClient
from p2pnode.protocols.relay.server import RelayServer
from p2pnode.protocols.relay.transport import RelayTransport
from p2pnode.testing.peer.checks.target import Target
from p2pnode.testing.peer.node import ECHO, Peer, echo
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import parse_address, with_p2p
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

RIG = Path(__file__).parent / "js"
QUIC = "@chainsafe/libp2p-quic@2.1.1"  # js-libp2p's QUIC, which is quinn, that of rust-libp2p
OLDEST_NODE = 20
INSTALL_TIMEOUT = 300
COMMAND_TIMEOUT = 60
NUMBERS = count(1)  # of commands, for all tests of a session


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
    lock = hashlib.sha256((RIG / "package-lock.json").read_bytes()).hexdigest() + QUIC
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
        # Binaries for other machines than this one may not be had, so no lock file can name them.
        subprocess.run(
            [npm, "install", "--no-save", "--ignore-scripts", "--loglevel=error", QUIC],
            cwd=RIG,
            env=os.environ | {"PATH": path},
            timeout=INSTALL_TIMEOUT,
            check=False,
        )
        stamp.write_text(lock)
    return nodejs


def transport_of(address):
    """Name the transport of an address, as the fixture `transport` does."""
    last = address.protocols()[-1].name
    return {"quic-v1": "quic"}.get(last, last)


class JsError(Exception):
    """A command failed inside the js-libp2p node."""


class JsPeer:
    """A running js-libp2p node, as one test talks to it."""

    def __init__(self, process, hello):
        self._process = process
        self._stdin = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
        self._stdout = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
        self._answers = {}
        self.hello = hello
        self.peer_id = PeerId.from_text(hello["peer"])

    def address(self, transport):
        """Where it listens with that transport."""
        for address in map(parse_address, self.hello["addresses"]):
            if transport_of(address) == transport:
                return address
        return pytest.skip(f"this js-libp2p has no {transport}: its native module is missing")

    async def __call__(self, do, **arguments):
        """Run a command and return its result."""
        number = next(NUMBERS)
        send, receive = trio.open_memory_channel(1)
        self._answers[number] = send
        line = json.dumps({"id": number, "do": do, **arguments}) + "\n"
        with trio.fail_after(COMMAND_TIMEOUT):
            await self._stdin.send_all(line.encode())
            answer = await receive.receive()
        if "error" in answer:
            raise JsError("{name}: {message}".format(**answer["error"]))
        return answer["result"]

    async def read_answers(self):
        """Hand each answer to its caller, until `aclose`."""
        buffer = b""
        with contextlib.suppress(trio.ClosedResourceError):
            while data := await self._stdout.receive_some():
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    asked = self._answers.pop(message["id"], None)
                    if asked is not None:  # else it answers a test that has ended
                        await asked.send(message)
            pytest.fail("the js-libp2p node ended")

    async def aclose(self):
        """Leave it to the next test."""
        await self._stdin.aclose()
        await self._stdout.aclose()


@contextlib.contextmanager
def running(nodejs, log_file, *script, within=()):
    """Start a js-libp2p node that ends with the block; yields its process and first line.

    Args:
        nodejs: path of Node.js.
        log_file: where its standard error goes.
        script: which of the rig's scripts, and its arguments; `peer.mjs` by default.
        within: a command that runs another one elsewhere, such as `ip netns exec`.
    """
    name, *arguments = script or ("peer.mjs",)
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*within, nodejs, "--experimental-websocket", str(RIG / name), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
        )
    try:
        line = process.stdout.readline()
        if not line:
            pytest.fail(f"js-libp2p did not start: {log_file.read_text()}")
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture(scope="session")
def js_processes(nodejs, tmp_path_factory):
    """Two js-libp2p nodes."""
    folder = tmp_path_factory.mktemp("js-libp2p")
    with running(nodejs, folder / "1.log") as first, running(nodejs, folder / "2.log") as second:
        yield first, second


@contextlib.asynccontextmanager
async def talking_to(started, nursery):
    """Talk to a node while the block runs."""
    peer = JsPeer(*started)
    nursery.start_soon(peer.read_answers)
    try:
        yield peer
    finally:
        await peer.aclose()


@pytest.fixture
async def js(js_processes, nursery):
    """A js-libp2p node."""
    async with talking_to(js_processes[0], nursery) as peer:
        yield peer


@pytest.fixture
async def other_js(js_processes, nursery):
    """Another js-libp2p node."""
    async with talking_to(js_processes[1], nursery) as peer:
        yield peer


@pytest.fixture
async def fresh_js(nodejs, tmp_path, nursery):
    """A js-libp2p node for one test alone."""
    with running(nodejs, tmp_path / "js-libp2p.log") as started:
        async with talking_to(started, nursery) as peer:
            yield peer


@pytest.fixture
def start_js(nodejs, tmp_path, nursery):
    """Start a js-libp2p node of another script, for the length of a block."""

    @contextlib.asynccontextmanager
    async def start_js(*script, within=()):
        with running(nodejs, tmp_path / "js-libp2p.log", *script, within=within) as started:
            async with talking_to(started, nursery) as peer:
                yield peer

    return start_js


@pytest.fixture
async def ours(nursery):
    """A peer of ours, which listens."""
    peer = Peer(PrivateKey.generate())
    await nursery.start(peer.run)
    await peer.listen(
        ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws", "/ip4/127.0.0.1/udp/0/quic-v1"]
    )
    return peer


# What js-libp2p calls the encryption and the muxer of a connection.
UPGRADES = dict.fromkeys(["tcp", "ws"], ("/noise", "/yamux/1.0.0")) | {"quic": ("native", "quic")}


@pytest.fixture(params=["tcp", "ws", "quic"])
def transport(request):
    """Over which transport the two are connected."""
    return request.param


@pytest.fixture(params=["ours dials", "theirs dials"])
def target(request, transport, ours, js):
    """The js node as the checks see it: they connect by the fixture's transport and dialer."""
    address = js.address(transport)
    (our_address,) = [
        each for each in ours.network.host.addresses if transport_of(each) == transport
    ]

    async def connect():
        if request.param == "ours dials":
            await ours.network.host.connect(js.peer_id, [address])
        else:
            with ours.network.host.events.subscribe(ConnectionOpened) as opened:
                answer = await js("dial", address=str(with_p2p(our_address, ours.network.peer_id)))
                # When they connect again, it knows all our addresses, and takes which it likes.
                known = {UPGRADES[transport], UPGRADES["tcp"]}
                assert (answer["encryption"], answer["muxer"]) in known
                while ours.network.host.connection_to(js.peer_id) is None:
                    await opened.get()

    return Target(peer=ours, peer_id=js.peer_id, address=address, connect=connect)


class RelayingHost:
    """A host of ours with an echo; it relays, or is reached through relays, or only dials."""

    def __init__(self, settings):
        self.host = NetworkHost(PrivateKey.generate(), transports=[TcpTransport()])
        self.transport = RelayTransport(self.host, settings)
        self.host.add_transport(self.transport)
        self.server = RelayServer(self.host, settings)
        self.client = RelayClient(self.host, self.transport, settings)

    async def run(self, *, task_status):
        async with trio.open_nursery() as nursery:
            await nursery.start(self.host.run)
            await nursery.start(IdentifyService(self.host).run)
            await nursery.start(PingService(self.host).run)
            await self.host.listen(parse_address("/ip4/127.0.0.1/tcp/0"))
            self.host.set_handler(ECHO, echo)
            await nursery.start(self.server.run)
            await nursery.start(self.client.run)
            task_status.started()

    @property
    def address(self):
        return str(with_p2p(self.host.listening[0], self.host.peer_id))


@pytest.fixture
async def start(nursery):
    """Start a host of ours with an echo, which uses relays as told by settings of [relay]."""

    async def start(**settings):
        ours = RelayingHost(RelaySettings(**({"server": "never", "client": "auto"} | settings)))
        await nursery.start(ours.run)
        return ours

    return start
