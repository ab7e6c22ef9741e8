import random
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.errors import InvalidUidError, NotAMemberError, ProtocolError
from p2pnode.swarm import index as index_module
from p2pnode.swarm.index import (
    MAX_COORDINATES,
    MAX_ENTRIES,
    MAX_ENTRY_BYTES,
    MAX_LIFETIME,
    MAX_RANGES,
    MAX_SKEW,
    NAMESPACE,
    IndexEntry,
    IndexValidator,
    decode_index,
    encode_index,
    index_key,
    open_entry,
    seal_entry,
    to_ranges,
)
from p2pnode.wire.envelope import seal
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import MAX_COORDINATE

NOW = 1_700_000_000.0
RUN, CLOSED = "open:digits", "7Zb1"
KEY = index_key(RUN, "ffn0")
KEYS = [PrivateKey.from_seed(bytes([n]) * 32) for n in range(8)]
ADDRESS = Multiaddr("/ip4/127.0.0.1/tcp/4001")


def _entry(number: int = 0, **changes) -> IndexEntry:
    fields = {
        "run_id": RUN,
        "prefix": "ffn0",
        "coordinates": (0, 1, 2, 7),
        "peer_id": KEYS[number].peer_id,
        "addresses": (ADDRESS,),
        "expiry": NOW + 10,
        "seq": 1,
        "load": 3,
    }
    return IndexEntry(**(fields | changes))


def _sealed(number: int = 0, **changes) -> bytes:
    return seal_entry(KEYS[number], _entry(number, **changes))


def _payload(**changes):
    """Seal a payload with some fields replaced, by position."""
    entry = _entry()
    fields = [1, RUN, "ffn0", [0, 3, 7, 1], bytes(entry.peer_id), [], int(NOW * 1000), 1, 0, b""]
    for position, value in changes.items():
        fields[int(position[1:])] = value
    return seal(KEYS[0], NAMESPACE, b"/p2pnode/index/1", msgpack.packb(fields))


def _verify(token, run_id, peer_id, now):
    if token != b"member" or run_id != CLOSED:
        raise NotAMemberError("not a member")
    return NOW + 20


@pytest.fixture
def index():
    return IndexValidator(_verify)


def test_an_entry_reads_back_as_it_was_sealed():
    assert open_entry(_sealed()) == _entry()
    withdrawal = replace(_entry(), coordinates=(), addresses=())
    assert open_entry(seal_entry(KEYS[0], withdrawal)) == withdrawal


def test_an_entry_has_the_bytes_it_always_had():
    public_key = "080112203b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
    payload = (
        "9a01ab6f70656e3a646967697473a466666e309400030701"  # version, run, prefix, ranges
        f"c4260024{public_key}91c408047f000001060fa1"  # peer, addresses
        "cf0000018bcfe58f100103c40174"  # expiry, seq, load, token
    )
    signature = (
        "cc38204624b894a3313a48c70a72d220e116e2d014b5585816671c4c1f26e9ba"
        "40db01a908f8f341bc53ce4f1cce0341444b6bb83f75d1b79a2aa218b6d63706"
    )
    kind = b"/p2pnode/index/1".hex()
    assert _sealed(token=b"t").hex() == (f"0a24{public_key}1210{kind}1a59{payload}2a40{signature}")
    assert encode_index([b"ab", b""]).hex() == "92c4026162c400"
    assert KEY == b"/p2pnode-index/open:digits/ffn0"


@given(st.sets(st.integers(0, MAX_COORDINATE), max_size=MAX_RANGES))
def test_every_set_of_coordinates_reads_back(coordinates):
    entry = _entry(coordinates=tuple(sorted(coordinates)))
    envelope = seal_entry(KEYS[0], entry)
    assert len(envelope) <= MAX_ENTRY_BYTES
    assert open_entry(envelope).coordinates == entry.coordinates


def test_neighbouring_coordinates_share_a_range():
    assert to_ranges([5, 4, 3, 9, 0]) == [0, 1, 3, 3, 9, 1]
    assert to_ranges(range(MAX_COORDINATES)) == [0, MAX_COORDINATES]
    with pytest.raises(InvalidUidError, match="neighbouring"):
        to_ranges(range(MAX_COORDINATES + 1))
    with pytest.raises(InvalidUidError, match="neighbouring"):
        to_ranges(range(0, 2 * MAX_RANGES + 1, 2))


@pytest.mark.parametrize(
    "envelope",
    [
        _payload(_0=2),
        _payload(_1=b"bytes"),
        _payload(_3=[0]),
        _payload(_3=[3, 1, 0, 1]),
        _payload(_3=[0, 1, 1, 1]),  # one range, written as two
        _payload(_3=[0, 0]),
        _payload(_3=[-1, 2]),
        _payload(_3=[True, 1]),
        _payload(_3=[MAX_COORDINATE, 2]),
        _payload(_3=[0, MAX_COORDINATES + 1]),
        _payload(_3=[0, 2**60]),
        _payload(_4=b"nobody"),
        _payload(_4=bytes(KEYS[1].peer_id)),
        _payload(_5=[1]),
        _payload(_5=[b""] * 9),
        _payload(_6=-1),
        _payload(_6=1.5),
        _payload(_7=2**63),
        _payload(_8=2**31),
        _payload(_9=None),
        _payload(_9=bytes(MAX_ENTRY_BYTES)),
        seal(KEYS[0], NAMESPACE, b"/p2pnode/index/1", b"\xc1"),
        seal(KEYS[0], NAMESPACE, b"/p2pnode/index/1", msgpack.packb([1])),
        seal(KEYS[0], NAMESPACE, b"other", b"\x90"),
        seal(KEYS[0], "other", b"/p2pnode/index/1", b"\x90"),
        b"",
    ],
)
def test_a_malformed_entry_is_refused(envelope):
    with pytest.raises(ProtocolError):
        open_entry(envelope)


def test_an_unchanged_payload_is_accepted():
    assert open_entry(_payload()).coordinates == (0, 1, 2, 7)  # or the cases above prove nothing


@given(st.binary(max_size=300))
def test_any_bytes_are_an_entry_or_refused(data):
    with pytest.raises(ProtocolError):
        open_entry(data)


@given(st.binary(max_size=100))
def test_any_bytes_are_an_index_or_refused(data):
    index = IndexValidator(_verify)
    try:
        envelopes = decode_index(data)
    except ProtocolError:
        return
    assert decode_index(encode_index(envelopes)) == envelopes
    if envelopes:
        with pytest.raises(ProtocolError):
            index.validate(KEY, data, NOW)


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(1, 255))
def test_a_changed_entry_is_never_taken_for_another(garbage, position, flip):
    envelope = bytearray(_sealed())
    envelope[position % len(envelope)] ^= flip
    for data in (bytes(envelope), _sealed() + garbage):
        try:
            assert open_entry(data) == _entry()
        except ProtocolError:
            continue


def test_an_index_of_too_many_entries_is_refused(index):
    with pytest.raises(ProtocolError, match="above"):
        index.validate(KEY, encode_index([b""] * (MAX_ENTRIES + 1)), NOW)


@pytest.mark.parametrize(
    ("key", "envelope"),
    [
        (index_key(RUN, "ffn1"), _sealed()),
        (index_key("open:other", "ffn0"), _sealed()),
        (b"/p2pnode-index/open:digits", _sealed()),
        (b"/p2pnode-index/open:digits/ffn0/1", _sealed()),
        (b"/p2pnode-index/open:digits/\xff", _sealed()),
        (b"/p2pnode-index/open:digits/ffn0.01", _sealed()),
        (KEY, _sealed(expiry=NOW + MAX_LIFETIME + MAX_SKEW + 1)),
        (KEY, _sealed(token=b"member")),  # an open run has no members
        (index_key(CLOSED, "ffn0"), _sealed(run_id=CLOSED)),
        (index_key(CLOSED, "ffn0"), _sealed(run_id=CLOSED, token=b"forged")),
        (index_key(CLOSED, "ffn0"), _sealed(run_id=CLOSED, token=b"member", expiry=NOW + 21)),
        (index_key("7Zb2", "ffn0"), _sealed(run_id="7Zb2", token=b"member")),
    ],
)
def test_an_entry_in_the_wrong_place_or_without_right_is_refused(index, key, envelope):
    with pytest.raises(ProtocolError):
        index.validate(key, encode_index([envelope]), NOW)


def test_members_of_a_closed_run_are_let_in_until_their_membership_ends(index):
    key = index_key(CLOSED, "ffn0")
    value = encode_index([_sealed(run_id=CLOSED, token=b"member", expiry=NOW + 20)])
    index.validate(key, value, NOW)
    assert len(index.entries(value, NOW + 19)) == 1
    assert index.entries(value, NOW + 20) == []


def test_a_membership_is_verified_once_and_again_when_it_has_ended():
    calls = []

    def verify(token, run_id, peer_id, now):
        calls.append(now)
        return now + 5

    index = IndexValidator(verify)
    key = index_key(CLOSED, "ffn0")
    for now, seq in ((NOW, 1), (NOW + 4, 2), (NOW + 5, 3)):
        entry = _sealed(run_id=CLOSED, token=b"t", seq=seq, expiry=now + 1)
        index.validate(key, encode_index([entry]), now)
    assert calls == [NOW, NOW + 5]


def test_an_expired_entry_is_no_offence_but_is_dropped(index):
    value = encode_index([_sealed(expiry=NOW - 1)])
    index.validate(KEY, value, NOW)
    assert index.merge(KEY, [value], NOW) == b""
    assert index.expires(KEY, value) == NOW - 1


def test_the_highest_sequence_number_of_each_peer_wins(index):
    old, new = _sealed(seq=1), _sealed(seq=2, coordinates=(9,))
    other = _sealed(1)
    merged = index.merge(KEY, [encode_index([new]), encode_index([old, other])], NOW)
    assert sorted(decode_index(merged)) == sorted([new, other])
    assert index.expires(KEY, merged) == NOW + 10


def test_a_withdrawal_replaces_what_was_announced(index):
    gone = _sealed(seq=2, coordinates=())
    merged = index.merge(KEY, [encode_index([_sealed()]), encode_index([gone])], NOW)
    (entry,) = index.entries(merged, NOW)
    assert entry.coordinates == ()


def test_a_holder_lacks_missing_hosts_and_withdrawals_but_not_refreshes(index):
    both = encode_index([_sealed(), _sealed(1)])
    one, newer = encode_index([_sealed()]), encode_index([_sealed(seq=2)])
    gone = encode_index([_sealed(seq=3, coordinates=())])
    assert index.lacks(KEY, None, one, NOW)
    assert index.lacks(KEY, one, both, NOW)
    assert index.lacks(KEY, one, gone, NOW)
    assert not index.lacks(KEY, one, newer, NOW)
    assert not index.lacks(KEY, both, one, NOW)
    assert not index.lacks(KEY, None, gone, NOW)
    assert not index.lacks(KEY, gone, gone, NOW)
    assert not index.lacks(KEY, one, both, NOW + 11)


def test_a_merge_keeps_at_most_so_many_peers_and_a_different_choice_per_prefix():
    index = IndexValidator(_verify)
    keys = [PrivateKey.from_seed(n.to_bytes(32, "big")) for n in range(MAX_ENTRIES + 30)]
    kept = {}
    for prefix in ("ffn0", "ffn1"):
        entries = [
            seal_entry(key, _entry(peer_id=key.peer_id, prefix=prefix, addresses=()))
            for key in keys
        ]
        values = [encode_index(entries[:100]), encode_index(entries[100:])]
        merged = index.merge(index_key(RUN, prefix), values, NOW)
        kept[prefix] = {entry.peer_id for entry in index.entries(merged, NOW)}
        assert len(kept[prefix]) == len(decode_index(merged)) == MAX_ENTRIES
        index.validate(index_key(RUN, prefix), merged, NOW)
    assert kept["ffn0"] != kept["ffn1"]


ENVELOPES = [
    _sealed(number, seq=seq, expiry=NOW + ttl, coordinates=coordinates)
    for number in range(8)
    for seq, ttl, coordinates in ((1, 5, (0,)), (2, 3, (1,)), (2, 9, ()), (3, -1, (2,)))
]
LAWS = IndexValidator(_verify)
indexes = st.lists(st.sampled_from(ENVELOPES), max_size=12).map(encode_index)


@settings(max_examples=200)
@given(st.lists(indexes, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_merging_is_commutative_associative_and_idempotent(values, rng):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("p2pnode.swarm.index.MAX_ENTRIES", 12)
        _check_laws(values, rng, capped=5)


def _check_laws(values: list[bytes], rng: random.Random, capped: int) -> None:
    def merge(*parts: bytes) -> bytes:
        return LAWS.merge(KEY, [part for part in parts if part], NOW) if any(parts) else b""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("p2pnode.swarm.index.heapq.nsmallest", _capped_at(capped))
        whole = merge(*values)
        assert merge(whole) == whole
        assert merge(whole, *values) == whole
        shuffled = rng.sample(values, len(values))
        assert merge(*shuffled) == whole
        step = b""
        for value in shuffled:
            step = merge(step, value)
        assert step == whole
        cut = rng.randint(0, len(values))
        assert merge(merge(*values[:cut]), merge(*values[cut:])) == whole
        assert len(decode_index(whole) if whole else []) <= capped


def _capped_at(limit):
    def nsmallest(_count, items, key):
        return sorted(items, key=key)[:limit]

    return nsmallest


def test_small_entries_of_many_coordinates_do_not_fill_the_memory(index, monkeypatch):
    monkeypatch.setattr(index_module, "_MAX_OPENED_COORDINATES", 2 * MAX_COORDINATES)
    coordinates = tuple(range(MAX_COORDINATES))
    for seq in range(5):
        value = encode_index([_sealed(coordinates=coordinates, seq=seq)])
        assert len(value) < 400
        index.validate(KEY, value, NOW)
        (entry,) = index.entries(value, NOW)
        assert entry.coordinates == coordinates
        kept = [len(each.coordinates) for each in index._opened.values()]
        assert sum(kept) == index._opened_coordinates == min(seq + 1, 2) * MAX_COORDINATES
