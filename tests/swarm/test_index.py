import random
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.config import DhtSettings
from p2pnode.errors import NotAMemberError, ProtocolError
from p2pnode.swarm.entries import MAX_CLOSED_BYTES, MAX_OPEN_BYTES, Entry, seal_entry
from p2pnode.swarm.index import (
    BRANCHES,
    CLOSED_HOSTS,
    MAX_SKEW,
    OPEN_HOSTS,
    Bounds,
    EntryCache,
    IndexValidator,
    decode_index,
    encode_index,
)
from p2pnode.swarm.places import SPAN, Kind, Place
from p2pnode.wire.keys import PrivateKey

NOW = 1_700_000_000.0
PLACE = Place("open:digits", Kind.HOSTS, "ffn0", 0)
BRANCH = replace(PLACE, kind=Kind.BRANCHES)
CLOSED = replace(PLACE, run_id="7Zb1")
KEY = PLACE.key
KEYS = [PrivateKey.from_seed(n.to_bytes(32, "big")) for n in range(8)]
ADDRESS = Multiaddr("/ip4/127.0.0.1/tcp/4001")


def _sealed(number=0, place=PLACE, key=None, **changes):
    key = key or KEYS[number]
    fields = {"peer_id": key.peer_id, "served": 0b10000111, "issued": NOW, "lifetime": 10.0}
    if place.kind is Kind.HOSTS:
        fields["addresses"] = (ADDRESS,)
    return seal_entry(key, place, Entry(**(fields | changes)))


def _verify(token, run_id, peer_id, now):
    if token != b"member" or run_id != CLOSED.run_id:
        raise NotAMemberError("not a member")
    return NOW + 20


def _listed(index, value, place=PLACE, now=NOW):
    """Map each coordinate to the peers listed as serving it, the freshest first."""
    found = {}
    for entry, places in index.standing(place.key, value, now):
        for bit in range(SPAN):
            if places & entry.served & 1 << bit:
                found.setdefault(bit, []).append(entry.peer_id)
    return found


@pytest.fixture
def index():
    return IndexValidator(_verify)


@pytest.fixture
def crowd():
    """Keys of more peers than any record has places for."""
    return [PrivateKey.from_seed(n.to_bytes(32, "big")) for n in range(OPEN_HOSTS.places + 50)]


# --- what may stand there ------------------------------------------------------------------------


@given(st.binary(max_size=100))
def test_any_bytes_are_an_index_or_refused(data):
    index = IndexValidator(_verify)
    try:
        envelopes = decode_index(PLACE, data)
    except ProtocolError:
        return
    assert decode_index(PLACE, encode_index(envelopes)) == envelopes
    if envelopes:
        with pytest.raises(ProtocolError):
            index.validate(KEY, data, NOW)


@pytest.mark.parametrize(
    ("place", "bounds"), [(PLACE, OPEN_HOSTS), (CLOSED, CLOSED_HOSTS), (BRANCH, BRANCHES)]
)
def test_an_index_of_too_many_entries_is_refused(index, place, bounds):
    with pytest.raises(ProtocolError, match="above"):
        index.validate(place.key, encode_index([b""] * (bounds.places + 1)), NOW)


@pytest.mark.parametrize(
    ("place", "sealed"),
    [
        (replace(PLACE, prefix="ffn1"), _sealed()),
        (replace(PLACE, run_id="open:other"), _sealed()),
        (BRANCH, _sealed()),
        (PLACE, _sealed(place=BRANCH)),
        (PLACE, _sealed(issued=NOW + MAX_SKEW + 1)),
        (PLACE, _sealed(token=b"member")),  # an open run has no members
        (CLOSED, _sealed(place=CLOSED)),
        (CLOSED, _sealed(place=CLOSED, token=b"forged")),
        (CLOSED, _sealed(place=CLOSED, token=b"member", lifetime=21.0)),
        (
            replace(CLOSED, run_id="7Zb2"),
            _sealed(place=replace(CLOSED, run_id="7Zb2"), token=b"member"),
        ),
    ],
)
def test_an_entry_in_the_wrong_place_or_without_right_is_refused(index, place, sealed):
    with pytest.raises(ProtocolError):
        index.validate(place.key, encode_index([sealed]), NOW)
    index.validate(KEY, encode_index([_sealed(issued=NOW + MAX_SKEW)]), NOW)


def test_members_of_a_closed_run_are_let_in_until_their_membership_ends(index):
    value = encode_index([_sealed(place=CLOSED, token=b"member", lifetime=20.0)])
    index.validate(CLOSED.key, value, NOW)
    assert len(index.standing(CLOSED.key, value, NOW + 19)) == 1
    assert index.standing(CLOSED.key, value, NOW + 20) == []


def test_a_membership_is_verified_once_and_again_when_it_has_ended():
    calls = []

    def verify(token, run_id, peer_id, now):
        calls.append(now)
        return now + 5

    index = IndexValidator(verify)
    for now in (NOW, NOW + 4, NOW + 5):
        sealed = _sealed(place=CLOSED, token=b"t", issued=now, lifetime=1.0)
        index.validate(CLOSED.key, encode_index([sealed]), now)
    assert calls == [NOW, NOW + 5]


def test_a_signature_is_verified_once_for_all_who_share_a_cache():
    cache = EntryCache()
    indexes = [IndexValidator(_verify, cache) for _ in range(5)]
    value = encode_index([_sealed(n) for n in range(4)])
    for index in indexes:
        index.validate(KEY, value, NOW)
        merged = index.merge(KEY, [value, value], NOW)
        index.standing(KEY, merged, NOW)
        index.lacks(KEY, merged, value, NOW)
    assert cache.verified == 4


def test_the_memory_of_verified_entries_is_bounded():
    cache = EntryCache(limit=3)
    for n in range(8):
        cache.open(PLACE, _sealed(n))
    assert (len(cache), cache.verified) == (3, 8)


def test_a_full_record_fits_into_a_value_of_the_dht():
    most = DhtSettings().max_record_bytes
    overhead = 8  # the lengths of an entry and of the list
    assert OPEN_HOSTS.places * (MAX_OPEN_BYTES + overhead) < most
    assert CLOSED_HOSTS.places * (MAX_CLOSED_BYTES + overhead) < most
    assert BRANCHES.places * (MAX_CLOSED_BYTES + overhead) < most


# --- merging -------------------------------------------------------------------------------------


def test_an_expired_entry_is_no_offence_but_is_dropped(index):
    value = encode_index([_sealed(issued=NOW - 11)])
    index.validate(KEY, value, NOW)
    assert index.merge(KEY, [value], NOW) == b""
    assert index.expires(KEY, value) == NOW - 1


def test_what_was_merged_before_loses_its_entries_as_they_expire(index):
    value = encode_index([_sealed(), _sealed(1, lifetime=5.0)])
    merged = index.merge(KEY, [value, value], NOW)
    for now, left in ((NOW, 2), (NOW + 4.9, 2), (NOW + 5, 1), (NOW + 9.9, 1)):
        kept = index.merge(KEY, [merged], now)
        assert len(decode_index(PLACE, kept)) == left
        assert len(index.standing(KEY, merged, now)) == left
    assert index.merge(KEY, [merged], NOW + 10) == b""


def test_a_value_read_in_one_place_is_not_taken_for_one_of_another(index):
    value = encode_index([_sealed()])
    index.validate(KEY, value, NOW)
    index.merge(KEY, [value], NOW)
    with pytest.raises(ProtocolError):
        index.merge(replace(PLACE, prefix="ffn1").key, [value], NOW)


def test_the_memory_of_values_is_bounded(index):
    for n in range(40):
        index.merge(KEY, [encode_index([_sealed(issued=NOW + n / 100)])], NOW)
    assert len(index._values) == 16


def test_of_each_peer_what_it_said_last_of_a_coordinate_counts(index):
    old, new = _sealed(served=0b011), _sealed(issued=NOW + 1, served=0b100, withdrawn=0b010)
    merged = index.merge(KEY, [encode_index([new]), encode_index([old, _sealed(1)])], NOW)
    listed = _listed(index, merged)
    ours = KEYS[0].peer_id
    assert [bit for bit, peers in listed.items() if ours in peers] == [2, 0]
    again = index.merge(KEY, [merged, encode_index([_sealed(issued=NOW + 2, served=0b1)])], NOW)
    assert [bit for bit, peers in _listed(index, again).items() if ours in peers] == [0, 2]
    assert index.expires(KEY, merged) == NOW + 11


def test_an_entry_that_says_nothing_any_more_is_dropped(index):
    old, new = _sealed(), _sealed(issued=NOW + 1)
    assert decode_index(PLACE, index.merge(KEY, [encode_index([old, new])], NOW)) == [new]


def test_a_withdrawal_replaces_what_was_announced(index):
    gone = _sealed(issued=NOW + 1, served=0, withdrawn=0b10000111)
    merged = index.merge(KEY, [encode_index([_sealed()]), encode_index([gone])], NOW)
    assert decode_index(PLACE, merged) == [gone]
    assert _listed(index, merged) == {}


def test_a_holder_lacks_hosts_and_withdrawals_but_not_renewals(index):
    both = encode_index([_sealed(), _sealed(1)])
    one, newer = encode_index([_sealed()]), encode_index([_sealed(issued=NOW + 1)])
    gone = encode_index([_sealed(issued=NOW + 2, served=0, withdrawn=1)])
    assert index.lacks(KEY, None, one, NOW)
    assert index.lacks(KEY, one, both, NOW)
    assert index.lacks(KEY, one, gone, NOW)
    assert not index.lacks(KEY, one, newer, NOW)
    assert not index.lacks(KEY, both, one, NOW)
    assert not index.lacks(KEY, None, gone, NOW)
    assert not index.lacks(KEY, gone, gone, NOW)
    assert not index.lacks(KEY, one, both, NOW + 11)


def test_a_full_holder_lacks_nothing_though_others_are_listed_elsewhere(index):
    full = [_sealed(n, BRANCH, served=1) for n in range(2)]
    fresher = [_sealed(n, BRANCH, served=1, issued=NOW + 1) for n in range(2, 4)]
    held = index.merge(BRANCH.key, [encode_index(full)], NOW)
    best = index.merge(BRANCH.key, [held, encode_index(fresher)], NOW)
    assert not index.lacks(BRANCH.key, held, best, NOW)


# --- bounds --------------------------------------------------------------------------------------


def test_a_wide_record_keeps_hosts_of_every_coordinate_however_many_crowd_one(index, crowd):
    alone = [_sealed(key=crowd[bit], served=1 << bit) for bit in range(1, SPAN)]
    flood = [_sealed(key=key, served=1, issued=NOW + 1) for key in crowd[SPAN:600]]
    merged = index.merge(KEY, [encode_index(alone), encode_index(flood)], NOW)
    listed = _listed(index, merged)
    assert sorted(listed) == list(range(SPAN))
    assert len(listed[0]) == OPEN_HOSTS.per_coordinate
    index.validate(KEY, merged, NOW)


def test_a_flood_of_all_coordinates_leaves_each_its_freshest_hosts(index, crowd):
    everything = 2**SPAN - 1
    each = OPEN_HOSTS.places // SPAN
    flood = [_sealed(key=key, served=everything) for key in crowd[:40]]
    honest = [_sealed(key=key, served=1 << 5, issued=NOW + 1) for key in crowd[-each:]]
    merged = index.merge(KEY, [encode_index(flood), encode_index(honest)], NOW)
    listed = _listed(index, merged)
    assert set(listed[5]) >= {key.peer_id for key in crowd[-each:]}
    assert all(len(peers) >= each for peers in listed.values())
    assert sum(map(len, listed.values())) == OPEN_HOSTS.places


def test_who_dies_is_displaced_by_who_lives(index):
    dead = [_sealed(n, BRANCH, served=1) for n in range(2)]
    held = index.merge(BRANCH.key, [encode_index(dead)], NOW)
    alive = [_sealed(n, BRANCH, served=1, issued=NOW + 5) for n in range(2, 5)]
    merged = index.merge(BRANCH.key, [held, encode_index(alive)], NOW + 5)
    (listed,) = _listed(index, merged, BRANCH, NOW + 5).values()
    assert len(listed) == BRANCHES.per_coordinate
    assert not {KEYS[0].peer_id, KEYS[1].peer_id} & set(listed)


def test_merging_one_more_into_a_full_record_asks_for_one_signature(crowd):
    index = IndexValidator(_verify)
    held = encode_index(
        [_sealed(key=key, served=1 << n % SPAN) for n, key in enumerate(crowd[:900])]
    )
    held = index.merge(KEY, [held], NOW)
    before = index._cache.verified
    index.merge(KEY, [held, encode_index([_sealed(key=crowd[-1])])], NOW)
    assert index._cache.verified == before + 1


SEALED = [
    _sealed(number, served=served, withdrawn=withdrawn, issued=NOW + issued, lifetime=lifetime)
    for number in range(6)
    for issued, lifetime, served, withdrawn in (
        (0, 10.0, 0b0011, 0),
        (0, 10.0, 0b1100, 0b0010),
        (number % 3, 9.0, 0b0100, 0b0001),
        (number % 4, 9.0, 0, 0b1111),
        (2.5, 9.0, 0b1001, 0),
        (-20, 5.0, 0b1111, 0),  # expired
    )
]
OPENED = EntryCache()  # of all examples; what a validator has merged is its own
indexes = st.lists(st.sampled_from(SEALED), max_size=15).map(encode_index)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(indexes, min_size=1, max_size=5),
    st.integers(1, 3),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_merging_is_commutative_associative_and_idempotent(values, each, places, rng):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "p2pnode.swarm.index.bounds_of",
            lambda _place: Bounds(per_coordinate=each, places=places),
        )
        # Values that no merge has made yet may hold more.
        patch.setattr(
            "p2pnode.swarm.index.decode_index", lambda _place, value: msgpack.unpackb(value)
        )
        _check_laws(values, rng, places)


def _check_laws(values: list[bytes], rng: random.Random, places: int) -> None:
    laws = IndexValidator(_verify, OPENED)

    def merge(*parts: bytes) -> bytes:
        return laws.merge(KEY, [part for part in parts if part], NOW) if any(parts) else b""

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
    assert len(msgpack.unpackb(whole) if whole else []) <= places
