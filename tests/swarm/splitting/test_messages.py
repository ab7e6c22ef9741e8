import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import BadRequestError, OverloadedError, ProtocolError
from p2pnode.rpc.messages import PREFIX_BYTES, Reply
from p2pnode.rpc.messages import encode_reply as encode_refusal
from p2pnode.rpc.schema import TensorMeta
from p2pnode.swarm.splitting.core import Plan
from p2pnode.swarm.splitting.messages import (
    MAX_GROUP,
    OPERATIONS,
    Outcome,
    SplitReply,
    SplitRequest,
    decode_request,
    decode_split_reply,
    encode_reply,
    encode_request,
)
from p2pnode.swarm.splitting.versions import Version
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

UID = Uid("open:test", "layer.0")
PEERS = tuple(PrivateKey.generate().peer_id for _ in range(3))
PLAN = Plan(attempt=1, parts=2, rows=7, group=PEERS, codec="float16")
METAS = (TensorMeta("float32", (2, 8)), TensorMeta("float32", (2, 8), "float16"))
REQUESTS = [
    SplitRequest(operation="forward", uid=UID, tensors=METAS, reply="float16", milliseconds=9),
    SplitRequest(operation="join", uid=UID, step_id=b"i" * 16, token=b"t"),
    SplitRequest(
        operation="backward", uid=UID, step_id=b"i" * 16, part=3, tensors=METAS, gradients=1
    ),
    SplitRequest(operation="prepare", uid=UID, step_id=b"i" * 16, plan=PLAN),
    SplitRequest(operation="forward", uid=UID, tensors=METAS, after=b"i" * 16),
    SplitRequest(operation="join", uid=UID, step_id=b"i" * 16, now=True, plan=PLAN),
    SplitRequest(
        operation="backward", uid=UID, step_id=b"i" * 16, now=True, plan=PLAN, tensors=METAS
    ),
    *(
        SplitRequest(operation=each, uid=UID, step_id=b"i" * 16)
        for each in ("commit", "abort", "outcome", "pause", "resume")
    ),
    *(SplitRequest(operation=each, uid=UID) for each in ("behind", "version", "state")),
]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**60) | st.text(max_size=8) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
KEYS = [
    "v", "op", "uid", "ms", "id", "part", "parts", "try", "rows", "group", "tensors", "grads",
    "reply", "token", "version", "digest", "outcome", "state", "error",
    "plan", "now", "after", "us",
]  # fmt: skip


def test_every_operation_is_read_as_it_was_written():
    assert {each.operation for each in REQUESTS} == set(OPERATIONS)
    for request in REQUESTS:
        assert decode_request(encode_request(request)[PREFIX_BYTES:]) == request


def test_replies_are_read_as_they_were_written():
    version = Version(7, b"l" * 16)
    for reply in (
        SplitReply(),
        SplitReply(version=version, digest=b"d" * 32, microseconds=1500),
        SplitReply(version=version, state=b"s" * 32),
        *(SplitReply(outcome=each) for each in Outcome),
    ):
        assert decode_split_reply(encode_reply(reply)[PREFIX_BYTES:]) == reply
    assert decode_split_reply(encode_reply(SplitReply(), METAS)[PREFIX_BYTES:]).tensors == METAS
    refusal = encode_refusal(Reply(error=OverloadedError("full")))[PREFIX_BYTES:]
    assert isinstance(decode_split_reply(refusal).error, OverloadedError)


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "guess"},
        {"op": ["join"]},
        {"uid": "no run"},
        {"uid": 3},
        {"id": b"short"},
        {"ms": -1},
        {"plan": None},
        {"plan": [1, 2]},
        {"token": "text"},
        {"v": 2},
    ],
)
def test_malformed_requests_are_refused(changes):
    header = msgpack.unpackb(encode_request(REQUESTS[3])[PREFIX_BYTES:])
    with pytest.raises(BadRequestError):
        decode_request(msgpack.packb(header | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": True},
        {"try": 2**20},
        {"rows": "7"},
        {"group": []},
        {"group": [bytes(PEERS[0])] * 2},
        {"group": [b"x"]},
        {"group": [bytes(PEERS[0])] * (MAX_GROUP + 1)},
        {"codec": "zip"},
        {"codec": None},
    ],
)
def test_malformed_plans_are_refused(changes):
    header = msgpack.unpackb(encode_request(REQUESTS[3])[PREFIX_BYTES:])
    with pytest.raises(BadRequestError):
        decode_request(msgpack.packb(header | {"plan": header["plan"] | changes}))


@pytest.mark.parametrize("changes", [{"now": 1}, {"after": b"short"}, {"after": 7}])
def test_calls_that_come_early_are_refused_if_malformed(changes):
    for request in REQUESTS[4:6]:
        header = msgpack.unpackb(encode_request(request)[PREFIX_BYTES:])
        if changes.keys() & header.keys():
            with pytest.raises(BadRequestError):
                decode_request(msgpack.packb(header | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": [1]},
        {"version": [-1, b"l" * 16]},
        {"version": [1, b"l"]},
        {"digest": b"d"},
        {"outcome": "perhaps"},
        {"outcome": ["none"]},
        {"state": "s"},
        {"us": -1},
        {"tensors": None},
    ],
)
def test_malformed_replies_are_refused(changes):
    header = msgpack.unpackb(encode_reply(SplitReply())[PREFIX_BYTES:])
    with pytest.raises(ProtocolError):
        decode_split_reply(msgpack.packb(header | changes))


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(KEYS), PLAIN), st.sampled_from(REQUESTS), st.binary())
def test_whatever_comes_is_read_or_refused(changes, request, noise):
    header = msgpack.unpackb(encode_request(request)[PREFIX_BYTES:])
    for data in (msgpack.packb(header | changes), noise):
        try:
            found = decode_request(data)
        except BadRequestError:
            pass
        else:
            assert found == decode_request(encode_request(found)[PREFIX_BYTES:])
    for data in (msgpack.packb({"v": 1, "tensors": []} | changes), noise):
        try:
            decode_split_reply(data)
        except ProtocolError:
            continue
