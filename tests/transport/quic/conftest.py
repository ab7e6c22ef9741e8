import heapq
import itertools
import math
import random

import pytest
from aioquic.quic.configuration import QuicConfiguration

from p2pnode.config import NetworkSettings
from p2pnode.security.tls import TlsIdentity
from p2pnode.transport.quic.core import ALPN, INITIAL_WINDOW
from p2pnode.transport.quic.endpoint import ID_BYTES, VERSIONS, QuicEndpoint
from p2pnode.transport.session import Unmetered
from p2pnode.wire.keys import PrivateKey

CLIENT, SERVER = ("192.0.2.1", 1000), ("192.0.2.2", 2000)


class Wire:
    """Two endpoints, and a wire between them in virtual time that may lose, delay and reorder.

    Attributes:
        loss: the part of all datagrams that is lost.
        jitter: seconds that a datagram may take more than others.
        aliases: by which address the other side sees one.
        dropped: decides by itself what is lost, when given.
    """

    def __init__(self, settings=None, *, seed=0, delay=0.02, server_identity=None):
        self.now = 1000.0
        self.delay, self.jitter, self.loss = delay, 0.0, 0.0
        self.rng = random.Random(seed)
        self.aliases = {}
        self.drops = None
        self.sent = 0
        self.settings = settings or NetworkSettings()
        self.keys = {
            each: PrivateKey.from_seed(bytes([each[1] % 256]) * 32) for each in (CLIENT, SERVER)
        }
        self.identity = TlsIdentity(self.keys[CLIENT])
        self.client = self.endpoint(self.identity)
        self.server = self.endpoint(server_identity or TlsIdentity(self.keys[SERVER]))
        self.server.is_listening = True
        self.inbound = []
        self.events = []
        self._numbers = itertools.count()
        self._under_way = []

    def endpoint(self, identity, **changes):
        configuration = QuicConfiguration(
            **{
                "alpn_protocols": [ALPN],
                "certificate": identity.certificate,
                "private_key": identity.private_key,
                "connection_id_length": ID_BYTES,
                "max_data": self.settings.quic_base_window,
                "max_stream_data": INITIAL_WINDOW,
                "supported_versions": list(VERSIONS),
                "idle_timeout": self.settings.quic_idle_timeout,
                "verify_mode": 0,
            }
            | changes
        )
        return QuicEndpoint(
            configuration,
            verify=identity.verify,
            settings=self.settings,
            token_bytes=self.rng.randbytes,
        )

    def connect(self):
        core = self.client.connect(SERVER, self.now)
        self.flush(core)
        return core

    def flush(self, core):
        """Send what a session has to send."""
        mine = self.client if core in self.client._names_of else self.server
        source, _ = (CLIENT, SERVER) if mine is self.client else (SERVER, CLIENT)
        for data, address in mine.datagrams_to_send(core, self.now):
            self.send(data, source, address)

    def send(self, data, source, address):
        self.sent += 1
        lost = self.drops(self.sent, data) if self.drops else self.rng.random() < self.loss
        if not lost:
            at = self.now + self.delay + self.rng.random() * self.jitter
            item = (at, next(self._numbers), data, self.aliases.get(source, source), address)
            heapq.heappush(self._under_way, item)

    def step(self):
        """Go on to what happens next; returns False when nothing more will."""
        at = min(
            self._under_way[0][0] if self._under_way else math.inf,
            self.client.next_deadline(),
            self.server.next_deadline(),
        )
        if at == math.inf:
            return False
        self.now = max(self.now, at)
        while self._under_way and self._under_way[0][0] <= self.now:
            _, _, data, source, address = heapq.heappop(self._under_way)
            self.deliver(data, source, address)
        for endpoint in (self.client, self.server):
            for core, events in endpoint.due(self.now):
                self.events += [(core, each) for each in events]
                self.flush(core)
        return True

    def deliver(self, data, source, address):
        to_server = address == SERVER
        endpoint = self.server if to_server else self.client
        if not to_server and address not in {CLIENT, self.aliases.get(CLIENT)}:
            return None  # nobody is there
        received = endpoint.receive_datagram(data, source, self.now)
        for reply, to in received.replies:
            self.send(reply, address, to)
        if received.is_new:
            self.inbound.append(received.core)
        if received.core is not None:
            self.events += [(received.core, each) for each in received.events]
            self.flush(received.core)
        for core in endpoint.given_up():
            self.flush(core)
        return received

    def run(self, *, until=lambda: False, seconds=60.0):
        """Let time pass until something is true; returns whether it became true."""
        end = self.now + seconds
        while not until():
            if self.now > end or not self.step():
                return until()
        return True

    def pair(self):
        """A connection whose two ends have proven who they are, charged to nobody."""
        ours = self.connect()
        assert self.run(until=lambda: self.inbound and self.inbound[-1].identity and ours.identity)
        theirs = self.inbound[-1]
        for core in (ours, theirs):
            core.charge_to(Unmetered(), self.now)
            self.flush(core)
        return ours, theirs


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture(scope="module")
def shared_wire():
    """For examples that leave no traces."""
    return Wire()


@pytest.fixture(scope="module")
def shared_pair():
    """For examples that leave no traces: a wire, and a connection's two ends."""
    wire = Wire()
    return wire, *wire.pair()


@pytest.fixture(scope="session")
def make_wire():
    return Wire
