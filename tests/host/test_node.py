import contextlib
import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.config import LimitSettings, NetworkSettings
from p2pnode.errors import (
    AddressInUseError,
    ConnectionClosedError,
    DialError,
    HandshakeError,
    InvalidAddressError,
    Limit,
    NegotiationError,
    ProtocolError,
    ProtocolNotSupportedError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.host import (
    ConnectionEnded,
    ConnectionOpened,
    LocalPeerChanged,
    PeerMisbehaved,
)
from p2pnode.host.budgets import ResourceRefused
from p2pnode.host.kept_table import TableNotKept
from p2pnode.host.node import NetworkHost
from p2pnode.mux.multistream.core import encode_line
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import Drawn, Fixed, VirtualNetwork
from p2pnode.transport.tcp import TcpTransport
from p2pnode.wire.addresses import parse_address, tcp_address, with_p2p
from p2pnode.wire.keys import PrivateKey

ECHO = "/test/echo"
SILENT = parse_address("/ip4/10.9.9.9/tcp/9")


async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)


async def forever(_stream):
    await trio.sleep_forever()


async def ask(host, peer_id, data=b"x"):
    stream = await host.open_stream(peer_id, [ECHO])
    await stream.send_all(data)
    assert await stream.receive_exactly(len(data)) == data
    return stream


@contextlib.asynccontextmanager
async def silent_network(delay=0.0):
    """A network with a machine that takes connections and never says a word."""
    async with full_hosts(VirtualNetwork(latency=Fixed(delay))) as world:
        machine = MemoryTransport(world.network, world.network.add_machine(ip="10.9.9.9"))
        await machine.listen(SILENT)
        yield world


# --- dials ----------------------------------------------------------------------------------------


async def test_simultaneous_dials_converge_and_no_stream_breaks(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.1))) as world:
        hosts = [await world.add_host(), await world.add_host()]
        streams = []

        async def connect_and_ask(one, other):
            one.set_handler(ECHO, echo)
            connection = await one.connect(other.peer_id, other.addresses)
            stream = await connection.open_stream([ECHO])
            await stream.send_all(b"early")
            streams.append(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect_and_ask, hosts[0], hosts[1])
            nursery.start_soon(connect_and_ask, hosts[1], hosts[0])
        await trio.sleep(1)
        assert [len(host.connections()) for host in hosts] == [2, 2]
        ours, theirs = (
            hosts[0].connection_to(hosts[1].peer_id),
            hosts[1].connection_to(hosts[0].peer_id),
        )
        assert ours.local_address == theirs.remote_address  # both prefer the same one
        await trio.sleep(20)
        for stream in streams:  # opened on whichever connection was up first, and still whole
            assert await stream.receive_exactly(5) == b"early"
            await stream.aclose()
        await trio.sleep(30)
        assert [len(host.connections()) for host in hosts] == [1, 1]
        assert hosts[0].connections() == [ours]
        await ask(hosts[0], hosts[1].peer_id)
        await ask(hosts[1], hosts[0].peer_id)


async def test_each_caller_has_its_own_patience(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(1.0))) as world:
        ours, theirs = await world.add_host(), await world.add_host()

        async def impatient():
            with pytest.raises(DialError, match=str(theirs.addresses[0])):
                await ours.connect(theirs.peer_id, theirs.addresses, timeout=1.0)
            assert trio.current_time() == pytest.approx(1.0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(impatient)
            connection = await ours.connect(theirs.peer_id, theirs.addresses)
        assert connection.peer_id == theirs.peer_id


async def test_after_all_callers_were_cancelled_a_new_one_starts_afresh(autojump_clock):
    async with silent_network() as world:
        ours, theirs = await world.add_host(), await world.add_host()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.connect, theirs.peer_id, [SILENT])
                await wait_all_tasks_blocked()
                scope.cancel()
        assert ours.info().dials <= 1
        await ours.connect(theirs.peer_id, theirs.addresses)
        assert trio.current_time() == pytest.approx(0.0)
        await wait_all_tasks_blocked()
        assert ours.info().dials == 0


async def test_a_connection_from_the_peer_satisfies_who_is_dialling_it(autojump_clock):
    async with silent_network() as world:
        ours, theirs = await world.add_host(), await world.add_host()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.connect, theirs.peer_id, [SILENT])
            await wait_all_tasks_blocked()
            await theirs.connect(ours.peer_id, ours.addresses)
        assert trio.current_time() == pytest.approx(0.0)
        assert ours.connection_to(theirs.peer_id).direction == "inbound"


async def test_a_stranger_at_the_address_is_a_handshake_error(autojump_clock):
    async with full_hosts() as world:
        ours, theirs, other = [await world.add_host() for _ in range(3)]
        with pytest.raises(HandshakeError, match=str(other.peer_id)):
            await ours.connect(other.peer_id, theirs.addresses)
        assert ours.connections() == []


async def test_a_silent_peer_fails_the_dial_in_time(autojump_clock):
    async with silent_network() as world:
        ours = await world.add_host()
        stranger = PrivateKey.from_seed(bytes(32)).peer_id
        with pytest.raises(DialError, match=f"{SILENT}: no answer"):
            await ours.connect(stranger, [SILENT])
        assert trio.current_time() <= ours.settings.dial_timeout


async def test_addresses_may_end_in_the_peers_own_id(autojump_clock):
    async with full_hosts() as world:
        ours, theirs = await world.add_host(), await world.add_host()
        full = [with_p2p(address, theirs.peer_id) for address in theirs.addresses]
        ours.add_addresses(theirs.peer_id, full, 60)
        assert ours.addresses_of(theirs.peer_id) == theirs.addresses
        await ours.connect(theirs.peer_id, full)


async def test_a_node_does_not_dial_itself(autojump_clock):
    async with full_hosts() as world:
        ours = await world.add_host()
        with pytest.raises(DialError, match="itself"):
            await ours.connect(ours.peer_id, ours.addresses)
        ours.add_addresses(ours.peer_id, ours.addresses, 60)
        assert ours.addresses_of(ours.peer_id) == []


async def test_so_many_peers_are_dialled_at_once_and_the_others_wait(autojump_clock):
    async with silent_network() as world:
        ours = await world.add_host(settings=NetworkSettings(max_dials=1))
        theirs = await world.add_host()
        stranger = PrivateKey.from_seed(bytes(32)).peer_id
        async with trio.open_nursery() as nursery:

            async def fail():
                with pytest.raises(DialError):
                    await ours.connect(stranger, [SILENT], timeout=2.0)

            nursery.start_soon(fail)
            await wait_all_tasks_blocked()
            await ours.connect(theirs.peer_id, theirs.addresses)
            assert trio.current_time() == pytest.approx(2.0)


# --- strangers and limits -------------------------------------------------------------------------


async def test_garbage_from_a_stranger_is_noted_and_nothing_else_suffers(autojump_clock):
    async with full_hosts() as world:
        ours, theirs = await world.add_host(), await world.add_host()
        with ours.events.subscribe(PeerMisbehaved) as misbehaved:
            raw = await MemoryTransport(world.network).dial(ours.addresses[0])
            await raw.stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            event = await misbehaved.get()
            assert event.address == raw.local_address
            while await raw.stream.receive_some():
                pass
        await theirs.connect(ours.peer_id, ours.addresses)


async def test_a_stranger_that_says_nothing_loses_its_place(autojump_clock):
    settings = NetworkSettings(handshake_timeout=3.0)
    limits = LimitSettings(max_handshakes=2)
    async with full_hosts() as world:
        ours = await world.add_host(settings=settings, limits=limits)
        theirs = await world.add_host()
        stranger = MemoryTransport(world.network)
        silent = [await stranger.dial(ours.addresses[0]) for _ in range(2)]
        await wait_all_tasks_blocked()
        assert ours.info().handshakes == 2
        for raw in silent:
            while await raw.stream.receive_some():
                pass
        assert trio.current_time() == pytest.approx(3.0)
        await theirs.connect(ours.peer_id, ours.addresses)


async def test_strangers_that_say_nothing_do_not_shut_others_out(autojump_clock):
    async with full_hosts() as world:
        ours = await world.add_host(limits=LimitSettings(max_handshakes=4))
        theirs = await world.add_host()
        stranger = MemoryTransport(world.network)
        silent = [await stranger.dial(ours.addresses[0]) for _ in range(4)]
        await wait_all_tasks_blocked()
        with ours.events.subscribe(ResourceRefused) as refused:
            await theirs.connect(ours.peer_id, ours.addresses)
            event = await refused.get()
        assert event.address == silent[0].local_address
        assert event.limit is Limit.NODE_HANDSHAKES
        assert await silent[0].stream.receive_some() == b""
        assert ours.info().handshakes == 3


async def test_a_full_node_refuses_connections_of_both_directions(autojump_clock):
    async with full_hosts() as world:
        full = await world.add_host(limits=LimitSettings(max_connections=1), identify=False)
        first, second = [await world.add_host(identify=False) for _ in range(2)]
        full.set_handler("/test/forever", forever)
        connection = await first.connect(full.peer_id, full.addresses)
        await (await connection.open_stream(["/test/forever"])).send_all(b"x")
        await wait_all_tasks_blocked()
        with pytest.raises(ResourceLimitError, match="limit of 1 connections"):
            await full.connect(second.peer_id, second.addresses)
        with full.events.subscribe(ResourceRefused) as refused:
            with pytest.raises(DialError):
                await second.connect(full.peer_id, full.addresses)
            event = await refused.get()
        assert (event.limit, event.peer_id) == (Limit.NODE_CONNECTIONS, None)
        await wait_all_tasks_blocked()
        assert second.connections() == []
        assert not connection.is_closed


async def test_a_full_node_makes_room_by_closing_what_is_unused(autojump_clock):
    async with full_hosts() as world:
        limits = LimitSettings(max_connections=1, trim_grace=10.0)
        full = await world.add_host(limits=limits)
        first, second = await world.add_host(), await world.add_host()
        await first.connect(full.peer_id, full.addresses)
        await trio.sleep(15)
        await full.connect(second.peer_id, second.addresses)
        assert [each.peer_id for each in full.connections()] == [second.peer_id]


async def test_one_peer_may_have_so_many_streams_and_other_peers_theirs(autojump_clock):
    limits = LimitSettings(max_inbound_streams_per_peer=2)
    async with full_hosts() as world:
        ours = await world.add_host(limits=limits, identify=False)
        ours.set_handler(ECHO, echo)
        greedy, modest = [await world.add_host(identify=False) for _ in range(2)]
        ours_at = (ours.peer_id, ours.addresses)
        await greedy.connect(*ours_at)
        await modest.connect(*ours_at)
        held = [await ask(greedy, ours.peer_id) for _ in range(2)]
        with ours.events.subscribe(ResourceRefused) as refused:
            with pytest.raises(StreamResetError):
                await ask(greedy, ours.peer_id)
            assert (await refused.get()).peer_id == greedy.peer_id
        await ask(modest, ours.peer_id)
        await held[0].aclose()
        await wait_all_tasks_blocked()
        await ask(greedy, ours.peer_id)


async def test_one_protocol_cannot_use_up_the_streams_of_another(autojump_clock):
    limits = LimitSettings(max_inbound_streams_per_protocol_per_peer=1)
    async with full_hosts() as world:
        ours = await world.add_host(limits=limits)
        theirs = await world.add_host()
        ours.set_handler("/test/forever", forever)
        ours.set_handler(ECHO, echo)
        connection = await theirs.connect(ours.peer_id, ours.addresses)
        streams = [await connection.open_stream(["/test/forever"]) for _ in range(2)]
        await streams[0].send_all(b"x")
        await wait_all_tasks_blocked()
        with pytest.raises(StreamResetError):
            await streams[1].receive_some()
        await ask(theirs, ours.peer_id)


# --- streams and handlers -------------------------------------------------------------------------


async def test_much_data_for_an_unknown_protocol_does_not_block_its_sender(autojump_clock):
    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        stream = await ours.open_stream(theirs.peer_id, ["/test/unknown"])
        with pytest.raises(ProtocolNotSupportedError):
            await stream.send_all(bytes(10_000_000))


async def test_a_peer_that_never_agrees_is_left_after_a_while(autojump_clock, monkeypatch):
    async def negotiate(_muxed, _handlers):
        await trio.sleep(math.inf)

    async with full_hosts() as world:
        ours, theirs = [await world.add_host(identify=False) for _ in range(2)]
        connection = await ours.connect(theirs.peer_id, theirs.addresses)
        await wait_all_tasks_blocked()
        monkeypatch.setattr(theirs.connection_to(ours.peer_id), "_negotiate", negotiate)
        with pytest.raises(NegotiationError, match="within 10 s"):
            await connection.open_stream(["/a", "/b"])
        await wait_all_tasks_blocked()
        assert connection.streams == 0


async def test_a_cancelled_negotiation_leaves_no_stream_behind(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(1.0))) as world:
        ours, theirs = await world.add_hosts(2)
        theirs.set_handler(ECHO, echo)
        await trio.sleep(10)
        connection = ours.connection_to(theirs.peer_id)
        with trio.move_on_after(0.5):
            await connection.open_stream(["/a", ECHO])
        await trio.sleep(5)
        assert connection.streams == theirs.connection_to(ours.peer_id).streams == 0


async def test_a_stream_that_proposes_nothing_is_reset_in_time(autojump_clock):
    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        muxed = await ours.connection_to(theirs.peer_id)._muxer.open_stream()
        await muxed.send_all(encode_line("/multistream/1.0.0"))
        assert await muxed.receive_some() == encode_line("/multistream/1.0.0")
        with pytest.raises(StreamResetError):
            await muxed.receive_some()
        assert trio.current_time() == pytest.approx(theirs.settings.negotiation_timeout)


async def test_an_error_group_of_a_handlers_own_nursery_ends_its_stream_alone(autojump_clock):
    async def handler(stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await stream.receive_some()
            raise StreamResetError("both halves failed")

    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        theirs.set_handler("/test/group", handler)
        stream = await ours.open_stream(theirs.peer_id, ["/test/group"])
        await stream.send_all(b"x")
        with pytest.raises(StreamResetError):
            await stream.receive_some()
        assert len(theirs.connections()) == 1


async def test_a_broken_rule_of_a_protocol_is_the_peers_misbehaviour(autojump_clock):
    async def handler(stream):
        await stream.receive_some()
        raise ProtocolError("a lie")

    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        theirs.set_handler("/test/strict", handler)
        with theirs.events.subscribe(PeerMisbehaved) as misbehaved:
            stream = await ours.open_stream(theirs.peer_id, ["/test/strict"])
            await stream.send_all(b"x")
            event = await misbehaved.get()
        assert (event.peer_id, event.reason) == (ours.peer_id, "/test/strict: a lie")


async def test_a_bug_in_a_handler_ends_the_node_and_says_what_it_was():
    async def handler(stream):
        await stream.receive_some()
        raise ZeroDivisionError("a bug")

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with full_hosts() as world:
            ours, theirs = await world.add_hosts(2)
            theirs.set_handler("/test/bug", handler)
            stream = await ours.open_stream(theirs.peer_id, ["/test/bug"])
            await stream.send_all(b"x")
            await trio.sleep_forever()


async def test_handlers_get_a_moment_to_tidy_up_and_are_then_cancelled(autojump_clock):
    ends = []

    async def handler(stream):
        await stream.send_all(b"x")
        try:
            await stream.receive_some()
        except ConnectionClosedError:
            await trio.sleep(1)
            ends.append(("tidied up", trio.current_time()))
            try:
                await trio.sleep_forever()
            finally:
                ends.append(("cancelled", trio.current_time()))

    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        theirs.set_handler("/test/slow", handler)
        stream = await ours.open_stream(theirs.peer_id, ["/test/slow"])
        await stream.receive_exactly(1)
        await ours.connection_to(theirs.peer_id).aclose()
        await trio.sleep(10)
    grace = NetworkSettings().close_timeout
    assert ends == [("tidied up", pytest.approx(1.0)), ("cancelled", pytest.approx(grace))]


async def test_a_listener_that_does_not_close_holds_nobody_up_for_long(autojump_clock, monkeypatch):
    network = VirtualNetwork()
    transport = MemoryTransport(network)
    host = NetworkHost(PrivateKey.generate(), transports=[transport])
    real = transport.listen

    async def listen(address):
        listener = await real(address)
        monkeypatch.setattr(listener, "aclose", trio.sleep_forever)
        return listener

    monkeypatch.setattr(transport, "listen", listen)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        await host.listen(tcp_address(transport.ip, 1))
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began == pytest.approx(host.settings.close_timeout)


# --- time -----------------------------------------------------------------------------------------


async def test_an_unused_connection_is_closed_and_a_used_one_is_kept(autojump_clock):
    settings = NetworkSettings(idle_timeout=60.0)
    async with full_hosts() as world:
        ours = await world.add_host(settings=settings)
        used, unused = await world.add_host(), await world.add_host()
        used.set_handler(ECHO, echo)
        for peer in (used, unused):
            await ours.connect(peer.peer_id, peer.addresses)
        stream = await ask(ours, used.peer_id)
        await trio.sleep(50)
        assert len(ours.connections()) == 2
        await trio.sleep(20)
        assert [each.peer_id for each in ours.connections()] == [used.peer_id]
        await stream.aclose()
        await trio.sleep(100)
        assert ours.connections() == []
        assert used.connections() == []


async def test_a_vanished_peer_is_noticed_by_keepalive(autojump_clock):
    delays = {"now": 0.0}
    async with full_hosts(
        VirtualNetwork(latency=Drawn(lambda _source, _target: delays["now"]))
    ) as world:
        ours, theirs = await world.add_hosts(2)
        with ours.events.subscribe(ConnectionEnded) as ended:
            delays["now"] = 10_000.0
            await ended.get()
        settings = ours.settings
        assert trio.current_time() <= settings.keepalive_interval + 2 * settings.keepalive_timeout
        assert theirs.peer_id not in [each.peer_id for each in ours.connections()]


async def test_a_host_that_ends_says_goodbye(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.1))) as world:
        ours = await world.add_host()
        async with trio.open_nursery() as nursery:
            theirs = NetworkHost(
                PrivateKey.from_seed(b"t" * 32), transports=[MemoryTransport(world.network)]
            )
            await nursery.start(theirs.run)
            connection = await theirs.connect(ours.peer_id, ours.addresses)
            await trio.sleep(1)
            with ours.events.subscribe(ConnectionEnded) as ended:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    event = await ended.get()
        assert event.connection.peer_id == theirs.peer_id
        assert connection.is_closed
        assert theirs.connections() == []
        with pytest.raises(RuntimeError, match="does not run"):
            await theirs.connect(ours.peer_id, ours.addresses)


async def test_a_machine_that_moves_tells_its_peers(autojump_clock, monkeypatch):
    async with full_hosts() as world:
        ours, theirs = await world.add_hosts(2)
        await trio.sleep(60)
        with ours.events.subscribe(LocalPeerChanged) as changed:
            assert not changed._pending
            moved = [tcp_address("11.7.7.7", 7)]
            monkeypatch.setattr(type(ours._local.listeners[0]), "addresses", moved)
            await changed.get()
        await trio.sleep(1)
        assert moved[0] in theirs.addresses_of(ours.peer_id)


# --- addresses ------------------------------------------------------------------------------------


async def test_listening_changes_what_others_are_told(autojump_clock):
    machine = MemoryTransport(VirtualNetwork())
    host = NetworkHost(PrivateKey.from_seed(bytes(32)), transports=[machine])
    with pytest.raises(RuntimeError, match="does not run"):
        await host.listen(tcp_address(machine.ip, 0))
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        with host.events.subscribe(LocalPeerChanged) as changed:
            first = await host.listen(tcp_address(machine.ip, 0))
            await changed.get()
            second = await host.listen(tcp_address(machine.ip, 0))
            assert host.addresses == first + second
            host.set_handler(ECHO, echo)
            await changed.get()
            host.set_handler(ECHO, echo)  # nothing new to tell
            host.remove_handler(ECHO)
            await changed.get()
        with pytest.raises(AddressInUseError):
            await host.listen(first[0])
        with pytest.raises(InvalidAddressError, match="no transport"):
            await host.listen(parse_address("/unix/tmp"))
        nursery.cancel_scope.cancel()
    assert machine.machine.listeners == {}


async def test_announced_addresses_replace_those_listened_on(autojump_clock):
    machine = MemoryTransport(VirtualNetwork())
    announced = [parse_address("/dns4/node.example/tcp/4001")]
    host = NetworkHost(PrivateKey.from_seed(bytes(32)), transports=[machine], announce=announced)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        assert await host.listen(tcp_address(machine.ip, 0)) != announced
        assert host.addresses == announced
        nursery.cancel_scope.cancel()


async def test_known_addresses_survive_a_restart(tmp_path, autojump_clock):
    path = tmp_path / "peers.json"
    async with full_hosts() as world:
        theirs = await world.add_host()
        for restart in range(2):
            async with trio.open_nursery() as nursery:
                ours = NetworkHost(
                    PrivateKey.from_seed(b"o" * 32),
                    transports=[MemoryTransport(world.network)],
                    peerstore_path=path,
                )
                await nursery.start(ours.run)
                await ours.connect(theirs.peer_id, [] if restart else theirs.addresses)
                nursery.cancel_scope.cancel()
            assert path.exists()


async def test_a_broken_peerstore_is_put_aside(tmp_path, autojump_clock):
    path = tmp_path / "peers.json"
    path.write_text("not json")
    host = NetworkHost(PrivateKey.from_seed(bytes(32)), transports=[], peerstore_path=path)
    told = []
    host.events.on(TableNotKept, told.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        nursery.cancel_scope.cancel()
    assert (tmp_path / "peers.json.broken").read_text() == "not json"
    assert path.read_text() != "not json"
    assert [(event.path, "peers.json.broken" in event.reason) for event in told] == [(path, True)]


async def test_a_peerstore_that_cannot_be_kept_neither_ends_nor_hangs_the_node(tmp_path):
    path = tmp_path / "peers.json"
    path.mkdir()
    host = NetworkHost(PrivateKey.from_seed(bytes(32)), transports=[], peerstore_path=path)
    told = []
    host.events.on(TableNotKept, told.append)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            nursery.cancel_scope.cancel()
    assert [event.reason.partition(":")[0] for event in told] == [
        "cannot be read",
        "cannot be written",
    ]


async def test_the_snapshot_tells_of_each_connection(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.05))) as world:
        ours = await world.add_host(identify=False)
        theirs = await world.add_host(identify=False)
        theirs.set_handler(ECHO, echo)
        await ours.connect(theirs.peer_id, theirs.addresses)
        await trio.sleep(60)
        await ask(ours, theirs.peer_id, bytes(1000))
        info = ours.info()
        assert info.peer_id == ours.peer_id
        assert info.addresses == tuple(ours.addresses)
        assert info.known_peers == 1
        (connection,) = info.connections
        assert connection.peer_id == theirs.peer_id
        assert connection.direction == "outbound"
        assert connection.streams == 1
        assert 1000 <= connection.bytes_sent <= 1100
        assert 1000 <= connection.bytes_received <= 1100
        assert connection.age >= 60
        assert connection.rtt == pytest.approx(0.1)


async def test_every_host_of_a_network_is_connected_to_all_others(autojump_clock):
    async with full_hosts() as world:
        hosts = await world.add_hosts(4)
        await trio.sleep(1)
        assert [len(host.connections()) for host in hosts] == [3, 3, 3, 3]


async def test_events_tell_of_a_connections_beginning_and_end(autojump_clock):
    async with full_hosts() as world:
        ours, theirs = await world.add_host(), await world.add_host()
        with ours.events.subscribe(ConnectionOpened, ConnectionEnded) as events:
            connection = await ours.connect(theirs.peer_id, theirs.addresses)
            await connection.aclose()
            opened, ended = await events.get(), await events.get()
        assert opened.connection is ended.connection is connection
        assert ended.reason


@pytest.mark.real
async def test_hosts_that_end_together_do_not_wait_for_each_other():
    for _ in range(5):
        async with trio.open_nursery() as nursery:
            hosts = [
                NetworkHost(PrivateKey.generate(), transports=[TcpTransport()]) for _ in range(2)
            ]
            for host in hosts:
                await nursery.start(host.run)
                await host.listen(parse_address("/ip4/127.0.0.1/tcp/0"))
            await hosts[0].connect(hosts[1].peer_id, hosts[1].addresses)
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < hosts[0].settings.close_timeout / 2


async def test_dials_that_nobody_wants_any_more_do_not_wait_for_their_turn(autojump_clock):
    async with silent_network() as world:
        host = await world.add_host(settings=NetworkSettings(max_dials=1))
        strangers = [PrivateKey.from_seed(bytes([n] * 32)).peer_id for n in range(200, 210)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect_in_vain, host, strangers[0], 8.0)
            await wait_all_tasks_blocked()
            for each in strangers[1:]:
                nursery.start_soon(connect_in_vain, host, each, 1.0)
            await trio.sleep(2)
            assert host.info().dials == 1


async def connect_in_vain(host, peer_id, timeout):
    with pytest.raises(DialError):
        await host.connect(peer_id, [SILENT], timeout=timeout)


async def test_nothing_new_begins_on_a_connection_that_this_side_is_closing(autojump_clock):
    async with full_hosts(VirtualNetwork(latency=Fixed(0.1))) as world:
        ours, theirs = await world.add_host(), await world.add_host()
        theirs.set_handler(ECHO, echo)
        old = await ours.connect(theirs.peer_id, theirs.addresses)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.aclose)
            while old.leaving is None:
                await trio.lowlevel.checkpoint()
            await ask(ours, theirs.peer_id)
        assert ours.connection_to(theirs.peer_id) is not old


async def test_an_address_to_listen_on_names_no_peer():
    async with full_hosts() as world:
        host = await world.add_host()
        with pytest.raises(InvalidAddressError, match="leave /p2p/ and the id out"):
            await host.listen(with_p2p(tcp_address("10.0.0.1", 5), host.peer_id))
