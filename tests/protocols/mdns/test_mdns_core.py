import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.mdns.core import (
    MAX_SHARED_BYTES,
    MAX_TEXT_BYTES,
    build_text,
    compose,
    read_texts,
    within_reach,
)
from p2pnode.wire.addresses import ip_of, parse_address, tcp_address, with_p2p
from p2pnode.wire.keys import PrivateKey

A, B = (PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in (1, 2))
LAN = tcp_address("192.168.1.5", 4001)
LOOPBACK = tcp_address("127.0.0.1", 4001)
RELAYED = parse_address(f"/ip4/8.8.8.8/tcp/1/p2p/{B}/p2p-circuit")


def entry(text):
    data = text if isinstance(text, bytes) else text.encode()
    return bytes([len(data)]) + data


def test_a_text_is_what_the_specification_shows():
    text = f"dnsaddr=/ip4/192.168.1.5/tcp/4001/p2p/{A}"
    assert build_text(A, [LAN]) == bytes([len(text)]) + text.encode()


def test_what_is_built_is_read():
    told = read_texts([build_text(A, [LAN, LOOPBACK])], limit=8)
    assert (told.peer_id, told.addresses) == (A, (LAN, LOOPBACK))


def test_one_record_for_each_address_reads_the_same():
    told = read_texts([build_text(A, [LAN]), build_text(A, [LOOPBACK])], limit=8)
    assert told.addresses == (LAN, LOOPBACK)


def test_of_several_peers_in_one_name_the_first_counts():
    told = read_texts([build_text(A, [LAN]), build_text(B, [LOOPBACK])], limit=8)
    assert (told.peer_id, told.addresses) == (A, (LAN,))


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [b""],
        [b"\x00"],
        [entry("dnsaddr=")],
        [entry("dnsaddr=/nowhere")],
        [entry(f"dnsaddr={LAN}")],  # of nobody
        [entry(f"DNSADDR={with_p2p(LAN, A)}")],
        [entry(f"dnsaddr=/dns4/node.example/tcp/1/p2p/{A}")],  # would send us to a name server
        [entry(f"dnsaddr={RELAYED}/p2p/{A}")],
        [entry(b"dnsaddr=\xff\xfe")],
        [entry(f"dnsaddr={with_p2p(LAN, A)}")[:-1]],
    ],
)
def test_what_says_nothing_of_use_is_passed_over(texts):
    assert read_texts(texts, limit=8) is None


def test_what_cannot_be_read_does_not_hide_the_rest():
    told = read_texts([entry("model=x") + entry("dnsaddr=?") + build_text(A, [LAN])], limit=8)
    assert told.addresses == (LAN,)


def test_only_so_many_addresses_are_taken():
    texts = [build_text(A, [tcp_address("192.168.1.5", port)]) for port in range(1, 30)]
    assert len(read_texts(texts, limit=8).addresses) == 8


@given(st.lists(st.binary(max_size=600), max_size=8))
def test_any_bytes_are_passed_over_or_read(texts):
    told = read_texts(texts, limit=8)
    assert told is None or told.addresses


@given(
    st.lists(
        st.text(max_size=40).map(
            lambda text: entry(f"dnsaddr=/ip4/{text}/p2p/{A}"[:255].encode()[:255])
        ),
        max_size=8,
    )
)
def test_any_address_is_passed_over_or_read(texts):
    told = read_texts(texts, limit=8)
    assert told is None or told.peer_id


def test_endless_texts_cost_bounded_time():
    flood = build_text(A, [LAN]) * 10_000
    told = read_texts([flood, build_text(A, [LOOPBACK])], limit=8)
    assert len(flood) > MAX_TEXT_BYTES
    assert told.addresses == (LAN,)


addresses = st.builds(
    lambda ip, port: tcp_address(str(ip), port), st.ip_addresses(), st.integers(1, 65535)
)


@given(st.lists(addresses, max_size=15, unique=True))
def test_what_is_said_fits_into_a_packet_and_arrives_in_order(listening):
    text = build_text(A, listening)
    assert len(text) <= MAX_SHARED_BYTES
    told = read_texts([text], limit=100)
    arrived = told.addresses if told else ()
    assert arrived == tuple(each for each in listening if each in arrived)
    assert len(arrived) == text.count(b"dnsaddr=") >= min(len(listening), 7)


def compose_from(*listening):
    return compose(A, [parse_address(each) for each in listening])


def test_the_interfaces_are_those_of_the_listen_addresses():
    ours = compose_from("/ip4/192.168.1.5/tcp/1", "/ip4/192.168.1.5/tcp/2/ws", "/ip6/fd00::5/tcp/1")
    assert [str(ip) for ip in ours.interfaces] == ["192.168.1.5", "fd00::5"]
    assert len(read_texts([ours.text], limit=9).addresses) == 3


def test_a_node_on_loopback_speaks_there_only():
    ours = compose_from("/ip4/127.0.0.1/tcp/1")
    assert [ip.is_loopback for ip in ours.interfaces] == [True]
    assert read_texts([ours.text], limit=9).addresses == (parse_address("/ip4/127.0.0.1/tcp/1"),)


def test_a_node_on_a_network_keeps_its_loopback_to_itself():
    ours = compose_from("/ip4/192.168.1.5/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1")
    assert [str(ip) for ip in ours.interfaces] == ["192.168.1.5"]
    assert len(read_texts([ours.text], limit=9).addresses) == 1


@pytest.mark.parametrize(
    "listening", [[], ["/ip6/::1/tcp/1"], ["/dns4/us.example/tcp/1"], [str(RELAYED)]]
)
def test_a_node_that_listens_nowhere_on_a_network_says_nothing(listening):
    assert compose_from(*listening) is None


def test_a_network_means_no_loopback_and_loopback_no_network():
    heard = [LAN, LOOPBACK]
    assert within_reach(heard, [ip_of(LAN)]) == (LAN,)
    assert within_reach(heard, [ipaddress.ip_address("127.0.0.1")]) == (LOOPBACK,)
