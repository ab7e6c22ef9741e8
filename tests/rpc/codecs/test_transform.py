"""Each codec against the bound it documents, for whatever floats there are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import NonFiniteError, ProtocolError
from p2pnode.rpc.codecs.names import (
    BLOCK,
    CODECS,
    codec_for,
    held_bytes,
    travelling,
    wire_bytes,
    wire_form,
)
from p2pnode.rpc.codecs.transform import decode, encode
from p2pnode.rpc.schema import TensorMeta
from p2pnode.rpc.tensors import buffer_of, dtype_of, empty, meta_of

FLOATS = ["bfloat16", "float16", "float32", "float64"]
EXACT = ["bool", "int8", "int16", "int32", "int64", "uint8"]
CASTS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
UNIT = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-24, "float64": 2**-53}
SMALLEST = {"float16": 2**-24, "bfloat16": 2**-133, "float32": 2**-149, "float64": 0.0}
DOUBLE_ROUNDING = 1 + 2**-10  # torch takes float64 to float16 by way of float32
GOLDEN = [
    ("none", [1.0, -2.5], "0000803f000020c0"),
    ("float16", [1.0, -2.5, 1e-6, 1e6], "003c00c11100ff7b"),
    ("bfloat16", [1.0, -2.5, 1e-6, 3.4e38], "803f20c086357f7f"),
    ("blockwise-int8", [1.27, -0.64, 0.0, 0.004], "0ad7233c7fc00000"),
    ("blockwise-int8", [], ""),
]


def through(tensor, codec):
    """Send a tensor through its wire form, as bytes."""
    described = travelling(meta_of(tensor), codec)
    sent = bytes(buffer_of(encode(tensor, described)))
    assert len(sent) == wire_bytes(described)
    received, buffer = empty(wire_form(described))
    buffer[:] = sent
    found = decode(received, described)
    assert travelling(meta_of(found), codec) == described
    return found


def exact(tensor):
    return tensor.to(torch.float64).flatten()


def floats_of(dtype, **options):
    """All numbers of a dtype, by their bits: denormals, both zeros and the largest as well."""
    width = 8 * torch.empty(0, dtype=dtype_of(dtype)).element_size()
    kind = {16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    bits = st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1)
    return st.lists(bits, **options).map(
        lambda found: torch.tensor(found, dtype=kind).view(dtype_of(dtype))
    )


any_floats = st.sampled_from(FLOATS).flatmap(lambda dtype: floats_of(dtype, max_size=40))
finite_floats = any_floats.map(lambda tensor: tensor[tensor.isfinite()])


@pytest.mark.parametrize(("codec", "values", "golden"), GOLDEN)
def test_elements_travel_as_these_bytes(codec, values, golden):
    tensor = torch.tensor(values, dtype=torch.float32)
    assert bytes(buffer_of(encode(tensor, travelling(meta_of(tensor), codec)))).hex() == golden


@given(any_floats)
def test_without_a_codec_every_bit_comes_back(tensor):
    assert bytes(buffer_of(through(tensor, "none"))) == bytes(buffer_of(tensor))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", EXACT)
def test_what_is_no_float_is_never_changed(codec, dtype):
    tensor = torch.arange(-3, 4).to(dtype_of(dtype))
    assert codec_for(codec, dtype) == "none"
    assert torch.equal(through(tensor, codec), tensor)


@pytest.mark.parametrize("codec", ["float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_float_of_two_bytes_is_not_made_another_one(codec, dtype):
    assert codec_for(codec, dtype) == "none"


@pytest.mark.parametrize("codec", ["float16", "bfloat16"])
@given(tensor=any_floats)
def test_a_cast_is_within_its_bound_and_keeps_what_is_not_finite(codec, tensor):
    found, given_ = exact(through(tensor, codec)), exact(tensor)
    if codec_for(codec, meta_of(tensor).dtype) == "none":
        assert torch.equal(found, given_) or given_.isnan().any()
        return
    assert torch.equal(found.isnan(), given_.isnan())
    assert torch.equal(found.isinf(), given_.isinf())
    assert torch.equal(found[found.isinf()], given_[given_.isinf()])
    finite = given_.isfinite()
    found, given_ = found[finite], given_[finite]
    largest = torch.finfo(CASTS[codec]).max
    near = given_.clamp(-largest, largest)
    bound = torch.maximum(near.abs() * UNIT[codec], torch.tensor(SMALLEST[codec] / 2))
    assert ((found - near).abs() <= bound * DOUBLE_ROUNDING).all()


@given(finite_floats)
def test_blocks_of_int8_are_within_their_bound(tensor):
    check_blocks(tensor, through(tensor, "blockwise-int8"))


def check_blocks(tensor, result):
    assert result.isfinite().all()
    kind = meta_of(tensor).dtype
    largest = torch.finfo(torch.float32).max
    found, near = exact(result), exact(tensor).clamp(-largest, largest)
    for start in range(0, len(near), BLOCK):
        part = near[start : start + BLOCK]
        magnitude = part.abs().max().item()
        bound = magnitude / 254 + magnitude * 2**-22 + 2**-142
        rounding = magnitude * UNIT[kind] + SMALLEST[kind]
        assert ((found[start : start + BLOCK] - part).abs() <= bound + rounding).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_and_the_smallest_numbers_stay_finite_and_near(dtype):
    limits = torch.finfo(dtype_of(dtype))
    for value in (limits.max, limits.min, limits.tiny, limits.smallest_normal / 8):
        tensor = torch.tensor([value, -value, value / 2], dtype=dtype_of(dtype))
        check_blocks(tensor, through(tensor, "blockwise-int8"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, 70 * BLOCK + 5])
def test_each_block_has_a_scale_of_its_own(dtype, count):
    generator = torch.Generator().manual_seed(count)
    tensor = torch.randn(count, generator=generator, dtype=torch.float64)
    tensor *= 10.0 ** -(torch.arange(count) // BLOCK % 4)  # what one scale would turn into zeros
    tensor = tensor.to(dtype_of(dtype)).reshape(1, count)
    result = through(tensor, "blockwise-int8")
    assert result.shape == tensor.shape
    check_blocks(tensor.flatten(), result.flatten())
    if count > BLOCK:
        assert result[0, BLOCK:].any()


@pytest.mark.parametrize("codec", ["float16", "bfloat16"])
def test_a_number_too_large_is_found_in_any_part_of_a_large_tensor(codec):
    tensor = torch.zeros(300_000, dtype=torch.float64)
    tensor[-1], tensor[1000] = 1e300, -math.inf
    result = through(tensor, codec)
    assert result[-1] == torch.finfo(CASTS[codec]).max
    assert result[1000] == -math.inf
    assert result.count_nonzero() == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_blocks_refuse_what_they_have_no_place_for(bad, dtype):
    tensor = torch.zeros(2 * BLOCK + 3, dtype=dtype_of(dtype))
    tensor[-1] = bad
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        through(tensor, "blockwise-int8")


@given(st.integers(0, 2 * BLOCK + 9), st.randoms(use_true_random=False))
def test_any_bytes_decode_to_finite_numbers_or_are_refused(count, random):
    described = travelling(meta_of(torch.empty(count)), "blockwise-int8")
    received = torch.frombuffer(
        bytearray(random.randbytes(wire_bytes(described)) or b"\0"), dtype=torch.uint8
    )
    received = received[: wire_bytes(described)]
    try:
        found = decode(received, described)
    except ProtocolError:
        return
    assert found.shape == (count,)
    assert not found.isnan().any()


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_a_scale_that_is_none_is_refused(scale):
    described = travelling(meta_of(torch.empty(3)), "blockwise-int8")
    packed = encode(torch.ones(3), described)
    packed[:4].view(torch.float32).fill_(scale)
    with pytest.raises(ProtocolError, match="scale"):
        decode(packed, described)


@pytest.mark.parametrize("codec", CODECS)
def test_views_and_parameters_travel_as_what_they_show(codec):
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for view in (base.t(), base[:, 1], base[2:3].expand(3, 8)):
        assert torch.equal(through(view, codec), through(view.detach().clone(), codec))
        assert not through(view, codec).requires_grad
    scalar = torch.tensor(0.5)
    assert through(scalar, codec) == scalar


@given(
    st.sampled_from(CODECS),
    st.sampled_from(FLOATS + EXACT),
    st.lists(st.integers(0, 2**20), max_size=3).map(tuple),
)
def test_the_sizes_are_known_before_anything_is_allocated(codec, dtype, shape):
    described = travelling(TensorMeta(dtype, shape), codec)
    count = math.prod(shape)
    scales = 4 * math.ceil(count / BLOCK)
    sizes = {"none": described.nbytes, "float16": 2 * count, "bfloat16": 2 * count}
    size = sizes.get(described.codec, scales + count)
    assert wire_bytes(described) == size
    assert held_bytes(described) == described.nbytes + (size if described.codec != "none" else 0)
