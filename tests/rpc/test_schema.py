import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2pnode.rpc.schema
from p2pnode.errors import ProtocolError, SchemaError, TensorTooLargeError
from p2pnode.rpc.schema import ITEM_BYTES, ExpertInfo, TensorMeta, TensorSpec, UpTo, read_meta

ROWS = TensorSpec("float32", (None, 8))
INFO = ExpertInfo(
    layer="ffn",
    inputs=(ROWS, TensorSpec("bool", (None,))),
    outputs=(ROWS,),
    keywords=("mask",),
    max_rows=16,
    max_bytes=1024,
)

HIDDEN = TensorSpec("float32", (None, UpTo(5), 8))
SEQUENCES = ExpertInfo(
    layer="block",
    inputs=(HIDDEN, TensorSpec("bool", (None, UpTo(9)))),
    outputs=(HIDDEN,),
    max_rows=16,
    max_bytes=10_000,
)

metas = st.builds(
    TensorMeta,
    st.sampled_from(sorted(ITEM_BYTES)),
    st.lists(st.integers(0, 2**40), max_size=8).map(tuple),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def x(rows=2, dtype="float32", width=8):
    return TensorMeta(dtype, (rows, width))


def mask(rows=2):
    return TensorMeta("bool", (rows,))


@pytest.mark.parametrize("name", ["schema", "messages", "budget"])
def test_what_is_said_on_the_wire_needs_neither_torch_nor_trio(name):
    path = Path(p2pnode.rpc.schema.__file__).with_name(f"{name}.py")
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        + [alias.name for alias in node.names]
    }
    assert not imported & {"torch", "trio", "time", "random", "socket", "numpy"}


def test_a_fitting_call_tells_its_rows():
    assert INFO.check_inputs([x(3), mask(3)]) == 3
    assert INFO.check_gradients([x(3), mask(3)], [x(3)]) == 3
    assert INFO.outputs_of([x(3), mask(3)]) == [TensorMeta("float32", (3, 8))]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([x()], "2 input tensors, not 1"),
        (
            [x(dtype="float64"), mask()],
            r"input 0 must be float32 of shape \(rows, 8\), not float64",
        ),
        ([x(width=9), mask()], r"not float32 of shape \(2, 9\)"),
        ([TensorMeta("float32", (2, 8, 1)), mask()], "input 0 must be"),
        ([TensorMeta("float32", ()), mask()], "input 0 must be"),
        ([x(), TensorMeta("bool", (2, 1))], "input mask must be bool"),
        ([x(3), mask(2)], "different numbers of rows"),
        ([x(0), mask(0)], "no rows"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_with_what_would(inputs, sentence):
    with pytest.raises(SchemaError, match=sentence):
        INFO.check_inputs(inputs)
    with pytest.raises(TypeError):
        INFO.check_gradients(inputs, [x()])


@pytest.mark.parametrize("gradients", [[], [x(3)], [x(width=7)], [x(), x()]])
def test_gradients_that_do_not_fit_are_refused(gradients):
    with pytest.raises(SchemaError, match="gradient"):
        INFO.check_gradients([x(), mask()], gradients)


def test_a_call_larger_than_the_host_takes_is_refused():
    with pytest.raises(TensorTooLargeError, match="17 rows"):
        INFO.check_inputs([x(17), mask(17)])
    assert INFO.check_inputs([x(16), mask(16)]) == 16
    with pytest.raises(TensorTooLargeError, match="1040 bytes"):  # two times 512, and the mask
        INFO.check_gradients([x(16), mask(16)], [x(16)])


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("complex64", (None, 1)), ("float32", ()), ("float32", (3, 1)), ("float32", (None, None))],
)
def test_a_spec_has_a_known_dtype_and_free_rows_only(dtype, shape):
    with pytest.raises(SchemaError):
        TensorSpec(dtype, shape)


def sequences(rows=2, length=3, mask=None):
    return [
        TensorMeta("float32", (rows, length, 8)),
        TensorMeta("bool", (rows, length if mask is None else mask)),
    ]


def test_a_free_dimension_is_chosen_by_each_call():
    for length in (1, 5):
        inputs = sequences(length=length)
        assert SEQUENCES.check_inputs(inputs) == 2
        assert SEQUENCES.outputs_of(inputs) == inputs[:1]
        assert SEQUENCES.positions_of([meta.shape for meta in inputs]) == length
        assert SEQUENCES.check_gradients(inputs, inputs[:1]) == 2
    assert INFO.positions_of([(3, 8), (3,)]) == 1


@pytest.mark.parametrize("inputs", [sequences(length=0), sequences(length=6)])
def test_a_free_dimension_has_bounds(inputs):
    with pytest.raises(SchemaError, match=r"must be float32 of shape \(rows, up to 5, 8\)"):
        SEQUENCES.check_inputs(inputs)


def test_a_free_dimension_is_the_same_in_all_tensors_of_a_call():
    with pytest.raises(SchemaError, match="dimension 1 of the input tensors is 3 in one and 4"):
        SEQUENCES.check_inputs(sequences(length=3, mask=4))
    with pytest.raises(SchemaError, match="input and gradient tensors"):
        SEQUENCES.check_gradients(sequences(), sequences(length=4)[:1])


def test_each_position_counts_against_the_size_of_a_call():
    assert SEQUENCES.check_inputs(sequences(rows=4, length=4)) == 4
    with pytest.raises(TensorTooLargeError, match="20 positions in one call"):
        SEQUENCES.check_inputs(sequences(rows=5, length=4))


def test_an_output_is_not_free_where_no_input_is():
    with pytest.raises(SchemaError, match="free dimension that no input has"):
        ExpertInfo(layer="x", inputs=(ROWS,), outputs=(HIDDEN,), max_rows=1, max_bytes=1)
    with pytest.raises(SchemaError):
        UpTo(0)


@pytest.mark.parametrize("info", [INFO, SEQUENCES])
def test_an_expert_description_survives_the_wire(info):
    assert ExpertInfo.from_wire(info.to_wire()) == info


specs = st.lists(
    st.tuples(st.just("float32"), st.none(), anything | st.fixed_dictionaries({"max": anything})),
    max_size=3,
).map(lambda made: [list(each) for each in made])


@given(
    st.sampled_from([INFO, SEQUENCES]), st.sampled_from(sorted(INFO.to_wire())), anything | specs
)
def test_a_changed_description_is_read_or_refused_but_never_crashes(info, key, value):
    data = info.to_wire() | {key: value}
    try:
        info = ExpertInfo.from_wire(data)
    except ProtocolError:
        return
    assert ExpertInfo.from_wire(info.to_wire()) == info


@given(anything)
def test_garbage_is_not_a_description(data):
    with pytest.raises(ProtocolError):
        ExpertInfo.from_wire(data)


@given(metas)
def test_a_meta_survives_the_wire(meta):
    assert read_meta(meta.dtype, list(meta.shape)) == meta


@given(anything, anything)
def test_garbage_is_not_a_meta(dtype, shape):
    try:
        meta = read_meta(dtype, shape)
    except ProtocolError:
        return
    assert meta == TensorMeta(dtype, tuple(shape))
