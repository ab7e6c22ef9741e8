import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import CheckpointError, OverloadedError, ProtocolError
from p2pnode.swarm.weights.offers import (
    MAX_OFFER_BYTES,
    Claim,
    Declined,
    Final,
    Keep,
    Offer,
    Take,
    Taken,
    decode_handover,
    encode_handover,
)
from p2pnode.wire import varint
from p2pnode.wire.uids import Uid

RUN = "open:digits"
UID = Uid(RUN, "ffn0.1.2")
NAME = bytes(range(32))
MESSAGES = [
    Offer(uid=UID, steps=3),
    Claim(uid=UID, steps=0),
    Take(),
    Keep(steps=2**53),
    Final(state=NAME, steps=4),
    Taken(steps=4),
]


def body(framed):
    size, start = varint.decode(framed)
    assert size == len(framed) - start <= MAX_OFFER_BYTES
    return framed[start:]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_read_as_it_was_written(message):
    assert decode_handover(body(encode_handover(message)), RUN) == message


def test_the_bytes_stay_as_they_are():
    assert encode_handover(MESSAGES[0]).hex() == (
        "1f 83a26f70a56f66666572 a46e616d65a866666e302e312e32 a5737465707303"
    ).replace(" ", "")
    assert encode_handover(Take()).hex() == "0981a26f70a474616b65"


def test_a_refusal_is_read_as_an_error_of_a_call():
    for error, kind in ((OverloadedError("busy"), "OverloadedError"),
                        (CheckpointError("too wide"), "CallError")):  # fmt: skip
        read = decode_handover(body(encode_handover(Declined(error=error))), RUN)
        assert (type(read.error).__name__, str(read.error)) == (kind, str(error))


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data):
    try:
        message = decode_handover(data, RUN)
    except ProtocolError:
        return
    assert isinstance(message, Declined | Take) or body(encode_handover(message))


@given(
    st.dictionaries(
        st.sampled_from(["op", "name", "steps", "state", "error"]),
        st.sampled_from(["offer", "claim", "take", "keep", "final", "taken", NAME, "ffn.0", []])
        | st.integers(-1, 2**60)
        | st.lists(st.integers() | st.text(max_size=3), max_size=3),
    )
)
def test_any_map_is_read_or_refused(message):
    try:
        packed = msgpack.packb(message)
    except OverflowError:
        return
    try:
        decode_handover(packed, RUN)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"op": ["offer"]},
        {"op": "offer", "steps": 1},
        {"op": "offer", "name": "ffn", "steps": 1},
        {"op": "claim", "name": "ffn.0", "steps": -1},
        {"op": "final", "state": b"short", "steps": 1},
        {"op": "taken", "steps": True},
        {"error": "no"},
    ],
)
def test_a_malformed_message_is_refused(message):
    with pytest.raises(ProtocolError):
        decode_handover(msgpack.packb(message), RUN)
