"""What the addresses of every transport must be."""

import re

import pytest
from multiaddr import Multiaddr

from p2pnode.errors import DialError, InvalidAddressError
from p2pnode.testing.conformance.transports.suite import TransportSuite
from p2pnode.testing.conformance.transports.traffic import accept, cut, dial
from p2pnode.transport.base import Listener, RawConnection, Transport
from p2pnode.wire.addresses import is_loopback, parse_address


class AddressTests(TransportSuite):
    """A transport knows its own addresses from others, and both ends name them alike."""

    async def test_both_ends_agree_on_the_addresses(
        self, pair: tuple[RawConnection, RawConnection], listener: Listener
    ) -> None:
        ours, theirs = pair
        assert ours.remote_address == theirs.local_address == listener.addresses[0]
        assert ours.local_address == theirs.remote_address

    async def test_port_zero_becomes_a_real_and_fresh_port(
        self, listening: Transport, listener: Listener
    ) -> None:
        second = await listening.listen(self.listen_address(listening))
        ports = {_port(each.addresses[0]) for each in (listener, second)}
        assert len(ports) == 2
        assert "0" not in ports
        await second.aclose()

    async def test_a_wildcard_listener_names_addresses_that_can_be_dialled(
        self, wildcard_address: Multiaddr, dialer: Transport, listening: Transport
    ) -> None:
        listener = await listening.listen(wildcard_address)
        assert is_loopback(listener.addresses[-1])
        for address in listener.addresses:
            ours = await dial(dialer, address)
            theirs = await accept(listener)
            assert (theirs.local_address, theirs.remote_address) == (address, ours.local_address)
            await cut(ours, theirs)
        await listener.aclose()

    @pytest.mark.parametrize(
        "text",
        [
            "/dns4/localhost/tcp/1",
            "/ip4/192.0.2.77/tcp/0",
            "/ip4/127.0.0.1/udp/1",
        ],
    )
    async def test_what_is_no_address_of_this_machine_cannot_be_listened_on(
        self, listening: Transport, text: str
    ) -> None:
        address = _like(self.listen_address(listening), text)
        with pytest.raises(InvalidAddressError, match=str(address)):
            await listening.listen(address)

    async def test_addresses_of_other_transports_are_neither_dialled_nor_listened_on(
        self, dialer: Transport, listening: Transport
    ) -> None:
        for text in self.foreign:
            address = parse_address(text)
            assert not dialer.can_dial(address)
            with pytest.raises(DialError, match=text):
                await dialer.dial(address)
            with pytest.raises(InvalidAddressError, match=text):
                await listening.listen(address)

    async def test_an_address_with_a_name_is_understood_but_must_be_resolved_first(
        self, named_address: Multiaddr, dialer: Transport, listening: Transport
    ) -> None:
        assert dialer.can_dial(named_address)
        with pytest.raises(DialError, match=str(named_address)):
            await dialer.dial(named_address)
        with pytest.raises(InvalidAddressError, match=str(named_address)):
            await listening.listen(named_address)

    async def test_its_own_addresses_can_be_dialled(
        self, dialer: Transport, listener: Listener
    ) -> None:
        assert all(dialer.can_dial(each) for each in listener.addresses)


def _port(address: Multiaddr) -> str:
    """Return the port of an address of any kind."""
    return str(list(address.items())[1][1])


def _like(model: Multiaddr, text: str) -> Multiaddr:
    """Write an address of TCP as one of the kind of `model`, and one of UDP as one of another."""
    if model.protocols()[1].name == "udp":
        other = {"/tcp/": "/udp/", "/udp/": "/tcp/"}
        text = re.sub("/(tcp|udp)/", lambda found: other[found[0]], text)
    return Multiaddr(text + "".join(map(str, model.split()[2:])))
