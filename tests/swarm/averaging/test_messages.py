import contextlib
import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import BadRequestError, ProtocolError, RoundError, from_code
from p2pnode.swarm.averaging.group import MAX_MEMBERS
from p2pnode.swarm.averaging.messages import (
    MAX_MESSAGE_BYTES,
    Join,
    Moved,
    Part,
    Refusal,
    Whole,
    decode_answer,
    decode_done,
    decode_join,
    encode_answer,
    encode_done,
    encode_join,
)
from p2pnode.wire import varint
from p2pnode.wire.keys import PrivateKey

PEERS = sorted(PrivateKey.from_seed(bytes([each]) * 32).peer_id for each in range(MAX_MEMBERS))
bandwidths = st.floats(0, 1e12)
views = st.dictionaries(st.sampled_from(PEERS), bandwidths, min_size=1).map(
    lambda found: {each: found[each] for each in sorted(found)}
)
weights = st.floats(0, 1e9, exclude_min=True)
joins = st.builds(
    Join,
    run_id=st.sampled_from(["open:test", "ab12"]),
    round_id=st.binary(min_size=1, max_size=64),
    digest=st.binary(min_size=32, max_size=32),
    members=views,
    weight=weights,
    wants=st.sampled_from(["part", "whole", "nothing"]),
    token=st.none() | st.binary(max_size=600),
)
answers = (
    st.builds(Part, members=views, weight=weights)
    | st.builds(Whole, members=views, weight=weights)
    | st.builds(Moved, members=views)
)


def body(framed):
    size, start = varint.decode(framed)
    assert len(framed) == start + size
    return framed[start:]


@given(joins)
def test_a_join_is_read_as_it_was_written(join):
    assert decode_join(body(encode_join(join))) == join


@given(answers)
def test_an_answer_is_read_as_it_was_written(answer):
    assert decode_answer(body(encode_answer(answer))) == answer


def test_the_largest_join_fits_a_message():
    members = dict.fromkeys(PEERS, 1.5)
    join = Join(
        run_id="r" * 200,
        round_id=bytes(64),
        digest=bytes(32),
        members=members,
        weight=1.0,
        wants="nothing",
        token=bytes(4096),
    )
    assert len(encode_join(join)) < MAX_MESSAGE_BYTES


def test_an_error_crosses_as_its_class_and_as_one_line():
    answer = decode_answer(body(encode_answer(Refusal(error=RoundError("late\x1b[2J\nagain")))))
    assert type(answer.error) is RoundError
    assert str(answer.error) == "late [2J again"
    assert type(from_code(412, "x")) is RoundError


@pytest.mark.parametrize("is_done", [False, True])
def test_whether_one_is_done_is_said_in_one_way_only(is_done):
    assert decode_done(body(encode_done(is_done=is_done))) is is_done
    with pytest.raises(ProtocolError):
        decode_done(msgpack.packb({"done": 1}))


@given(st.binary(max_size=200))
def test_no_bytes_end_in_anything_but_a_message_or_a_typed_error(data):
    for decode, error in (
        (decode_join, BadRequestError),
        (decode_answer, ProtocolError),
        (decode_done, ProtocolError),
    ):
        with contextlib.suppress(error):
            decode(data)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=8)
    | st.sampled_from([bytes(each) for each in PEERS[:3]]),
    lambda each: (
        st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=8), each, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = ["v", "run", "round", "digest", "members", "weight", "wants", "token"]


@given(joins, st.sampled_from(FIELDS), junk)
def test_a_join_with_one_field_of_junk_is_read_or_refused(join, field, value):
    message = msgpack.unpackb(body(encode_join(join))) | {field: value}
    try:
        found = decode_join(msgpack.packb(message))
    except BadRequestError:
        return
    assert decode_join(body(encode_join(found))) == found


@given(st.sampled_from(["part", "whole", "moved", "error", "weight"]), junk, junk)
def test_an_answer_of_junk_is_read_or_refused(field, value, weight):
    with contextlib.suppress(ProtocolError):
        decode_answer(msgpack.packb({"weight": weight, field: value}))


FINE = {
    "v": 1,
    "run": "open:test",
    "round": b"1",
    "digest": bytes(32),
    "members": [[bytes(PEERS[0]), 1.0]],
    "weight": 1.0,
}


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"run": "no spaces please"},
        {"round": b""},
        {"round": bytes(65)},
        {"digest": bytes(31)},
        {"members": []},
        {"members": [[bytes(PEERS[1]), 1.0], [bytes(PEERS[0]), 1.0]]},
        {"members": [[bytes(PEERS[0]), 1.0]] * 2},
        {"members": [[bytes(PEERS[0]), -1.0]]},
        {"members": [[bytes(PEERS[0]), math.inf]]},
        {"members": [[bytes(PEERS[0]), 1]]},
        {"members": [[b"nobody", 1.0]]},
        {"members": [[bytes(each), 1.0] for each in (*PEERS, b"\xff" * 40)]},
        {"weight": 0.0},
        {"weight": math.nan},
        {"weight": 1},
        {"wants": "all"},
        {"token": bytes(5000)},
    ],
)
def test_a_join_out_of_bounds_is_refused(change):
    decode_join(msgpack.packb(FINE))
    with pytest.raises(BadRequestError):
        decode_join(msgpack.packb(FINE | change))
