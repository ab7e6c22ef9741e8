import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from p2pnode.errors import ModelError
from p2pnode.models.building import Model
from p2pnode.models.config import PRESETS
from p2pnode.models.seeding import seeded
from p2pnode.models.transformer import DecoderBlock


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_models_of_which_blocks_can_be_built(name):
    config = Model.find(name).config
    with torch.device("meta"):  # nothing is allocated
        hidden = torch.empty(2, 3, config.hidden_size)
        assert DecoderBlock(config)(hidden).shape == hidden.shape


def test_fresh_weights_depend_on_seed_and_name_alone():
    model = Model.find("tiny")

    def weight(seed, name):
        with seeded(seed, name):
            return model.build_block(0).mlp.up_proj.weight

    before = torch.get_rng_state()
    first = weight(0, "blocks.0")
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(first, weight(0, "blocks.0"))
    assert not torch.equal(first, weight(0, "blocks.1"))
    assert not torch.equal(first, weight(1, "blocks.0"))
    assert torch.equal(*(model.build_ends(3).embed_tokens.weight for _ in range(2)))
    assert not torch.equal(*(model.build_ends(seed).embed_tokens.weight for seed in (3, 4)))


def test_a_block_needs_the_file_it_is_in_and_no_other(checkpoint):
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    of_ends = index["lm_head.weight"]
    assert of_ends not in {file for name, file in index.items() if ".layers.0." in name}
    (checkpoint / of_ends).unlink()
    model = Model.find(str(checkpoint))
    assert model.build_block(0).self_attn.q_proj.weight.shape == (16, 16)
    with pytest.raises(ModelError, match="cannot read the weights"):
        model.build_ends()


def test_weights_are_converted_and_own_their_memory(golden_directory):
    model = Model.find(str(golden_directory / "llama"), "bfloat16")
    block = model.build_block(1)
    assert {each.dtype for each in block.parameters()} == {torch.bfloat16}
    assert all(each.requires_grad for each in block.parameters())
    with torch.no_grad():
        block.mlp.up_proj.weight.zero_()  # a mapped file would refuse, or change
    assert model.build_block(1).mlp.up_proj.weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "LlamaForCausalLM"),
        ({"architectures": None}, "LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor"),
        ({"rope_parameters": "much"}, "does not describe a model"),
        ({"hidden_size": "16"}, "hidden_size=.16."),
        ({"hidden_size": -16}, "hidden_size=-16"),
        ({"num_attention_heads": 0, "head_dim": None}, "does not describe a model"),
        ({"num_key_value_heads": 3}, "key and value heads"),
        ({"max_position_embeddings": 2**40}, "max_positions"),
    ],
)
def test_another_kind_of_model_is_refused(edited, fields, complaint):
    with pytest.raises(ModelError, match=complaint):
        Model.find(edited(**fields))


def test_weights_of_other_shapes_are_refused(edited):
    model = Model.find(edited(intermediate_size=25))
    with pytest.raises(ModelError, match=r"\(24, 16\), but config.json makes it \(25, 16\)"):
        model.build_block(0)


def test_a_block_that_is_not_there_is_refused(checkpoint):
    with pytest.raises(ModelError, match="blocks 0 to 1"):
        Model.find(str(checkpoint)).build_block(2)


def test_more_layers_than_weights_are_refused(edited):
    with pytest.raises(ModelError, match=r"no model.layers.2"):
        Model.find(edited(num_hidden_layers=3)).build_block(2)


def test_an_unknown_name_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(ModelError, match="neither a directory nor one of the models tiny, small"):
        Model.find(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"config.json"):
        Model.find(str(tmp_path))


def test_pickled_weights_are_refused(checkpoint):
    for file in checkpoint.glob("*.safetensors*"):
        file.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="convert it to safetensors"):
        Model.find(str(checkpoint))


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_an_index_cannot_lead_out_of_its_directory(checkpoint, name):
    path = checkpoint / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ModelError, match="no safetensors file of it"):
        Model.find(str(checkpoint))


@pytest.mark.parametrize("data", [b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_a_damaged_description_is_told(checkpoint, data):
    (checkpoint / "config.json").write_bytes(data)
    with pytest.raises(ModelError, match=r"config.json"):
        Model.find(str(checkpoint))


def test_damaged_weights_are_told(checkpoint):
    for file in checkpoint.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot read the weights"):
        Model.find(str(checkpoint)).build_block(0)


def test_one_file_without_an_index_does(checkpoint):
    parts = sorted(checkpoint.glob("*.safetensors"))
    known = Model.find(str(checkpoint)).build_block(1).mlp.up_proj.weight
    save_file({k: v for p in parts for k, v in load_file(p).items()}, checkpoint / "whole")
    for file in checkpoint.glob("model*"):
        file.unlink()
    (checkpoint / "whole").rename(checkpoint / "model.safetensors")
    assert torch.equal(Model.find(str(checkpoint)).build_block(1).mlp.up_proj.weight, known)


def test_blocks_that_compute_alike_have_one_fingerprint(config):
    other = dataclasses.replace(config, layers=9, vocab_size=7, max_positions=99)
    assert other.block_fingerprint == config.block_fingerprint
    for change in ({"rope_theta": 5.0}, {"norm_eps": 1e-6}, {"dtype": "bfloat16"}):
        changed = dataclasses.replace(config, **change)
        assert changed.block_fingerprint != config.block_fingerprint
