"""Reading a model from a directory in Hugging Face's format: `config.json` and safetensors.

Only what is asked for is read, so a host of three blocks needs memory for three blocks. Weights in
any other format are refused: pickles run code. All functions block; they are meant for a worker
thread.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import torch

from p2pnode.errors import ModelError
from p2pnode.models.config import ModelConfig, RopeScaling
from p2pnode.rpc.tensors import dtype_of

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
_MAX_JSON_BYTES: Final = 64 * 1024 * 1024  # the index of the largest models has a few
_WEIGHTS_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors", re.ASCII)
# Each with the biases it has in q, k, v and in o where `attention_bias` does not say.
_ARCHITECTURES: Final = {
    "LlamaForCausalLM": (False, False),
    "MistralForCausalLM": (False, False),
    "Qwen2ForCausalLM": (True, False),
}


def read_config(directory: Path, dtype: str) -> ModelConfig:
    """Read the architecture.

    Args:
        directory: the model's.
        dtype: the weights are converted to it.

    Raises:
        ModelError: there is no `config.json`, it is damaged, or it describes another kind of model.
    """
    path = directory / CONFIG_FILE
    data = _read_json(path)
    architectures = data.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name not in _ARCHITECTURES:
        raise ModelError(
            f"{path} describes a model of the kind {name!r}; those that can be hosted are"
            f" {', '.join(_ARCHITECTURES)}"
        )
    for key, usual in (
        ("hidden_act", "silu"),
        ("mlp_bias", False),
        ("use_sliding_window", False),
        ("pretraining_tp", 1),
    ):
        if data.get(key, usual) not in (usual, None):
            raise ModelError(f"{path} has {key}={data[key]!r}, which is not supported")
    if name == "MistralForCausalLM" and data.get("sliding_window") is not None:
        raise ModelError(f"{path} has a sliding window, which is not supported")
    qkv_bias, output_bias = _ARCHITECTURES[name]
    if "attention_bias" in data and name == "LlamaForCausalLM":
        qkv_bias = output_bias = bool(data["attention_bias"])
    try:
        heads = data["num_attention_heads"]
        theta, scaling = _rope(path, data)
        return ModelConfig(
            vocab_size=data["vocab_size"],
            hidden_size=data["hidden_size"],
            layers=data["num_hidden_layers"],
            heads=heads,
            kv_heads=data.get("num_key_value_heads") or heads,
            head_size=data.get("head_dim") or data["hidden_size"] // heads,
            intermediate_size=data["intermediate_size"],
            max_positions=data["max_position_embeddings"],
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=float(data.get("rms_norm_eps", 1e-6)),
            tie_embeddings=bool(data.get("tie_word_embeddings", False)),
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            dtype=dtype,
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ModelError(f"{path} does not describe a model: {error!r}") from error


class WeightsDirectory:
    """The safetensors files of one model.

    Raises:
        ModelError: there are none, or their index is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._files: Mapping[str, Path] | None = None  # by tensor; None where one file has all
        self._single = directory / WEIGHTS_FILE
        index = directory / INDEX_FILE
        if index.is_file():
            self._files = _read_index(index)
        elif not self._single.is_file():
            others = sorted(each.name for each in directory.glob("*.bin"))
            raise ModelError(
                f"{directory} holds no {WEIGHTS_FILE} and no {INDEX_FILE}"
                + (f", only {others[0]}; convert it to safetensors" if others else "")
            )

    def read(self, names: Mapping[str, torch.Size], dtype: str) -> dict[str, torch.Tensor]:
        """Read some tensors, converted to a dtype, into memory of their own.

        Args:
            names: of the tensors, with the shapes they must have.
            dtype: to convert them to.

        Raises:
            ModelError: one is missing, damaged, or of another shape.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            path = self._single if self._files is None else self._files.get(name)
            if path is None:
                raise ModelError(f"the index of the model has no {name}")
            by_file.setdefault(path, []).append(name)
        found = {}
        for path, members in by_file.items():
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    for name in members:
                        found[name] = _converted(file.get_tensor(name), dtype)
            except (safetensors.SafetensorError, OSError, ValueError) as error:
                raise ModelError(f"cannot read the weights in {path}: {error}") from error
        for name, shape in names.items():
            if found[name].shape != shape:
                raise ModelError(
                    f"{name} has the shape {tuple(found[name].shape)}, but {CONFIG_FILE} makes it"
                    f" {tuple(shape)}"
                )
        return found


def _converted(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"quantised weights of {tensor.dtype} are not supported")
    return tensor.to(dtype_of(dtype), copy=True)  # what is read is mapped from the file


def _rope(path: Path, data: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return theta and scaling; newer files have both in one table, `rope_parameters`."""
    table = data.get("rope_parameters") or data.get("rope_scaling") or {}
    theta = float(table.get("rope_theta", data.get("rope_theta", 10_000.0)))
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(f"{path} has rotary embeddings of the kind {kind!r}, not supported here")
    return theta, RopeScaling(
        factor=float(table["factor"]),
        low_frequency=float(table["low_freq_factor"]),
        high_frequency=float(table["high_freq_factor"]),
        original_positions=table["original_max_position_embeddings"],
    )


def _read_index(path: Path) -> dict[str, Path]:
    places = _read_json(path).get("weight_map")
    if not isinstance(places, dict):
        raise ModelError(f"{path} has no weight_map")
    for name in places.values():
        if not isinstance(name, str) or not _WEIGHTS_NAME.fullmatch(name):
            raise ModelError(f"{path} names {str(name)[:80]!r}, which is no safetensors file of it")
    return {tensor: path.parent / name for tensor, name in places.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError(f"{path} is larger than {_MAX_JSON_BYTES} bytes")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds no table")
    return data
