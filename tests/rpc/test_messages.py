import json
from pathlib import Path

import msgpack
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import (
    BadRequestError,
    CallError,
    OverloadedError,
    ProtocolError,
    SchemaError,
    UnknownExpertError,
)
from p2pnode.rpc.codecs.names import CODECS, travelling, wire_form
from p2pnode.rpc.codecs.transform import decode, encode
from p2pnode.rpc.messages import (
    CALL_ID_BYTES,
    MAX_SPAN,
    PREFIX_BYTES,
    TRACE_BYTES,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from p2pnode.rpc.schema import ITEM_BYTES, MAX_TENSORS, ExpertInfo, TensorMeta, TensorSpec
from p2pnode.rpc.tensors import buffer_of, dtype_of, meta_of
from p2pnode.wire.uids import Uid

VECTORS = json.loads((Path(__file__).parents[1] / "golden" / "tensor_calls.json").read_text())
UID = Uid("open:digits", "ffn0.1.2")
META = TensorMeta("float32", (2, 3))
INFO = ExpertInfo(
    layer="ffn",
    inputs=(TensorSpec("float32", (None, 64)),),
    outputs=(TensorSpec("float32", (None, 64)),),
    max_rows=16384,
    max_bytes=2**28,
)
GOLDEN_REQUESTS = {
    "0000002b84a17601a26f70a4696e666fa3756964b46f70656e3a6469676974732f66666e302e312e32"
    "a26d73cd7530": (Request(operation="info", uid=UID, milliseconds=30000)),
    "0000005486a17601a26f70a7666f7277617264a3756964b46f70656e3a6469676974732f66666e302e312e32"
    "a26d73cd05dca5746f6b656ec403746f6ba774656e736f72739194a7666c6f61743332920203a46e6f6e6518": (
        Request(operation="forward", uid=UID, milliseconds=1500, tensors=(META,), token=b"tok")
    ),
    "0000007987a17601a26f70a86261636b77617264a3756964b46f70656e3a6469676974732f66666e302e312e32"
    "a26d73cd05dca26964c410000102030405060708090a0b0c0d0e0fa5677261647301a774656e736f727392"
    "94a7666c6f61743332920203a46e6f6e651894a862666c6f61743136920204a46e6f6e6510": (
        Request(
            operation="backward",
            uid=UID,
            milliseconds=1500,
            tensors=(META, TensorMeta("bfloat16", (2, 4))),
            gradients=1,
            call_id=bytes(range(16)),
        )
    ),
}
GOLDEN_REPLIES = {
    "0000001f82a17601a774656e736f72739194a7666c6f61743332920203a46e6f6e6518": Reply(
        tensors=(META,)
    ),
    "0000006082a17601a4696e666f86a56c61796572a366666ea6696e707574739193a7666c6f61743332c040"
    "a76f7574707574739193a7666c6f61743332c040a86b6579776f72647390a86d61785f726f7773cd4000"
    "a96d61785f6279746573ce10000000": Reply(info=INFO),
}
GOLDEN_ERROR = "0000001d82a17601a56572726f7292cd0194ae6e6f207375636820657870657274"

codecs = st.sampled_from(CODECS)
metas = st.builds(
    travelling,
    st.builds(
        TensorMeta,
        st.sampled_from(sorted(ITEM_BYTES)),
        st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
    ),
    codecs,
).filter(lambda meta: meta.nbytes < 2**63)  # msgpack's integers end there, and so does memory
steps = st.integers(0, 2**53)
requests = st.builds(
    Request,
    operation=st.sampled_from(["info", "forward"]),
    uid=st.just(UID),
    milliseconds=st.integers(0, 2**40),
    span=st.integers(1, MAX_SPAN),
    tensors=st.lists(metas, max_size=4).map(tuple),
    token=st.none() | st.binary(max_size=600),
    trace=st.just(b"") | st.binary(min_size=TRACE_BYTES, max_size=TRACE_BYTES),
    reply=codecs,
) | st.builds(
    Request,
    operation=st.just("backward"),
    uid=st.just(UID),
    milliseconds=st.integers(0, 2**40),
    tensors=st.lists(metas, min_size=2, max_size=4).map(tuple),
    gradients=st.integers(0, 2),
    call_id=st.binary(min_size=CALL_ID_BYTES, max_size=CALL_ID_BYTES),
    since=st.just(()) | st.tuples(steps),
    bound=st.none() | steps,
    wants_gradients=st.booleans(),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=12,
)


def unframed(message):
    assert int.from_bytes(message[:PREFIX_BYTES], "big") == len(message) - PREFIX_BYTES
    return message[PREFIX_BYTES:]


@pytest.mark.parametrize(("golden", "request_"), GOLDEN_REQUESTS.items())
def test_requests_have_the_bytes_of_version_1(golden, request_):
    assert encode_request(request_).hex() == golden
    assert decode_request(unframed(bytes.fromhex(golden))) == request_


@pytest.mark.parametrize(("golden", "reply"), GOLDEN_REPLIES.items())
def test_replies_have_the_bytes_of_version_1(golden, reply):
    assert encode_reply(reply).hex() == golden
    assert decode_reply(unframed(bytes.fromhex(golden))) == reply


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["what"])
def test_whole_messages_have_the_bytes_of_version_1(vector):
    """As other implementations would check theirs: the header, and the tensors behind it."""
    tensors = [
        torch.tensor(item["values"], dtype=dtype_of(item["dtype"])).reshape(item["shape"])
        for item in vector["tensors"]
    ]
    metas = tuple(travelling(meta_of(tensor), vector["codec"]) for tensor in tensors)
    sent = [buffer_of(encode(tensor, meta)) for tensor, meta in zip(tensors, metas, strict=True)]
    if vector["what"].startswith("reply"):
        header = encode_reply(Reply(tensors=metas))
    else:
        header = encode_request(
            Request(
                operation=vector["operation"],
                uid=UID,
                milliseconds=1500,
                tensors=metas,
                gradients=vector["gradients"],
                call_id=bytes(range(16)) if vector["operation"] == "backward" else b"",
                trace=bytes(range(8)),
                reply=vector["codec"],
            )
        )
    assert b"".join((header, *sent)).hex() == vector["bytes"]
    for buffer, meta, item in zip(sent, metas, vector["tensors"], strict=True):
        received = torch.frombuffer(bytearray(buffer), dtype=dtype_of(wire_form(meta).dtype))
        assert decode(received, meta).flatten().tolist() == item["decoded"]


def test_an_error_crosses_the_wire_by_its_code():
    message = encode_reply(Reply(error=UnknownExpertError("no such expert")))
    assert message.hex() == GOLDEN_ERROR
    error = decode_reply(unframed(message)).error
    assert type(error) is UnknownExpertError
    assert str(error) == "no such expert"


def test_an_error_of_a_later_version_is_still_a_failed_call():
    error = decode_reply(msgpack.packb({"v": 1, "error": [599, "new"]})).error
    assert type(error) is CallError


def test_an_error_cannot_write_on_the_terminal_or_fill_it():
    message = encode_reply(Reply(error=OverloadedError("\x1b[2J\r\n" + "x" * 10_000)))
    error = decode_reply(unframed(message)).error
    assert len(str(error)) == 500
    assert str(error).isprintable()


@given(requests)
def test_a_request_survives_the_wire(request_):
    assert decode_request(unframed(encode_request(request_))) == request_


@given(st.lists(metas, max_size=5).map(tuple), st.lists(steps, max_size=5).map(tuple))
def test_a_reply_survives_the_wire(tensors, taken):
    reply = Reply(tensors=tensors, steps=taken)
    assert decode_reply(unframed(encode_reply(reply))) == reply


@given(st.binary(max_size=400) | anything.map(msgpack.packb))
def test_garbage_is_neither_a_request_nor_a_reply(data):
    with pytest.raises(BadRequestError):
        decode_request(data)
    with pytest.raises(ProtocolError):
        decode_reply(data)


@given(
    st.sampled_from(
        [
            *("v", "op", "uid", "ms", "id", "grads", "tensors", "token", "trace", "reply", "span"),
            *("since", "bound", "back"),
        ]
    ),
    anything,
)
def test_a_request_with_any_field_changed_is_read_or_refused(field, value):
    header = msgpack.unpackb(unframed(encode_request(list(GOLDEN_REQUESTS.values())[2])))
    try:
        request = decode_request(msgpack.packb(header | {field: value}))
    except BadRequestError:
        return
    assert decode_request(unframed(encode_request(request))) == request


@given(st.sampled_from(["v", "tensors", "steps", "error", "info"]), anything)
def test_a_reply_with_any_field_changed_is_read_or_refused(field, value):
    try:
        decode_reply(msgpack.packb({"v": 1, "tensors": [], field: value}))
    except ProtocolError:
        return


def test_fields_of_later_versions_are_skipped():
    request = next(iter(GOLDEN_REQUESTS.values()))
    header = msgpack.unpackb(unframed(encode_request(request)))
    assert decode_request(msgpack.packb(header | {"priority": 3})) == request


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"v": 2}, "version 2"),
        ({"op": "train"}, "operation 'train'"),
        ({"ms": -1}, "milliseconds"),
        ({"ms": True}, "milliseconds"),
        ({"id": b"short"}, "16 bytes"),
        ({"grads": 3}, "gradients"),
        ({"uid": "ffn0.1.2"}, "run"),
        ({"uid": "../../etc/ffn0.1.2"}, "digits"),
        ({"token": "text"}, "token"),
        ({"trace": b"short"}, "8 bytes"),
        ({"trace": "eight by"}, "8 bytes"),
        ({"since": [1, 2]}, "of each layer"),
        ({"since": [-1]}, "from 0 on"),
        ({"since": [True]}, "from 0 on"),
        ({"since": [0] * (MAX_SPAN + 1)}, "at most 256"),
        ({"bound": -1}, "between forward and backward"),
        ({"back": 0}, "true or false"),
        ({"reply": "zip"}, "codec 'zip'"),
        ({"reply": None}, "codec a NoneType"),
        ({"tensors": [["float32", [2, 3], "zip", 24]]}, "codec 'zip'"),
        ({"tensors": [["float32", [2, 3], "float16", 24]]}, "cannot have 24 bytes"),
        ({"tensors": [["float32", [4097], "blockwise-int8", 4101]]}, "cannot have 4101 bytes"),
        ({"tensors": [["bfloat16", [2, 3], "float16", 12]]}, "bfloat16 does not travel as float16"),
        ({"tensors": [["int64", [2, 3], "blockwise-int8", 10]]}, "int64 does not travel as"),
        ({"tensors": [["float32", [2, 3], "none", 25]]}, "cannot have 25 bytes"),
        ({"tensors": [["float32", [-1, 3], "none", -12]]}, "not a size"),
        ({"tensors": [["object", [1], "none", 8]]}, "dtype 'object'"),
        ({"tensors": [["bool", [1] * 9, "none", 1]]}, "at most 8 sizes"),
        ({"tensors": [["bool", [1], "none", 1]] * (MAX_TENSORS + 1)}, "at most 64"),
    ],
)
def test_a_bad_request_is_refused_with_the_reason(change, sentence):
    header = msgpack.unpackb(unframed(encode_request(list(GOLDEN_REQUESTS.values())[2])))
    with pytest.raises(BadRequestError, match=sentence):
        decode_request(msgpack.packb(header | change))


def test_deep_nesting_is_refused():
    with pytest.raises(BadRequestError):
        decode_request(b"\x91" * 60_000 + b"\xc0")


def test_a_schema_error_stays_a_type_error_on_the_other_side():
    message = encode_reply(Reply(error=SchemaError("wrong")))
    assert isinstance(decode_reply(unframed(message)).error, TypeError)


@pytest.mark.parametrize("depth", [100, 1000, 1020])
@pytest.mark.parametrize("place", ["v", "op", "uid", "ms", "token", "dtype", "size", "codec"])
def test_a_deeply_nested_header_is_malformed_like_any_other(place, depth):
    packer = msgpack.Packer()
    tensor = {"dtype": "float32", "size": 2, "codec": "none"}
    header = {"v": 1, "op": "forward", "uid": str(UID), "ms": 1, "token": b"", "tensors": None}
    packed = [packer.pack_map_header(len(header))]
    bomb = b"\x91" * depth + b"\xc0"
    for key, value in header.items():
        packed.append(packer.pack(key))
        if key == "tensors":
            meta = [bomb if each == place else packer.pack(tensor[each]) for each in tensor]
            packed += [b"\x91\x94", meta[0], b"\x91", meta[1], meta[2], packer.pack(8)]
        else:
            packed.append(bomb if key == place else packer.pack(value))
    with pytest.raises(BadRequestError):
        decode_request(b"".join(packed))


@pytest.mark.parametrize(
    ("uid", "span"),
    [
        *((UID, span) for span in (0, -1, MAX_SPAN + 1, 1.0, True, "2", None)),
        (Uid("open:digits", f"ffn0.{2**31 - 2}"), 3),
    ],
)
def test_a_span_that_is_none_is_refused(uid, span):
    header = {"v": 1, "op": "info", "uid": str(uid), "ms": 1, "span": span}
    with pytest.raises(BadRequestError):
        decode_request(msgpack.packb(header))
