import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import (
    BadRequestError,
    CallError,
    OverloadedError,
    ProtocolError,
    StorageError,
    UnknownExpertError,
)
from p2pnode.swarm.weights.manifest import HASH_BYTES, MAX_CHUNK_BYTES, MAX_MANIFEST_BYTES
from p2pnode.swarm.weights.messages import (
    MAX_CHUNKS,
    MAX_MESSAGE_BYTES,
    MAX_PEERS,
    ChunkRequest,
    Have,
    HaveRequest,
    Head,
    HeadRequest,
    Hello,
    ManifestRequest,
    Payload,
    Refusal,
    decode_hello,
    decode_reply,
    decode_request,
    encode_hello,
    encode_reply,
    encode_request,
)
from p2pnode.wire import varint
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

RUN = "open:digits"
UID = Uid(RUN, "ffn0.1.2")
NAME = bytes(range(32))
PEERS = tuple(PrivateKey.from_seed(bytes([each]) * 32).peer_id for each in (1, 2))
HELLOS = [
    Hello(run_id=RUN, scope="host"),
    Hello(run_id=RUN, scope="train", token=b"token"),
]
REQUESTS = [
    HeadRequest(uid=UID, complete=True),
    HeadRequest(uid=UID, complete=False, codec="float16", follow=2.5),
    ManifestRequest(name=NAME),
    HaveRequest(name=NAME),
    ChunkRequest(name=NAME, index=MAX_CHUNKS - 1),
]
REPLIES = [
    Head(name=NAME, steps=7, size=2**30, followers=PEERS),
    Head(name=NAME, steps=0, size=0),
    Payload(size=max(MAX_CHUNK_BYTES, MAX_MANIFEST_BYTES)),
    Have(chunks=0),
    Have(chunks=0b1011),
    Have(chunks=(1 << 16_384) - 1),
]


def body(framed):
    size, start = varint.decode(framed)
    assert size == len(framed) - start <= MAX_MESSAGE_BYTES
    return framed[start:]


@pytest.mark.parametrize("hello", HELLOS, ids=str)
def test_a_greeting_is_read_as_it_was_written(hello):
    assert decode_hello(body(encode_hello(hello))) == hello


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_request_is_read_as_it_was_written(request_):
    assert decode_request(body(encode_request(request_)), RUN) == request_


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_a_reply_is_read_as_it_was_written(reply):
    assert decode_reply(body(encode_reply(reply))) == reply


def test_the_bytes_stay_as_they_are():
    assert encode_request(REQUESTS[1]).hex() == (
        "34 85a26f70a468656164 a46e616d65a866666e302e312e32 a3616c6cc2"
        "a5636f646563a7666c6f61743136 a6666f6c6c6f77cd09c4"
    ).replace(" ", "")
    assert encode_request(ChunkRequest(name=NAME, index=3)).hex() == (
        f"3683a26f70a56368756e6ba26f66c420{NAME.hex()}a5696e64657803"
    )
    assert encode_reply(Payload(size=5)).hex() == "0881a5627974657305"
    assert encode_reply(Have(chunks=0b1011)).hex() == "0981a468617665c4010b"


@pytest.mark.parametrize(
    ("error", "read"),
    [
        (OverloadedError("full"), OverloadedError),
        (UnknownExpertError("not here"), UnknownExpertError),
        (StorageError("the disk is full"), CallError),
    ],
)
def test_an_error_comes_back_as_one_of_a_call(error, read):
    reply = decode_reply(body(encode_reply(Refusal(error=error))))
    assert (type(reply.error), str(reply.error)) == (read, str(error))


def test_an_error_cannot_write_on_a_terminal():
    reply = decode_reply(msgpack.packb({"error": [400, "\x1b[2Jgone" + "x" * 1000]}))
    assert type(reply.error) is BadRequestError
    assert str(reply.error).startswith(" [2Jgone")
    assert len(str(reply.error)) == 500


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for decode in (decode_hello, decode_reply, lambda data: decode_request(data, RUN)):
        try:
            decode(data)
        except ProtocolError:
            continue


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=9)
values = st.recursive(
    scalars | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = ("v", "run", "as", "token", "op", "name", "all", "follow", "of", "index", "head", "peers",
        "bytes", "have", "error")  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(KEYS),
        values | st.sampled_from(["head", "chunk", "host", RUN, NAME, 1, True]),
    )
)
def test_any_map_is_read_or_refused(message):
    data = msgpack.packb(message)
    for decode in (decode_hello, decode_reply, lambda data: decode_request(data, RUN)):
        try:
            decode(data)
        except ProtocolError:
            continue


@pytest.mark.parametrize(
    "message",
    [
        {"v": 2, "run": RUN, "as": "host"},
        {"v": 1, "run": "no run!", "as": "host"},
        {"v": 1, "run": RUN, "as": "owner"},
        {"v": 1, "run": RUN, "as": ["host"]},
        {"v": 1, "run": RUN, "as": "host", "token": bytes(5000)},
        {"v": 1, "run": RUN, "as": "host", "token": "text"},
    ],
)
def test_a_malformed_greeting_is_refused(message):
    with pytest.raises(ProtocolError):
        decode_hello(msgpack.packb(message))


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"op": "steal"},
        {"op": "head", "name": "block", "all": True},
        {"op": "head", "name": "ffn.0", "all": 1},
        {"op": "head", "name": "ffn.0", "all": True, "follow": -1},
        {"op": "head", "name": "x" * 1000 + ".0", "all": True},
        {"op": "manifest", "of": bytes(HASH_BYTES - 1)},
        {"op": "chunk", "of": NAME, "index": -1},
        {"op": "chunk", "of": NAME, "index": MAX_CHUNKS},
        {"op": "chunk", "of": NAME, "index": True},
    ],
)
def test_a_malformed_request_is_refused(message):
    with pytest.raises(ProtocolError):
        decode_request(msgpack.packb(message), RUN)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"bytes": 2**40},
        {"have": bytes(MAX_CHUNKS)},
        {"head": [NAME, 1], "peers": []},
        {"head": [NAME, 1, -1], "peers": []},
        {"head": [NAME, 1, 1], "peers": [bytes(PEERS[0])] * (MAX_PEERS + 1)},
        {"head": [NAME, 1, 1], "peers": [b"no peer"]},
        {"head": [NAME, 1, 1], "peers": ["text"]},
        {"error": 400},
        {"error": ["400", "text"]},
    ],
)
def test_a_malformed_reply_is_refused(message):
    with pytest.raises(ProtocolError):
        decode_reply(msgpack.packb(message))
