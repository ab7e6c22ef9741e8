"""Announcements: bytes to values and back, and what is refused."""

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config.experts import CODECS
from p2pnode.errors import MessageTooLargeError, ProtocolError
from p2pnode.swarm.gossip.announcement import (
    DOMAIN,
    MAX_ANNOUNCEMENT_BYTES,
    Announcement,
    Claim,
    open_announcement,
    seal_announcement,
    topic_of,
)
from p2pnode.wire.envelope import open_envelope, seal
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

KEY = PrivateKey.from_seed(bytes(31) + b"\1")
UID = Uid("open:digits", "blocks.0")
CLAIM = Claim(
    round=3,
    steps=120,
    score=0.9375,
    scored_on=500,
    data=b"d" * 32,
    weights=b"w" * 32,
    size=1_000_000,
    codec="float16",
    mode="best",
    extra=b"x",
)
# What another implementation has to make of the announcement below: msgpack in RFC 2's envelope.
PAYLOAD = bytes.fromhex(
    "dc0010cf0000018bcfe56800cf0000018bcfe56ddcce00015f90c20378cb3fee000000000000cd01f4c420"
    + "64" * 32
    + "c420"
    + "77" * 32
    + "ce000f4240a7666c6f61743136a462657374c2c40178c400"
)
GOLDEN = (
    bytes.fromhex(
        "0a24080112204cb5abf6ad79fbf5abbccafcc269d85cd2651ed4b885b5869f241aedf0a5ba291225"
    )
    + b"/p2pnode/swarm/1/open:digits/blocks.0"
    + bytes.fromhex("1a8501")
    + PAYLOAD
    + bytes.fromhex(
        "2a403dc1bbd342121f9f73f813bc601fc2d384a18d004b80faf717a065979cabaf0c"
        "b370f66d4dbf2fd44965e2713df6db14a2a330197807a3431570faa4eb71c80f"
    )
)


def announcement(claim=CLAIM, **fields):
    said = {
        "uid": UID,
        "peer_id": KEY.peer_id,
        "claim": claim,
        "version": 1_700_000_000_000,
        "issued": 1_700_000_001.5,
        "lifetime": 90.0,
    }
    return Announcement(**said | fields)


def packed(**changes):
    """The fields of a good announcement, some of them changed by their place."""
    (payload,) = [open_envelope(seal_announcement(KEY, announcement()), DOMAIN).payload]
    fields = msgpack.unpackb(payload)
    for place, value in changes.items():
        fields[int(place.removeprefix("at"))] = value
    return fields


def sealed(payload, *, key=KEY, domain=DOMAIN, uid=UID):
    return seal(key, domain, topic_of(uid).encode(), payload)


def test_the_bytes_of_an_announcement_are_these():
    assert seal_announcement(KEY, announcement()) == GOLDEN
    assert open_announcement(UID, GOLDEN) == announcement()
    assert len(GOLDEN) < 320


claims = st.builds(
    Claim,
    round=st.integers(0, 2**53),
    steps=st.integers(0, 2**53),
    score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    scored_on=st.integers(0, 2**53),
    data=st.just(b"") | st.binary(min_size=32, max_size=32),
    weights=st.just(b"") | st.binary(min_size=32, max_size=32),
    size=st.integers(0, 2**53),
    codec=st.sampled_from(CODECS),
    mode=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=32),
    extra=st.binary(max_size=256),
)


announcements = st.builds(
    announcement,
    claims,
    version=st.integers(0, 2**53),
    issued=st.integers(0, 2**43).map(lambda each: each / 1000),
    lifetime=st.integers(1, 600_000).map(lambda each: each / 1000),
    is_leaving=st.booleans(),
    token=st.binary(max_size=1000),
)


@given(announcements)
def test_what_is_sealed_is_what_is_opened(said):
    assert open_announcement(UID, seal_announcement(KEY, said)) == said


@given(st.binary(max_size=200))
def test_any_bytes_are_an_announcement_or_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        open_announcement(UID, data)


json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary()
    | st.text(),
    lambda children: st.lists(children, max_size=16),
    max_leaves=24,
)


@given(st.binary(max_size=100) | json.map(msgpack.packb))
def test_any_payload_that_a_peer_signs_is_an_announcement_or_a_protocol_error(payload):
    try:
        said = open_announcement(UID, sealed(payload))
    except ProtocolError:
        return
    assert said.peer_id == KEY.peer_id


@given(st.data())
def test_one_changed_field_never_raises_anything_else(data):
    place = data.draw(st.integers(0, 14))
    fields = packed(**{f"at{place}": data.draw(json)})
    try:
        said = open_announcement(UID, sealed(msgpack.packb(fields)))
    except ProtocolError:
        return
    assert seal_announcement(KEY, said)  # whatever is taken could have been said


@pytest.mark.parametrize(
    "changes",
    [
        {"at0": -1},
        {"at0": 2**53 + 1},
        {"at1": True},
        {"at2": 0},
        {"at2": 600_001},
        {"at3": 0},
        {"at4": -1},
        {"at6": float("nan")},
        {"at6": float("inf")},
        {"at6": 1},
        {"at8": b"d" * 31},
        {"at9": b"w" * 33},
        {"at9": "w" * 32},
        {"at11": "float8"},
        {"at12": "b\x1b[2J"},
        {"at12": "m" * 33},
        {"at13": b"x" * 257},
        {"at14": "token"},
    ],
)
def test_a_field_out_of_its_bounds_is_refused(changes):
    open_announcement(UID, sealed(msgpack.packb(packed())))
    with pytest.raises(ProtocolError):
        open_announcement(UID, sealed(msgpack.packb(packed(**changes))))


def test_too_many_fields_or_too_few_are_refused():
    for fields in (packed()[:-1], [*packed(), 0], {}):
        with pytest.raises(ProtocolError):
            open_announcement(UID, sealed(msgpack.packb(fields)))


def test_what_was_signed_for_another_swarm_run_or_purpose_is_refused():
    payload = msgpack.packb(packed())
    for uid in (Uid("open:digits", "blocks.1"), Uid("open:other", "blocks.0")):
        with pytest.raises(ProtocolError, match="another swarm"):
            open_announcement(UID, sealed(payload, uid=uid))
    with pytest.raises(ProtocolError, match="does not hold"):
        open_announcement(UID, sealed(payload, domain="libp2p-peer-record"))


def test_a_changed_byte_breaks_the_signature():
    made = bytearray(seal_announcement(KEY, announcement()))
    at = bytes(made).index(b"w" * 32)
    made[at] ^= 1
    with pytest.raises(ProtocolError, match="does not hold"):
        open_announcement(UID, bytes(made))


def test_what_is_too_large_is_neither_sent_nor_read():
    with pytest.raises(MessageTooLargeError, match="invite"):
        seal_announcement(KEY, announcement(token=b"t" * 3000))
    large = sealed(msgpack.packb(packed(at14=b"t" * MAX_ANNOUNCEMENT_BYTES)))
    with pytest.raises(ProtocolError, match="too large"):
        open_announcement(UID, large)


@pytest.mark.parametrize("claim", [{"score": float("nan")}, {"codec": "zip"}, {"weights": b"w"}])
def test_nobody_signs_what_others_would_refuse(claim):
    with pytest.raises(ProtocolError):
        seal_announcement(KEY, announcement(dataclasses.replace(CLAIM, **claim)))


def test_the_longest_uid_has_a_topic_that_pubsub_takes():
    from p2pnode.config import PubSubSettings  # noqa: PLC0415

    longest = Uid("r" * 200, "b" * 53 + ".0")
    assert len(topic_of(longest).encode()) <= PubSubSettings().max_topic_bytes
