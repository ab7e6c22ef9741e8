import contextlib
import random

import pytest
import trio

from p2pnode.config import DcutrSettings, RelaySettings
from p2pnode.host import ConnectionEnded, ConnectionOpened
from p2pnode.protocols.dcutr.core import HolePunchAttemptFailed, HolePunched, HolePunchFailed
from p2pnode.protocols.dcutr.service import DcutrService
from p2pnode.protocols.relay.client import RelayReserved
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire.addresses import with_p2p

ONE_WAY = 0.025
ECHO = "/test/echo"
EVENTS = (HolePunched, HolePunchAttemptFailed, HolePunchFailed, ConnectionOpened, ConnectionEnded)


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


class Meeting:
    """A relay, B that is reached through it, and A that dials B there."""

    def __init__(self, world):
        self.world = world
        self.events = {}
        self.machines = {}
        self._changed = trio.Event()

    async def arrange(self, nat_a, nat_b, *, relay=None, settings=None, services="ab"):
        options = {"server": "always", "client": "never"} | (relay or {})
        self.relay = await self.world.add_host(relay=RelaySettings(**options))
        at = str(with_p2p(self.relay.addresses[0], self.relay.peer_id))
        client = {"server": "never", "relays": (at,), "reservations": 1}
        self.a = await self.add("a" in services, nat_a, {**client, "client": "never"}, settings)
        self.b = await self.add("b" in services, nat_b, {**client, "client": "always"}, settings)
        await self.a.connect(self.relay.peer_id, self.relay.addresses)
        with self.b.events.subscribe(RelayReserved) as reserved, trio.fail_after(60):
            while not self.b.relayed:
                await reserved.get()
        await trio.sleep(1)  # for who sees whom where

    async def add(self, punches, nat, relay, settings):
        machine = self.world.network.add_machine(nat=nat)
        host = await self.world.add_host(machine=machine, relay=RelaySettings(**relay))
        host.set_handler(ECHO, echo)
        self.machines[host] = machine
        self.events[host] = seen = []

        def note(event):
            seen.append(event)
            self._changed.set()
            self._changed = trio.Event()

        for kind in EVENTS:
            host.events.on(kind, note)
        if punches:
            rng = random.Random(len(self.events))
            service = DcutrService(host, settings or DcutrSettings(), rng)
            await self.world.nursery.start(service.run)
        return host

    async def call(self):
        """Connect A to B through the relay; returns A's connection."""
        connection = await self.a.connect(self.b.peer_id, self.b.relayed)
        assert connection.is_relayed
        return connection

    async def until(self, host, kind):
        """Wait for the first event of a kind; returns it."""
        with trio.fail_after(300):
            while True:
                for event in self.events[host]:
                    if isinstance(event, kind):
                        return event
                await self._changed.wait()

    def ends(self):
        """Return the connection that each of the two would use."""
        return self.a.connection_to(self.b.peer_id), self.b.connection_to(self.a.peer_id)


async def say(connection, text=b"hello", **options):
    """Have the peer echo something."""
    stream = await connection.open_stream([ECHO], **options)
    await stream.send_all(text)
    assert await stream.receive_exactly(len(text)) == text
    await stream.aclose()


@contextlib.asynccontextmanager
async def meet(nat_a, nat_b, *, seed=0, loss=0.0, **options):
    network = VirtualNetwork(random.Random(seed), latency=Fixed(ONE_WAY), loss=loss)
    async with full_hosts(network) as world:
        meeting = Meeting(world)
        await meeting.arrange(nat_a, nat_b, **options)
        yield meeting


@pytest.fixture(name="meet")
def meet_fixture():
    return meet


@pytest.fixture(name="say")
def say_fixture():
    return say
