"""Connecting: who dials whom, who the other is, and whom to keep."""

import pytest
import trio
from trio.abc import Clock

from p2pnode.errors import DialError, ProtocolError
from p2pnode.host import Connection, ConnectionOpened, PeerIdentified
from p2pnode.testing.conformance.hosts.suite import ECHO, HostSuite, echo, within


class ConnectionTests(HostSuite):
    """Two hosts meet."""

    async def test_both_ends_know_who_the_other_is(self, clock: Clock | None) -> None:
        async with self.run_pair() as (ours, theirs), within():
            with theirs.events.subscribe(ConnectionOpened) as opened:
                connection = await ours.connect(theirs.peer_id, theirs.addresses)
                event = await opened.get()
            assert isinstance(event, ConnectionOpened)
            assert connection.peer_id == theirs.peer_id == connection.public_key.peer_id
            assert event.connection.peer_id == ours.peer_id
            assert (connection.direction, event.connection.direction) == ("outbound", "inbound")
            assert ours.connection_to(theirs.peer_id) is connection
            assert theirs.connection_to(ours.peer_id) is event.connection
            assert ours.connections() == [connection]
            assert not connection.is_closed

    async def test_a_second_connect_gives_the_same_connection(self, clock: Clock | None) -> None:
        async with self.connected() as (ours, theirs, connection):
            assert await ours.connect(theirs.peer_id) is connection
            assert len(ours.connections()) == 1

    async def test_connects_at_the_same_time_share_one_dial(self, clock: Clock | None) -> None:
        async with self.run_pair() as (ours, theirs), within():
            found: list[Connection] = []

            async def connect() -> None:
                found.append(await ours.connect(theirs.peer_id, theirs.addresses))

            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(connect)
            assert len(set(map(id, found))) == 1
            assert len(ours.connections()) == 1

    async def test_a_cancelled_caller_does_not_end_the_dial_of_another(
        self, clock: Clock | None
    ) -> None:
        async with self.run_pair() as (ours, theirs), within():
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(ours.connect, theirs.peer_id, theirs.addresses)
                    scope.cancel()
                    await ours.connect(theirs.peer_id, theirs.addresses)
            assert scope.cancelled_caught
            assert ours.connection_to(theirs.peer_id) is not None

    async def test_a_peer_without_a_known_address_cannot_be_dialled(
        self, clock: Clock | None
    ) -> None:
        async with self.run_pair() as (ours, theirs), within():
            with pytest.raises(DialError, match="no address"):
                await ours.connect(theirs.peer_id)
            ours.add_addresses(theirs.peer_id, theirs.addresses, 60)
            assert ours.addresses_of(theirs.peer_id) == theirs.addresses
            await ours.connect(theirs.peer_id)

    async def test_a_peer_that_is_not_there_fails_the_dial(self, clock: Clock | None) -> None:
        async with self.run_pair() as (ours, theirs), within():
            stranger = type(theirs.peer_id).from_public_key_bytes(b"\x08\x01\x12\x20" + bytes(32))
            with pytest.raises((DialError, ProtocolError), match=str(stranger)):
                await ours.connect(stranger, theirs.addresses)

    async def test_both_learn_each_others_protocols_and_addresses(
        self, clock: Clock | None
    ) -> None:
        async with self.run_pair() as (ours, theirs), within():
            theirs.set_handler(ECHO, echo)
            with ours.events.subscribe(PeerIdentified) as identified:
                await ours.connect(theirs.peer_id, theirs.addresses)
                event = await identified.get()
            assert isinstance(event, PeerIdentified)
            assert event.peer_id == theirs.peer_id
            assert ECHO in event.protocols
            assert list(event.addresses) == theirs.addresses
            assert ECHO in ours.protocols_of(theirs.peer_id)
            assert ours.addresses_of(theirs.peer_id) == theirs.addresses

    async def test_a_peer_is_protected_until_every_tag_is_taken_back(
        self, clock: Clock | None
    ) -> None:
        async with self.run_pair() as (ours, theirs), within():
            assert not ours.is_protected(theirs.peer_id)
            ours.protect(theirs.peer_id, "mesh")
            ours.protect(theirs.peer_id, "mesh")
            ours.protect(theirs.peer_id, "relay")
            assert ours.is_protected(theirs.peer_id)
            assert ours.unprotect(theirs.peer_id, "mesh")
            assert ours.is_protected(theirs.peer_id)
            assert not ours.unprotect(theirs.peer_id, "relay")
            assert not ours.unprotect(theirs.peer_id, "relay")
            assert not ours.is_protected(theirs.peer_id)

    async def test_a_stranger_has_a_connection_of_its_own_that_nobody_else_uses(
        self, clock: Clock | None
    ) -> None:
        async with self.connected() as (ours, theirs, connection):
            (address, *_) = theirs.addresses
            assert ours.can_dial(address)
            async with ours.dial_anew(theirs.peer_id, address, timeout=5.0) as anew:
                assert anew is not connection
                assert (anew.peer_id, anew.direction) == (theirs.peer_id, "outbound")
                assert anew not in ours.connections()
                assert ours.connection_to(theirs.peer_id) is connection
                stream = await anew.open_stream([ECHO])
                await stream.send_all(b"x")
                assert await stream.receive_exactly(1) == b"x"
                await stream.aclose()
            assert anew.is_closed
            assert not connection.is_closed
            assert ours.connections() == [connection]

    async def test_a_stranger_is_told_when_nobody_answers_or_somebody_else_does(
        self, clock: Clock | None
    ) -> None:
        async with self.connected() as (ours, theirs, connection):
            (address, *_) = theirs.addresses
            stranger = type(theirs.peer_id).from_public_key_bytes(b"\x08\x01\x12\x20" + bytes(32))
            with pytest.raises((DialError, ProtocolError)):
                async with ours.dial_anew(stranger, address, timeout=5.0):
                    pytest.fail("somebody answered in a stranger's name")
            nowhere = type(address)("/ip4/127.0.0.1/udp/9")
            assert not ours.can_dial(nowhere)
            with pytest.raises(DialError):
                async with ours.dial_anew(theirs.peer_id, nowhere, timeout=5.0):
                    pytest.fail("an address that no transport understands was dialled")
            assert ours.connections() == [connection]
