"""What a host knows of peers, end to end: dials that fail, lies, foreign keys, restarts."""

import contextlib

import pytest
import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import DialError, HandshakeError
from p2pnode.host import PeerIdentified
from p2pnode.host.node import NetworkHost
from p2pnode.protocols.identify.service import IdentifyService
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.keys import KINDS, ForeignKey
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire.addresses import tcp_address, with_p2p
from p2pnode.wire.records import PeerRecord

NOWHERE = tcp_address("10.0.0.99", 1)
ECHO = "/test/echo"


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


@contextlib.asynccontextmanager
async def running(world, key, **options):
    """Run a host on a machine of its own, with identify, until the block ends."""
    async with trio.open_nursery() as nursery:
        host = NetworkHost(key, transports=[MemoryTransport(world.network)], **options)
        await nursery.start(host.run)
        await nursery.start(IdentifyService(host).run)
        yield host
        nursery.cancel_scope.cancel()


# --- dials ----------------------------------------------------------------------------------------


async def test_an_address_that_failed_is_left_alone_unless_somebody_insists(autojump_clock):
    settings = NetworkSettings(dial_backoff=10.0)
    async with full_hosts() as world:
        ours = await world.add_host(settings=settings)
        theirs = await world.add_host()
        with pytest.raises(DialError, match=r"10\.0\.0\.99"):
            await ours.connect(theirs.peer_id, [NOWHERE])
        with pytest.raises(DialError, match=r"10\.0\.0\.99.*backed off for another \d+ s"):
            await ours.connect(theirs.peer_id, [NOWHERE])
        with pytest.raises(DialError) as caught:
            await ours.connect(theirs.peer_id, [NOWHERE], insist=True)
        assert "backed off" not in str(caught.value)
        await ours.connect(theirs.peer_id, [NOWHERE, *theirs.addresses])


async def test_an_address_of_somebody_else_is_forgotten_and_the_right_one_is_kept(autojump_clock):
    async with full_hosts() as world:
        ours, theirs, other = [await world.add_host() for _ in range(3)]
        ours.add_addresses(theirs.peer_id, other.addresses, 1000)
        with pytest.raises(HandshakeError, match="was expected"):
            await ours.connect(theirs.peer_id)
        assert ours.addresses_of(theirs.peer_id) == []
        ours.add_addresses(theirs.peer_id, [*other.addresses, *theirs.addresses], 1000)
        await ours.connect(theirs.peer_id)
        assert ours.addresses_of(theirs.peer_id)[0] == theirs.addresses[0]


async def test_the_address_that_worked_is_tried_first_the_next_time(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.01))) as world:
        ours, theirs = await world.add_host(), await world.add_host()
        silent = MemoryTransport(world.network, world.network.add_machine(ip="11.9.9.9"))
        listener = await silent.listen(tcp_address("11.9.9.9", 1))
        told = [*listener.addresses, *theirs.addresses]
        await ours.connect(theirs.peer_id, told)
        assert trio.current_time() > ours.settings.dial_stagger
        await ours.connection_to(theirs.peer_id).aclose()
        await trio.sleep(1)
        before = trio.current_time()
        await ours.connect(theirs.peer_id, told)
        assert trio.current_time() - before < ours.settings.dial_stagger


async def test_addresses_that_name_somebody_else_are_not_even_dialled(autojump_clock):
    async with full_hosts() as world:
        ours, theirs, other = [await world.add_host() for _ in range(3)]
        wrong = [with_p2p(each, other.peer_id) for each in theirs.addresses]
        with pytest.raises(DialError, match=f"an address of {other.peer_id}"):
            await ours.connect(theirs.peer_id, wrong)
        right = [with_p2p(each, theirs.peer_id) for each in theirs.addresses]
        await ours.connect(theirs.peer_id, right)


# --- keys of other kinds --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_peer_with_a_foreign_key_is_a_peer_like_any_other(kind, tmp_path, autojump_clock):
    key = ForeignKey.generate(kind)
    path = tmp_path / "peers.json"
    async with full_hosts() as world, running(world, key) as theirs:
        await theirs.listen(tcp_address(theirs._transports[0].ip, 0))
        theirs.set_handler(ECHO, echo)
        assert str(theirs.peer_id).startswith("16Uiu2" if kind == "Secp256k1" else "Qm")
        mine = (await world.add_host()).key
        async with running(world, mine, peerstore_path=path) as ours:
            with ours.events.subscribe(PeerIdentified) as identified:
                connection = await ours.connect(theirs.peer_id, theirs.addresses)
                event = await identified.get()
            assert connection.public_key == key.public_key
            assert connection.public_key.kind == kind
            assert event.peer_id == theirs.peer_id
            assert ECHO in event.protocols
            assert event.record is not None
            stream = await connection.open_stream([ECHO])
            await stream.send_all(b"hello")
            assert await stream.receive_exactly(5) == b"hello"
            assert ours.peerstore.public_key_of(theirs.peer_id) == key.public_key
        async with running(world, mine, peerstore_path=path) as ours:
            assert ours.peerstore.public_key_of(theirs.peer_id) == key.public_key
            record = PeerRecord.open(ours.peerstore.record_of(theirs.peer_id))
            assert (record.peer_id, record.addresses) == (theirs.peer_id, tuple(theirs.addresses))
            await ours.connect(theirs.peer_id)  # by the address it kept


@pytest.mark.parametrize("kind", KINDS)
async def test_a_peer_with_a_foreign_key_may_dial_us_too(kind, autojump_clock):
    async with full_hosts() as world:
        ours = await world.add_host()
        async with running(world, ForeignKey.generate(kind)) as theirs:
            await theirs.connect(ours.peer_id, ours.addresses)
            await trio.sleep(1)
            assert ours.connection_to(theirs.peer_id).direction == "inbound"
            assert ours.protocols_of(theirs.peer_id) == frozenset(theirs.protocols)
            assert theirs.protocols_of(ours.peer_id) == frozenset(ours.protocols)


async def test_a_foreign_key_does_not_pass_for_another(autojump_clock):
    async with full_hosts() as world, running(world, ForeignKey.generate("RSA")) as theirs:
        await theirs.listen(tcp_address(theirs._transports[0].ip, 0))
        ours = await world.add_host()
        with pytest.raises(HandshakeError, match="was expected"):
            await ours.connect(ForeignKey.generate("RSA").peer_id, theirs.addresses)
