import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from p2pnode.models.building import Model
from p2pnode.models.config import PRESETS

GOLDEN = Path(__file__).parent.parent / "golden" / "language_models"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def config():
    return dataclasses.replace(PRESETS["tiny"], layers=3, max_positions=64)


@pytest.fixture
def golden_directory():
    return GOLDEN


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a real checkpoint's directory, to be damaged."""
    return Path(shutil.copytree(GOLDEN / "llama", tmp_path / "model"))


@pytest.fixture
def edited(checkpoint):
    """Change fields of the copy's config.json."""

    def edit(**fields):
        path = checkpoint / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return str(checkpoint)

    return edit


@pytest.fixture
def run_model():
    """Compute the logits of tokens with all parts of a model."""

    def run(name, tokens):
        model = Model.find(name)
        ends = model.build_ends()
        with torch.no_grad():
            hidden = ends.embed(tokens)
            for index in range(model.config.layers):
                hidden = model.build_block(index)(hidden)
            return ends.logits(hidden)

    return run
