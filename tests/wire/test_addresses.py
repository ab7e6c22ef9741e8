import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.errors import InvalidAddressError
from p2pnode.wire import addresses
from p2pnode.wire.addresses import (
    is_loopback,
    name_of,
    parse_address,
    peer_address,
    read_address,
    read_addresses,
    split_p2p,
    tcp_address,
    with_ip,
    with_p2p,
)
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

ID = "12D3KooWRawPbxPtP1eZaJpumGnyWX2DcUyd3RQnydr3eAto4Az7"
PEER = PeerId.from_text(ID)


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("/ip4/127.0.0.1/tcp/4001", "047f000001060fa1"),
        ("/ip6/::1/tcp/1", "2900000000000000000000000000000001060001"),
        ("/dns4/example.org/tcp/443", "360b6578616d706c652e6f72670601bb"),
        (f"/ip4/1.2.3.4/tcp/1/p2p/{ID}", "0401020304060001a50326" + bytes(PEER).hex()),
    ],
)
def test_known_addresses_have_the_bytes_of_the_specification(text, encoded):
    address = parse_address(text)
    assert address.to_bytes().hex() == encoded
    assert read_address(bytes.fromhex(encoded)) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "localhost:4001",
        "/ip4/1.2.3/tcp/1",
        "/ip4/1.2.3.4/tcp",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip4/1.2.3.4/tcp/-1",
        "/carrier-pigeon/1",
        "/dns4//tcp/1",
        "/ip6zone/eth0/ip6/fe80::1/tcp/1",
        "/dns4/exa mple/tcp/1",
        "/ip4/1.2.3.4/tcp/1/p2p/Qmxx",
        "/dns4/" + "a" * 2000 + "/tcp/1",
    ],
)
def test_what_is_not_an_address_is_refused_in_one_sentence(text):
    with pytest.raises(InvalidAddressError, match="not a multiaddr") as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_refused_or_read_into_a_stable_form(text):
    try:
        address = parse_address(text)
    except InvalidAddressError:
        return
    assert parse_address(str(address)) == address


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_are_an_address_with_a_text(data):
    try:
        address = read_address(data)
    except InvalidAddressError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "encoded", ["", "047f", "350561", "ffff", "84007f000001060001", "04" * 2000]
)
def test_malformed_and_padded_bytes_are_refused(encoded):
    with pytest.raises(InvalidAddressError):
        read_address(bytes.fromhex(encoded))


def test_unreadable_addresses_among_others_are_left_out_and_the_rest_is_bounded():
    good = [tcp_address("10.0.0.1", port).to_bytes() for port in range(1, 6)]
    found = read_addresses([good[0], b"\xff\xff", good[0], *good[1:]], limit=3)
    assert [each.to_bytes() for each in found] == good[:3]


def test_the_peer_is_split_off_and_put_back():
    address = parse_address(f"/ip4/1.2.3.4/tcp/1/p2p/{ID}")
    rest, peer_id = split_p2p(address)
    assert (str(rest), peer_id) == ("/ip4/1.2.3.4/tcp/1", PEER)
    assert with_p2p(rest, peer_id) == address
    assert split_p2p(rest) == (rest, None)


def test_behind_a_relay_the_last_peer_is_the_one_who_must_answer():
    other = PrivateKey.from_seed(bytes(32)).peer_id
    text = f"/ip4/1.2.3.4/tcp/1/p2p/{ID}/p2p-circuit/p2p/{other}"
    rest, peer_id = split_p2p(parse_address(text))
    assert peer_id == other
    assert str(rest) == f"/ip4/1.2.3.4/tcp/1/p2p/{ID}/p2p-circuit"


def test_a_peer_written_as_a_cid_is_the_same_address():
    cid = "bafzaajaiaejcb2sknrr6fhcsbk7pkud3cmxml6mvi53k5pv6pojeehxknekenurm"
    assert parse_address(f"/ip4/1.2.3.4/tcp/1/p2p/{cid}") == parse_address(
        f"/ip4/1.2.3.4/tcp/1/p2p/{ID}"
    )


def test_a_peer_address_needs_both_a_place_and_a_peer():
    assert peer_address(f"/ip4/1.2.3.4/tcp/1/p2p/{ID}") == (PEER, Multiaddr("/ip4/1.2.3.4/tcp/1"))
    with pytest.raises(InvalidAddressError, match="does not end in /p2p/"):
        peer_address("/ip4/1.2.3.4/tcp/1")
    with pytest.raises(InvalidAddressError, match="no place to dial"):
        peer_address(f"/p2p/{ID}")


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("1.2.3.4", "/ip4/1.2.3.4/tcp/9"),
        ("2001:db8:0::1", "/ip6/2001:db8::1/tcp/9"),
        ("fe80::1%eth0", "/ip6/fe80::1/tcp/9"),
    ],
)
def test_socket_names_become_addresses(host, text):
    assert str(tcp_address(host, 9)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/ip4/127.8.0.1/tcp/1", True),
        ("/ip6/::1/tcp/1", True),
        ("/ip4/10.0.0.1/tcp/1", False),
        ("/dns4/localhost/tcp/1", False),
    ],
)
def test_loopback_addresses_are_told_apart(text, expected):
    assert is_loopback(parse_address(text)) is expected


def test_an_address_without_an_ip_has_none():
    assert addresses.ip_of(parse_address("/dns4/example.org/tcp/1")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/dns/a.example/tcp/1", ("dns", "a.example")),
        ("/dns6/a.example/tcp/1/ws", ("dns6", "a.example")),
        (f"/dnsaddr/a.example/p2p/{ID}", ("dnsaddr", "a.example")),
        ("/ip4/1.2.3.4/tcp/1/tls/sni/a.example/ws", None),
        (f"/p2p/{ID}", None),
    ],
)
def test_the_name_of_an_address_stands_at_its_beginning(text, expected):
    assert name_of(parse_address(text)) == expected


@pytest.mark.parametrize(
    ("text", "ip", "expected"),
    [
        ("/dns4/a.example/tcp/1", "1.2.3.4", "/ip4/1.2.3.4/tcp/1"),
        ("/dns/a.example/tcp/1/ws", "::1", "/ip6/::1/tcp/1/ws"),
        ("/dns/a.example/tcp/1/wss", "::1", "/ip6/::1/tcp/1/tls/sni/a.example/ws"),
        ("/dns/a.example/tcp/1/tls/ws", "::1", "/ip6/::1/tcp/1/tls/sni/a.example/ws"),
        ("/dns/a.example/tcp/1/tls/sni/b/ws", "::1", "/ip6/::1/tcp/1/tls/sni/b/ws"),
        (
            f"/dns4/a.example/tcp/1/wss/p2p/{ID}",
            "1.2.3.4",
            f"/ip4/1.2.3.4/tcp/1/tls/sni/a.example/ws/p2p/{ID}",
        ),
    ],
)
def test_a_name_gives_way_to_its_ip_and_stays_known_to_tls(text, ip, expected):
    assert str(with_ip(parse_address(text), ipaddress.ip_address(ip))) == expected


def test_only_a_name_gives_way_to_an_ip():
    with pytest.raises(ValueError, match="does not start with a name"):
        with_ip(tcp_address("1.2.3.4", 1), ipaddress.ip_address("::1"))


@pytest.mark.parametrize("tail", ["/ws", "/wss", "/tls/ws", "/tls/sni/a.example/ws"])
def test_the_ip_of_a_websocket_address_is_known(tail):
    assert is_loopback(parse_address(f"/ip6/::1/tcp/1{tail}"))
    assert not is_loopback(parse_address(f"/ip4/192.0.2.1/tcp/1{tail}"))
