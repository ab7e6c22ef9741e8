import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from p2pnode.errors import ConfigError
from p2pnode.experts import layers
from p2pnode.experts.backend import build_backend
from p2pnode.experts.layers import Layer, check_input_specs, find_layer, register_layer
from p2pnode.rpc.schema import TensorSpec
from p2pnode.wire.uids import Uid

SOURCE = """
from torch import nn
from p2pnode.experts.layers import register_layer
from p2pnode.rpc.schema import TensorSpec

class Plain(nn.Linear):
    def __init__(self, hidden_dim):
        super().__init__(hidden_dim, 2)

@register_layer("registered-{name}", inputs=lambda d: (TensorSpec("int64", (None, d)),))
class Registered(nn.Identity):
    pass

number = 3
"""


@pytest.fixture
def restored_registry():
    before = dict(layers._LAYERS)
    yield
    layers._LAYERS.clear()
    layers._LAYERS.update(before)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("ffn", (3, 16)), ("linear", (3, 16)), ("nop", (3, 16)), ("transformer", (3, 128, 16))],
)
def test_the_usual_layers_keep_the_shape_and_treat_rows_alone(name, shape):
    layer = find_layer(name)
    module = layer.build(16).train()
    x = torch.randn(shape)
    (spec,) = check_input_specs(layer, 16)
    assert spec == TensorSpec("float32", (None, *shape[1:]))
    y = module(x)
    assert y.shape == shape
    assert torch.equal(module(x), y), "the same input must give the same output"
    torch.testing.assert_close(module(x[1:2]), y[1:2])


def test_the_feed_forward_expert_is_that_of_learning_at_home():
    sizes = [
        (m.in_features, m.out_features)
        for m in find_layer("ffn").build(16).modules()
        if isinstance(m, nn.Linear)
    ]
    assert sizes == [(16, 64), (64, 64), (64, 16)]


@pytest.mark.parametrize("hidden_dim", [1, 6, 7, 48])
def test_a_transformer_takes_any_size(hidden_dim):
    module = find_layer("transformer").build(hidden_dim)
    assert module(torch.zeros(1, 2, hidden_dim)).shape == (1, 2, hidden_dim)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fnn", "unknown layer 'fnn'; use one of ffn, "),
        ("no_such_module:Class", "no_such_module"),
        ("torch.nn:NoSuchClass", "has no class 'NoSuchClass'"),
        ("/no/such/file.py:Class", "cannot load"),
        (":Class", "cannot load"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused_with_a_hint(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        find_layer(name)


def test_classes_come_from_a_module_where_the_user_stands(tmp_path, monkeypatch, restored_registry):
    (tmp_path / "my_layers_here.py").write_text(SOURCE.format(name="m"))
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    plain = find_layer("my_layers_here:Plain")
    assert plain.build(8)(torch.zeros(3, 8)).shape == (3, 2)
    assert check_input_specs(plain, 8) == (TensorSpec("float32", (None, 8)),)
    assert find_layer("my_layers_here:Registered").inputs(4) == (TensorSpec("int64", (None, 4)),)
    assert sys.path == path
    with pytest.raises(ConfigError, match="number"):
        find_layer("my_layers_here:number")


def test_classes_come_from_a_file_that_is_read_once(tmp_path, restored_registry):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE.format(name="f"))
    assert find_layer(f"{file}:Registered").build is find_layer(f"{file}:Registered").build
    assert find_layer("registered-f").name == "registered-f"
    assert find_layer(f"{file}:Plain").name == "Plain"


def test_hosts_that_have_a_class_at_different_places_can_take_over_from_each_other(
    tmp_path, settings, restored_registry
):
    experts = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}_layers.py").write_text(SOURCE.format(name=folder))
        named = f"{tmp_path / folder / f'{folder}_layers.py'}:Plain"
        experts.append(build_backend(Uid("open:r", "a.0"), replace(settings, layer=named)))
    one, other = experts
    one.backward([torch.ones(2, 8)], [torch.ones(2, 2)])
    other.load(one.state())
    assert other.steps == 1


@pytest.mark.parametrize(
    "source", ["def (", "1 / 0", "import no_such_thing", "class A(Module): ..."]
)
def test_a_file_with_a_mistake_is_refused(tmp_path, source):
    file = tmp_path / "broken.py"
    file.write_text(source)
    for _ in range(2):
        with pytest.raises(ConfigError, match="broken"):
            find_layer(f"{file}:Plain")


def test_a_name_is_registered_once(restored_registry):
    register_layer("unique")(nn.Identity)
    with pytest.raises(ConfigError, match="registered already"):
        register_layer("unique")(nn.Identity)


@pytest.mark.parametrize(
    ("layer", "hidden_dim"),
    [
        (find_layer("ffn"), 0),
        (Layer(name="x", build=nn.Identity, inputs=lambda _: ()), 8),
        (Layer(name="x", build=nn.Identity, inputs=layers.hidden_rows, keywords=("a", "b")), 8),
        (Layer(name="x", build=nn.Identity, inputs=lambda _: (TensorSpec("f8", (None,)),)), 8),
    ],
)
def test_a_layer_without_valid_inputs_is_refused(layer, hidden_dim):
    with pytest.raises(ConfigError, match="layer"):
        check_input_specs(layer, hidden_dim)
