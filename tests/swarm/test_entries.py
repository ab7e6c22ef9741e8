from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.errors import InvalidUidError, ProtocolError
from p2pnode.swarm.entries import (
    MAX_ADDRESSES,
    MAX_CLOSED_BYTES,
    MAX_LIFETIME,
    MAX_OPEN_BYTES,
    MAX_THROUGHPUT_STEP,
    Entry,
    open_entry,
    seal_entry,
    told,
)
from p2pnode.swarm.places import NAMESPACE, SPAN, Kind, Place
from p2pnode.wire.envelope import signed_bytes
from p2pnode.wire.keys import PrivateKey

NOW = 1_700_000_000.0
PLACE = Place("open:digits", Kind.HOSTS, "ffn", 0)
BRANCH = replace(PLACE, kind=Kind.BRANCHES)
CLOSED = replace(PLACE, run_id="7Zb1")
KEY = PrivateKey.from_seed(bytes(32))
ADDRESS = Multiaddr("/ip4/127.0.0.1/tcp/4001")
ENTRY = Entry(
    peer_id=KEY.peer_id,
    served=0b10000111,
    withdrawn=0b1000,
    issued=NOW + 0.123,
    lifetime=10.0,
    load=3,
    throughput=told(100.0),
    addresses=(ADDRESS,),
)
BODY = [b"\x87", b"\x08", 1_700_000_000_123, 10_000, 3, 266, [ADDRESS.to_bytes()], b""]


def _signed(body, place=PLACE, key=KEY):
    packed = msgpack.packb(body)
    signature = key.sign(signed_bytes(NAMESPACE, place.key, packed))
    return msgpack.packb([key.public_key.protobuf, packed, signature])


def _changed(position, value):
    return _signed([value if n == position else each for n, each in enumerate(BODY)])


def test_an_entry_reads_back_as_it_was_sealed():
    assert open_entry(PLACE, seal_entry(KEY, PLACE, ENTRY)) == ENTRY
    alive = replace(ENTRY, withdrawn=0, load=0, throughput=0.0, addresses=())
    assert open_entry(BRANCH, seal_entry(KEY, BRANCH, alive)) == alive
    member = replace(ENTRY, token=bytes(700))
    assert open_entry(CLOSED, seal_entry(KEY, CLOSED, member)) == member
    withdrawal = replace(ENTRY, served=0)
    assert open_entry(PLACE, seal_entry(KEY, PLACE, withdrawal)) == withdrawal
    assert open_entry(PLACE, _signed(BODY)) == ENTRY  # or the malformed ones below prove nothing


def test_an_entry_has_the_bytes_it_always_had():
    sealed = seal_entry(KEY, PLACE, ENTRY)
    assert sealed == _signed(BODY)
    assert sealed.hex() == (
        "93c424080112203b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
        # the body: served, withdrawn, issued, lifetime, load, throughput, addresses, token
        "c42498c40187c40108cf0000018bcfe5687bcd271003cd010a91c408047f000001060fa1c400"
        "c440184324731c630d494b4ec7d7ea02619048606e46a7b9017811e377fbbedacecc"
        "fed0b0041eb59ea3eccec96e8c08fdd30ba087e328680183c448485e3ea09505"
    )


@given(st.integers(0, 2**SPAN - 1), st.integers(0, 2**SPAN - 1), st.integers(1, 3_600_000))
def test_every_set_of_coordinates_reads_back(served, withdrawn, lifetime):
    withdrawn &= ~served
    entry = replace(ENTRY, served=served, withdrawn=withdrawn, lifetime=lifetime / 1000)
    sealed = seal_entry(KEY, PLACE, entry)
    if served | withdrawn:
        assert open_entry(PLACE, sealed) == entry
    else:
        with pytest.raises(ProtocolError, match="nothing"):
            open_entry(PLACE, sealed)


def test_an_entry_of_sixteen_experts_is_small():
    entry = replace(ENTRY, served=0xFFFF << 112, withdrawn=0)
    assert len(seal_entry(KEY, PLACE, entry)) <= 160
    assert len(seal_entry(KEY, BRANCH, replace(entry, load=0, throughput=0.0, addresses=()))) <= 150


@given(st.floats(0.1, 1e8))
def test_a_throughput_is_told_to_some_two_per_cent(throughput):
    entry = replace(ENTRY, throughput=throughput)
    read = open_entry(PLACE, seal_entry(KEY, PLACE, entry)).throughput
    assert read == told(throughput) == told(read)
    assert read == pytest.approx(throughput, rel=0.025)


def test_a_throughput_beyond_all_machines_is_cut_off_and_none_is_none():
    assert told(1e300) == told(2.0**40) == pytest.approx(2**40 / 1000)
    assert told(0.0) == 0.0


def test_addresses_that_do_not_fit_are_left_out_the_last_ones_first():
    long = Multiaddr(f"/dns4/{'x' * 60}.example/tcp/4001")
    addresses = (ADDRESS, *[long] * 12)
    sealed = seal_entry(KEY, PLACE, replace(ENTRY, addresses=addresses))
    assert len(sealed) <= MAX_OPEN_BYTES
    kept = open_entry(PLACE, sealed).addresses
    assert kept == addresses[: len(kept)]
    assert 2 <= len(kept) < MAX_ADDRESSES
    many = replace(ENTRY, addresses=(ADDRESS,) * 12)
    assert len(open_entry(PLACE, seal_entry(KEY, PLACE, many)).addresses) == MAX_ADDRESSES


def test_a_token_too_long_to_announce_says_what_to_do():
    with pytest.raises(InvalidUidError, match="invite of your own"):
        seal_entry(KEY, CLOSED, replace(ENTRY, token=bytes(MAX_CLOSED_BYTES)))


@pytest.mark.parametrize(
    "sealed",
    [
        _changed(0, b"\x87\x00"),
        _changed(0, bytes(16) + b"\x01"),
        _changed(0, 0x87),
        _changed(1, b"\x01"),  # both served and withdrawn
        _changed(2, -1),
        _changed(2, 2**53),
        _changed(2, 1.5),
        _changed(2, True),
        _changed(3, 0),
        _changed(3, int(MAX_LIFETIME * 1000) + 1),
        _changed(4, -1),
        _changed(4, 2**31),
        _changed(5, -1),
        _changed(5, MAX_THROUGHPUT_STEP + 1),
        _changed(5, 1.5),
        _changed(6, [1]),
        _changed(6, [b""] * (MAX_ADDRESSES + 1)),
        _changed(7, None),
        _changed(7, bytes(MAX_OPEN_BYTES)),
        _signed(BODY[:-1]),
        _signed([*BODY, 0]),
        _signed({}),
        _signed(BODY, BRANCH),
        _signed(BODY, replace(PLACE, prefix="ffn.0")),
        _signed(BODY, replace(PLACE, shard=1)),
        _signed(BODY, CLOSED),
        msgpack.packb([KEY.public_key.protobuf, msgpack.packb(BODY), bytes(64)]),
        msgpack.packb([b"nobody", msgpack.packb(BODY), bytes(64)]),
        msgpack.packb([KEY.public_key.protobuf, msgpack.packb(BODY)]),
        b"\xdc\x00\x03" + _signed(BODY)[1:],  # the same list with a longer length
        b"\xc1",
        b"",
    ],
)
def test_a_malformed_entry_is_refused(sealed):
    with pytest.raises(ProtocolError):
        open_entry(PLACE, sealed)


@pytest.mark.parametrize(
    "change", [{"load": 1}, {"throughput": 1.0}, {"addresses": (ADDRESS,)}, {"withdrawn": 8}]
)
def test_a_branch_is_only_said_to_live(change):
    alive = {"load": 0, "throughput": 0.0, "addresses": (), "withdrawn": 0}
    entry = replace(ENTRY, **(alive | change))
    with pytest.raises(ProtocolError, match="branch"):
        open_entry(BRANCH, seal_entry(KEY, BRANCH, entry))


@given(st.binary(max_size=300))
def test_any_bytes_are_an_entry_or_refused(data):
    with pytest.raises(ProtocolError):
        open_entry(PLACE, data)


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(1, 255))
def test_a_changed_entry_is_never_taken_for_another(garbage, position, flip):
    sealed = bytearray(seal_entry(KEY, PLACE, ENTRY))
    sealed[position % len(sealed)] ^= flip
    for data in (bytes(sealed), seal_entry(KEY, PLACE, ENTRY) + (garbage or b"\0")):
        with pytest.raises(ProtocolError):
            open_entry(PLACE, data)
