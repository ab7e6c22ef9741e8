"""What every transport must do.

Subclass `TransportConformance` as `Test…` and override its two methods.
"""

from abc import ABC, abstractmethod

import pytest
import trio
from multiaddr import Multiaddr
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from p2pnode.errors import AddressInUseError, DialError, InvalidAddressError
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.wire.addresses import parse_address

MANY = 50
MEGABYTE = bytes(range(256)) * 4096


class TransportConformance(ABC):
    """The tests; `dialer` and `listener` may be one transport."""

    @abstractmethod
    def make_transports(self) -> tuple[Transport, Transport]:
        """Return the transport that dials and the one that listens."""

    @abstractmethod
    def listen_address(self, transport: Transport) -> Multiaddr:
        """Return an address with port 0 on which the second transport can listen."""

    async def _listener(self) -> tuple[Transport, Transport, Listener]:
        dialer, listening = self.make_transports()
        return dialer, listening, await listening.listen(self.listen_address(listening))

    async def _pair(self) -> tuple[RawConnection, RawConnection]:
        dialer, _, listener = await self._listener()
        ours, theirs = await _connect(dialer, listener)
        await listener.aclose()
        return ours, theirs

    async def test_streams_keep_every_promise_trio_makes_of_them(self) -> None:
        async def make() -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
            ours, theirs = await self._pair()
            return ours.stream, theirs.stream

        async def make_clogged() -> tuple[
            trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream
        ]:
            ours, theirs = await make()
            await _clog(ours)
            await _clog(theirs)
            return ours, theirs

        await check_half_closeable_stream(make, make_clogged)

    async def test_both_ends_agree_on_the_addresses(self) -> None:
        dialer, _, listener = await self._listener()
        ours, theirs = await _connect(dialer, listener)
        assert ours.remote_address == theirs.local_address == listener.addresses[0]
        assert ours.local_address == theirs.remote_address
        await _close(ours, theirs)
        await listener.aclose()

    async def test_bytes_arrive_whole_and_in_order_in_both_directions_at_once(self) -> None:
        ours, theirs = await self._pair()
        received: dict[str, bytes] = {}

        async def read(name: str, stream: trio.abc.Stream) -> None:
            received[name] = await _read_to_end(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_and_finish, ours.stream, MEGABYTE)
            nursery.start_soon(_send_and_finish, theirs.stream, MEGABYTE[::-1])
            nursery.start_soon(read, "ours", ours.stream)
            nursery.start_soon(read, "theirs", theirs.stream)
        assert received == {"theirs": MEGABYTE, "ours": MEGABYTE[::-1]}
        await _close(ours, theirs)

    async def test_after_one_side_finished_the_other_can_still_answer(self) -> None:
        ours, theirs = await self._pair()
        await _send_and_finish(ours.stream, b"question")
        assert await _read_to_end(theirs.stream) == b"question"
        await _send_and_finish(theirs.stream, b"answer")
        assert await _read_to_end(ours.stream) == b"answer"
        await _close(ours, theirs)

    async def test_a_sender_waits_for_a_reader_that_does_not_read(self) -> None:
        ours, theirs = await self._pair()
        assert await _clog(ours.stream) < 64 * len(MEGABYTE)
        await _close(ours, theirs)

    async def test_many_connections_stay_apart(self) -> None:
        dialer, _, listener = await self._listener()

        async def serve() -> None:
            for _ in range(MANY):
                nursery.start_soon(_echo, await listener.accept())

        async def ask(number: int) -> None:
            connection = await dialer.dial(listener.addresses[0])
            await _send_and_finish(connection.stream, b"%d" % number)
            assert await _read_to_end(connection.stream) == b"%d" % number
            await connection.stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for number in range(MANY):
                nursery.start_soon(ask, number)
        await listener.aclose()

    async def test_a_closed_end_is_seen_at_the_other(self) -> None:
        ours, theirs = await self._pair()
        await ours.stream.aclose()
        assert await theirs.stream.receive_some() == b""
        await theirs.stream.aclose()

    async def test_a_dial_to_nobody_fails_and_names_the_address(self) -> None:
        dialer, _, listener = await self._listener()
        address = listener.addresses[0]
        await listener.aclose()
        with pytest.raises(DialError, match=str(address)):
            await dialer.dial(address)

    async def test_a_taken_address_is_refused_in_a_sentence(self) -> None:
        _, listening, listener = await self._listener()
        with pytest.raises(AddressInUseError, match=r"taken.*another port"):
            await listening.listen(listener.addresses[0])
        await listener.aclose()

    async def test_port_zero_becomes_a_real_and_fresh_port(self) -> None:
        _, listening, first = await self._listener()
        second = await listening.listen(self.listen_address(listening))
        ports = {each.addresses[0].value_for_protocol("tcp") for each in (first, second)}
        assert len(ports) == 2
        assert "0" not in ports
        await first.aclose()
        await second.aclose()

    async def test_an_address_is_free_again_once_its_listener_is_closed(self) -> None:
        dialer, listening, listener = await self._listener()
        ours, theirs = await _connect(dialer, listener)
        address = listener.addresses[0]
        await listener.aclose()
        again = await listening.listen(address)
        await again.aclose()
        await ours.stream.send_all(b"x")  # accepted connections live on
        assert await theirs.stream.receive_some() == b"x"
        await _close(ours, theirs)

    @pytest.mark.parametrize(
        "text", ["/dns4/localhost/tcp/1", "/ip4/192.0.2.77/tcp/0", "/ip4/127.0.0.1/udp/1"]
    )
    async def test_what_is_no_address_of_this_machine_cannot_be_listened_on(
        self, text: str
    ) -> None:
        _, listening = self.make_transports()
        with pytest.raises(InvalidAddressError, match=text):
            await listening.listen(parse_address(text))

    @pytest.mark.parametrize(
        "text", ["/ip4/127.0.0.1/udp/1", "/unix/tmp", "/ip4/127.0.0.1", "/ip4/127.0.0.1/tcp/1/ws"]
    )
    async def test_addresses_of_other_transports_are_not_dialled(self, text: str) -> None:
        dialer, _ = self.make_transports()
        assert not dialer.can_dial(parse_address(text))
        with pytest.raises(DialError):
            await dialer.resolve(parse_address(text))

    async def test_an_address_without_a_name_resolves_to_itself(self) -> None:
        dialer, _, listener = await self._listener()
        assert dialer.can_dial(listener.addresses[0])
        assert await dialer.resolve(listener.addresses[0]) == listener.addresses[:1]
        await listener.aclose()

    async def test_closing_a_listener_wakes_whoever_waits_in_accept(self) -> None:
        _, _, listener = await self._listener()

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await wait_all_tasks_blocked()
            await listener.aclose()

    async def test_a_cancelled_accept_loses_no_connection(self) -> None:
        dialer, _, listener = await self._listener()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        ours, theirs = await _connect(dialer, listener)
        await _close(ours, theirs)
        await listener.aclose()

    async def test_a_cancelled_dial_leaves_the_listener_serving(self) -> None:
        dialer, _, listener = await self._listener()
        with trio.CancelScope() as scope:
            scope.cancel()
            await dialer.dial(listener.addresses[0])
        assert scope.cancelled_caught
        ours, theirs = await _connect(dialer, listener)
        await _send_and_finish(ours.stream, b"x")
        await _close(ours, theirs)
        await listener.aclose()


async def _connect(dialer: Transport, listener: Listener) -> tuple[RawConnection, RawConnection]:
    """Connect, and skip connections that a cancelled dial may have left behind."""
    ours = await dialer.dial(listener.addresses[0])
    with trio.fail_after(5):
        while True:
            theirs = await listener.accept()
            if theirs.remote_address == ours.local_address:
                return ours, theirs
            await theirs.stream.aclose()


async def _clog(stream: trio.abc.SendStream) -> int:
    """Send until nothing moves any more; returns the bytes that were taken whole."""
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await stream.send_all(MEGABYTE)
            sent += len(MEGABYTE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        before = -1
        while sent != before:
            before = sent
            await wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    return sent


async def _close(*connections: RawConnection) -> None:
    for connection in connections:
        await connection.stream.aclose()


async def _send_and_finish(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def _read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    data = bytearray()
    while chunk := await stream.receive_some():
        data += chunk
    return bytes(data)


async def _echo(connection: RawConnection) -> None:
    await _send_and_finish(connection.stream, await _read_to_end(connection.stream))
    await connection.stream.aclose()
