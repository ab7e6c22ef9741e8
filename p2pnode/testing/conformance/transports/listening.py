"""How every transport must listen and dial."""

import contextlib

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from p2pnode.errors import AddressInUseError, DialError
from p2pnode.testing.conformance.transports.suite import TransportSuite
from p2pnode.testing.conformance.transports.traffic import connect, cut, dial
from p2pnode.transport.base import Listener, RawConnection, Transport


class ListeningTests(TransportSuite):
    """Listeners take, keep and give back addresses and connections; dials fail in a sentence."""

    async def test_a_dial_to_nobody_fails_and_names_the_address(
        self, dialer: Transport, listener: Listener
    ) -> None:
        address = listener.addresses[0]
        await listener.aclose()
        with pytest.raises(DialError, match=str(address)):
            await dialer.dial(address)

    async def test_a_taken_address_is_refused_in_a_sentence(
        self, listening: Transport, listener: Listener
    ) -> None:
        with pytest.raises(AddressInUseError, match=r"taken.*another port"):
            await listening.listen(listener.addresses[0])

    async def test_an_address_is_free_again_once_its_listener_is_closed(
        self, listening: Transport, listener: Listener, pair: tuple[RawConnection, RawConnection]
    ) -> None:
        ours, theirs = (each.stream for each in pair)
        address = listener.addresses[0]
        await listener.aclose()
        again = await listening.listen(address)
        await again.aclose()
        await ours.send_all(b"x")  # accepted connections live on
        assert await theirs.receive_some() == b"x"

    async def test_closing_a_listener_wakes_whoever_waits_in_accept(
        self, listener: Listener
    ) -> None:
        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await wait_all_tasks_blocked()
            await listener.aclose()

    async def test_connections_nobody_accepted_end_with_their_listener(
        self, dialer: Transport, listener: Listener
    ) -> None:
        ours = await dial(dialer, listener.addresses[0])
        await listener.aclose()
        with trio.fail_after(5):
            # Cut rather than closed is as good.
            with contextlib.suppress(trio.BrokenResourceError):
                assert await ours.stream.receive_some() == b""
        await cut(ours)

    async def test_a_cancelled_accept_loses_no_connection(
        self, dialer: Transport, listener: Listener
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await cut(*await connect(dialer, listener))
