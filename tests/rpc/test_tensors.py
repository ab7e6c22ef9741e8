import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import SchemaError
from p2pnode.rpc.schema import ITEM_BYTES, TensorMeta
from p2pnode.rpc.tensors import buffer_of, dtype_of, empty, meta_of, metas_of

shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("dtype", "values", "golden"),
    [
        ("float32", [1.0, -2.5], "0000803f000020c0"),
        ("float64", [1.0], "000000000000f03f"),
        ("float16", [1.0, -2.5], "003c00c1"),
        ("bfloat16", [1.0, -2.5], "803f20c0"),
        ("int64", [-2], "feffffffffffffff"),
        ("int32", [258], "02010000"),
        ("int16", [258], "0201"),
        ("int8", [-1], "ff"),
        ("uint8", [255], "ff"),
        ("bool", [True, False], "0100"),
    ],
)
def test_elements_are_little_endian_on_the_wire(dtype, values, golden):
    assert bytes(buffer_of(torch.tensor(values, dtype=dtype_of(dtype)))).hex() == golden


@given(st.sampled_from(sorted(ITEM_BYTES)), shapes, st.integers(0, 2**31))
def test_a_tensor_survives_the_wire_bit_by_bit(dtype, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (TensorMeta(dtype, shape).nbytes,), generator=generator)
    tensor = bits.to(torch.uint8).view(dtype_of(dtype)).reshape(shape)
    meta = meta_of(tensor)
    received, buffer = empty(meta)
    sent = buffer_of(tensor)
    assert len(sent) == len(buffer) == meta.nbytes
    buffer[:] = sent
    assert meta_of(received) == meta
    assert bytes(buffer_of(received)) == bytes(sent)


def test_a_contiguous_tensor_is_sent_and_filled_without_a_copy():
    tensor = torch.zeros(3, 4)
    buffer_of(tensor)[:4] = bytes.fromhex("0000803f")
    assert tensor[0, 0] == 1
    received, buffer = empty(TensorMeta("bfloat16", (2,)))
    buffer[:] = bytes.fromhex("803f20c0")
    assert received.tolist() == [1.0, -2.5]


def test_views_and_parameters_are_sent_as_what_they_show():
    base = torch.arange(6.0).reshape(2, 3).requires_grad_()
    assert bytes(buffer_of(base.t())) == bytes(buffer_of(base.detach().t().clone()))
    assert bytes(buffer_of(base[:, 1])) == bytes(buffer_of(torch.tensor([1.0, 4.0])))
    assert bytes(buffer_of(torch.ones(1).expand(3))) == bytes(buffer_of(torch.ones(3)))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, dtype=torch.complex64),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
    ],
)
def test_what_has_no_plain_buffer_is_refused(tensor):
    with pytest.raises(SchemaError, match="cannot be sent"):
        metas_of([tensor])
