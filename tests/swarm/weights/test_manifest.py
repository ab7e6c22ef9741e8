import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config.experts import CODECS
from p2pnode.errors import ProtocolError
from p2pnode.rpc.codecs.names import wire_bytes
from p2pnode.rpc.schema import ITEM_BYTES, TensorMeta
from p2pnode.swarm.weights.manifest import (
    ALIGNMENT,
    HASH_BYTES,
    MAX_MANIFEST_BYTES,
    Layout,
    Manifest,
    hash_of,
    in_state,
)
from p2pnode.wire.uids import Uid

UID = Uid("open:digits", "ffn0.1.2")
LAYOUT = Layout(
    tensors=(
        ("module.weight", TensorMeta("float32", (3, 5))),
        ("module.bias", TensorMeta("bfloat16", (1,))),
        ("module.empty", TensorMeta("float32", (0,))),
        ("optimizer.0.step", TensorMeta("float64", ())),
    )
)
MANIFEST = Manifest(
    uid=UID, steps=7, rows=64, layer="ffn", optimizer="adam", complete=True, codec="none",
    layout=LAYOUT, chunk_bytes=1024, chunks=(bytes(range(32)),),
)  # fmt: skip
GOLDEN = (
    "9b03b46f70656e3a6469676974732f66666e302e312e320740a366666ea46164616dc3a46e6f6e659493ad6d6f64756c652e7765"
    "69676874a7666c6f6174333292030593ab6d6f64756c652e62696173a862666c6f617431369101"
    "93ac6d6f64756c652e656d707479a7666c6f617433329100"
    "93b06f7074696d697a65722e302e73746570a7666c6f6174363490cd0400c420"
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
)

metas = st.builds(
    TensorMeta,
    st.sampled_from(sorted(ITEM_BYTES)),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
)
names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20)


@st.composite
def manifests(draw):
    tensors = draw(st.dictionaries(st.one_of(names, names.map("module.{}".format)), metas))
    codec = draw(st.sampled_from(CODECS))
    layout = Layout(
        tensors=tuple((name, in_state(name, meta, codec)) for name, meta in tensors.items())
    )
    count = -(-layout.size // 1024)
    return Manifest(
        uid=UID,
        steps=draw(st.integers(0, 2**40)),
        rows=draw(st.integers(0, 2**40)),
        layer=draw(names),
        optimizer=draw(names),
        complete=draw(st.booleans()),
        codec=codec,
        layout=layout,
        chunk_bytes=1024,
        chunks=tuple(draw(st.binary(min_size=32, max_size=32)) for _ in range(count)),
    )


def test_the_bytes_of_a_manifest_stay_as_they_are():
    assert MANIFEST.encode().hex() == GOLDEN
    assert Manifest.decode(bytes.fromhex(GOLDEN)) == MANIFEST
    assert MANIFEST.name == hash_of(bytes.fromhex(GOLDEN))


def test_tensors_lie_one_after_the_other_each_aligned():
    assert LAYOUT.offsets == (0, 64, 128, 128)
    assert LAYOUT.size == 136
    assert Layout(tensors=()).size == 0


def test_matrices_of_weights_are_encoded_and_nothing_else_is():
    matrix = TensorMeta("float32", (64, 64))
    found = {
        name: wire_bytes(in_state(name, meta, "blockwise-int8"))
        for name, meta in (
            ("module.weight", matrix),
            ("module.bias", TensorMeta("float32", (64,))),
            ("module.table", TensorMeta("int64", (64, 64))),
            ("optimizer.0.exp_avg_sq", matrix),
        )
    }
    assert found == {
        "module.weight": 64 * 64 + 4,
        "module.bias": 4 * 64,
        "module.table": 8 * 64 * 64,
        "optimizer.0.exp_avg_sq": 4 * 64 * 64,
    }


@given(manifests())
def test_a_manifest_is_read_as_it_was_written(manifest):
    read = Manifest.decode(manifest.encode())
    assert read == manifest
    assert all(offset % ALIGNMENT == 0 for offset in read.layout.offsets)
    ends = [
        offset + wire_bytes(meta)
        for offset, (_, meta) in zip(read.layout.offsets, read.layout.tensors, strict=True)
    ]
    assert all(end <= start for end, start in zip(ends, read.layout.offsets[1:], strict=False))
    assert sum(read.span(index)[1] for index in range(len(read.chunks))) == read.size


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data):
    try:
        manifest = Manifest.decode(data)
    except ProtocolError:
        return
    assert manifest.encode() == data


@given(st.data())
def test_a_damaged_manifest_is_read_or_refused(data):
    encoded = bytearray(MANIFEST.encode())
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    try:
        manifest = Manifest.decode(bytes(encoded))
    except ProtocolError:
        return
    assert manifest.encode() == encoded


def changed(position, value):
    fields = msgpack.unpackb(MANIFEST.encode())
    fields[position] = value
    return msgpack.packb(fields)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (changed(0, 1), "of version 1"),
        (changed(1, "no uid"), "names no expert"),
        (changed(2, -1), "out of range"),
        (changed(2, 2**60), "out of range"),
        (changed(3, 1.5), "fields it should"),
        (changed(4, "x" * 300), "at most 256 characters"),
        (changed(4, "\x1b[2J"), "at most 256 characters"),
        (changed(6, 1), "fields it should"),
        (changed(7, "zip"), "codec 'zip' is not known"),
        (changed(8, [["a", "float32", [1]]] * 2), "same name"),
        (changed(8, [["a", "float32"]]), "name, dtype and shape"),
        (changed(8, [["a", "complex64", [1]]]), "complex64"),
        (changed(8, [["a", "float64", [2**40, 2**40]]]), "too large"),
        (changed(8, [["a", "int8", []]] * 5000), "at most 4096"),
        (changed(9, 1000), "power of two"),
        (changed(9, 2**30), "power of two"),
        (changed(10, bytes(HASH_BYTES * 2)), "more or fewer hashes"),
        (changed(10, bytes(HASH_BYTES - 1)), "more or fewer hashes"),
        (b"", "not msgpack"),
        (b"\x80", "must be a list"),
        (b"\x91\x03", "fields it should"),
        (bytes(MAX_MANIFEST_BYTES + 1), "too large"),
        (MANIFEST.encode() + b"\x00", "not msgpack"),
        (b"\xdc\x00\x0b" + MANIFEST.encode()[1:], "shortest form"),
    ],
)
def test_what_is_no_manifest_is_refused(data, reason):
    with pytest.raises(ProtocolError, match=reason):
        Manifest.decode(data)


def test_the_name_depends_on_everything():
    for change in (
        {"steps": 8}, {"rows": 65}, {"layer": "nop"}, {"complete": False},
        {"codec": "float16"}, {"chunks": (bytes(32),)}, {"uid": Uid("open:digits", "ffn0.1.3")},
    ):  # fmt: skip
        assert dataclasses.replace(MANIFEST, **change).name != MANIFEST.name
