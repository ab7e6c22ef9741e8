"""Messages of sessions survive the wire, and garbage is refused."""

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import SessionSettings
from p2pnode.config.experts import CODECS
from p2pnode.errors import BadRequestError, OverloadedError
from p2pnode.experts.sessions.core import (
    MAX_ROWS,
    Open,
    SessionBudget,
    Step,
    decode_open,
    decode_step,
    encode_open,
    encode_step,
)
from p2pnode.rpc.messages import PREFIX_BYTES
from p2pnode.rpc.schema import TensorMeta
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

ALICE, BOB = (PrivateKey.from_seed(each * 32).peer_id for each in (b"a", b"b"))
OPEN = Open(uid=Uid("open:lm", "blocks.3"), span=2, rows=4, length=128, token=b"t")
STEP = Step(position=7, tensors=(TensorMeta("bfloat16", (4, 1, 64)),), order=(0, 0, 1, 2))

opens = st.builds(
    Open,
    uid=st.integers(0, 100).map(lambda number: Uid("open:lm", f"blocks.{number}")),
    span=st.integers(1, 256),
    rows=st.integers(1, MAX_ROWS),
    length=st.integers(1, 2**31 - 1),
    codec=st.sampled_from(CODECS),
    token=st.none() | st.binary(max_size=50),
)
steps = st.builds(
    Step,
    position=st.integers(0, 2**31 - 1),
    tensors=st.just(STEP.tensors) | st.just(()),
    order=st.none() | st.lists(st.integers(0, MAX_ROWS - 1), max_size=9).map(tuple),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(opens)
def test_an_opening_survives_the_wire(message):
    assert decode_open(encode_open(message)[PREFIX_BYTES:]) == message


@given(steps)
def test_a_step_survives_the_wire(message):
    assert decode_step(encode_step(message)[PREFIX_BYTES:]) == message


def test_the_bytes_are_these():
    assert encode_open(OPEN).hex() == (
        "0000003786a17601a3756964b06f70656e3a6c6d2f626c6f636b732e33a4726f777304a66c656e677468"
        "cc80a47370616e02a5746f6b656ec40174"
    )
    assert encode_open(dataclasses.replace(OPEN, codec="float16")).hex() == (
        "0000004587a17601a3756964b06f70656e3a6c6d2f626c6f636b732e33a4726f777304a66c656e677468"
        "cc80a47370616e02a5636f646563a7666c6f61743136a5746f6b656ec40174"
    )
    assert encode_step(STEP).hex() == (
        "0000003384a17601a3706f7307a774656e736f72739194a862666c6f6174313693040140a46e6f6e65cd"
        "0200a56f726465729400000102"
    )


@given(st.binary(max_size=200))
def test_garbage_is_refused(data):
    for decode in (decode_open, decode_step):
        with pytest.raises(BadRequestError):
            decode(data)


@given(st.data(), anything)
def test_a_changed_message_is_read_or_refused_but_never_crashes(data, value):
    for message, encode, decode in (
        (OPEN, encode_open, decode_open),
        (STEP, encode_step, decode_step),
    ):
        header = msgpack.unpackb(encode(message)[PREFIX_BYTES:])
        header[data.draw(st.sampled_from(sorted(header)))] = value
        try:
            read = decode(msgpack.packb(header))
        except BadRequestError:
            continue
        assert decode(encode(read)[PREFIX_BYTES:]) == read


@pytest.mark.parametrize(
    ("decode", "field", "value"),
    [
        (decode_open, "rows", 0),
        (decode_open, "rows", MAX_ROWS + 1),
        (decode_open, "length", 0),
        (decode_open, "length", True),
        (decode_open, "span", 257),
        (decode_open, "uid", "open:lm/blocks"),
        (decode_open, "token", "text"),
        (decode_open, "codec", "float8"),
        (decode_open, "codec", None),
        (decode_step, "pos", -1),
        (decode_step, "pos", 2**31),
        (decode_step, "order", [0, -1]),
        (decode_step, "order", [MAX_ROWS]),
        (decode_step, "order", [0] * (MAX_ROWS + 1)),
        (decode_step, "tensors", None),
    ],
)
def test_what_is_out_of_bounds_is_refused(decode, field, value):
    encoded = encode_open(OPEN) if decode is decode_open else encode_step(STEP)
    header = msgpack.unpackb(encoded[PREFIX_BYTES:]) | {field: value}
    with pytest.raises(BadRequestError):
        decode(msgpack.packb(header))


def test_a_budget_is_what_it_was_when_all_sessions_have_ended():
    budget = SessionBudget(SessionSettings(max_sessions=2, max_cache_bytes=100))
    with budget.session(ALICE, 60):
        with budget.session(BOB, 40):
            assert (budget.sessions, budget.cache_bytes) == (2, 100)
            with pytest.raises(OverloadedError), budget.session(BOB, 0):
                pass
        with pytest.raises(OverloadedError), budget.session(BOB, 41):
            pass
        assert (budget.sessions, budget.cache_bytes) == (1, 60)
    assert (budget.sessions, budget.cache_bytes) == (0, 0)
    assert not budget._sessions
