"""What `train-lm` reads, keeps, counts and refuses; the network is left out."""

import sys
import types

import pytest
import torch
from torch import nn

from cli.main import main
from cli.train_lm.plan import host_settings
from cli.train_lm.text import Batches, Text, read
from cli.train_lm.training import evaluate, load_ends, save_ends, train
from p2pnode.errors import (
    CheckpointError,
    ConfigError,
    HostLostError,
    LocalError,
    NoLiveExpertError,
    PermissionDeniedError,
)
from p2pnode.models.building import Model
from p2pnode.trainer.sequential.language import RemoteLanguageModel

DATA = bytes(range(200)) * 5


def test_the_blocks_of_a_demo_learn_slower_for_each_part_of_a_batch():
    whole, parts = (host_settings(0, 1, count)["hosting"]["learning_rate"] for count in (1, 4))
    assert parts == whole / 4


class Blocks(nn.Module):
    """Stands for remote blocks; fails as often as it is told."""

    def __init__(self, failures=()):
        super().__init__()
        self.failures = list(failures)

    def forward(self, hidden):
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return hidden


def model(*failures):
    return RemoteLanguageModel(Model.find("tiny").build_ends(), Blocks(failures))


def batches(seed=0):
    return Batches(Text.split(DATA, 16), 4, 16, seed)


def steps(model, count=6):
    return list(train(model, batches(), steps=count, learning_rate=1e-2))


def test_a_tenth_is_held_out_and_never_drawn():
    text = Text.split(DATA, 16)
    assert bytes(text.train.tolist()) + bytes(text.held_out.tolist()) == DATA
    assert len(text.held_out) == len(DATA) // 10
    windows = text.windows(16)
    assert windows.shape == (32, 17)
    torch.testing.assert_close(windows, text.windows(16))
    assert windows[0, 0] == text.held_out[0]
    assert windows[-1, -1] == text.held_out[-1]


def test_the_shortest_text_that_is_taken_fits_its_windows():
    with pytest.raises(ConfigError, match="take one of 170 bytes or more"):
        Text.split(bytes(169), 16)
    text = Text.split(bytes(170), 16)
    assert text.windows(16).shape == (1, 17)


def test_batches_are_decided_by_their_seed():
    first, second, other = batches(), batches(), batches(seed=1)
    drawn = [first.draw() for _ in range(3)]
    torch.testing.assert_close(drawn, [second.draw() for _ in range(3)])
    assert drawn[0].shape == (4, 17)
    assert not torch.equal(drawn[0], other.draw())


def test_pythons_documentation_is_english_without_repetitions():
    text = read(None).decode()
    paragraphs = text.split("\n\n")
    assert len(text) > 100_000
    assert "the" in text.split()
    assert len(set(paragraphs)) == len(paragraphs)


def test_a_python_without_its_documentation_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data", types.ModuleType("pydoc_data"))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(LocalError, match="--text"):
        read(None)


def test_a_text_that_is_not_there_is_told_in_one_sentence(tmp_path):
    with pytest.raises(LocalError, match="cannot read the text"):
        read(tmp_path / "absent")
    file = tmp_path / "text"
    file.write_bytes(DATA)
    assert read(file) == DATA


def test_training_lowers_the_loss():
    trained = model()
    windows = Text.split(DATA, 16).windows(16)
    before = evaluate(trained, windows)
    found = steps(trained)
    assert [step.number for step in found] == [1, 2, 3, 4, 5, 6]
    assert found[-1].loss < found[0].loss
    assert evaluate(trained, windows) < before


def test_a_lost_step_is_counted_and_the_next_one_taken():
    found = steps(model(None, HostLostError("gone"), NoLiveExpertError("none"), None))
    assert [step.loss is None for step in found] == [False, True, True, False, False, False]
    assert [step.error for step in found[:3]] == [None, "gone", "none"]


def test_a_training_that_loses_step_after_step_ends():
    with pytest.raises(HostLostError, match="third"):
        steps(model(HostLostError("first"), HostLostError("second"), HostLostError("third")))


def test_a_trainer_that_may_not_train_is_told_at_once():
    with pytest.raises(PermissionDeniedError):
        steps(model(PermissionDeniedError("not yours")))


def test_ends_are_kept_and_gone_on_with(tmp_path):
    path = tmp_path / "ends.safetensors"
    first, second = model(), model()
    assert not load_ends(second, path)
    steps(first)
    save_ends(first, path)
    assert load_ends(second, path)
    torch.testing.assert_close(second.ends.state_dict(), first.ends.state_dict())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_ends_that_cannot_be_used_are_told_and_left_alone(tmp_path):
    path = tmp_path / "ends.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="same --model"):
        load_ends(model(), path)
    save_ends(RemoteLanguageModel(Model.find("small").build_ends(), Blocks()), path)
    with pytest.raises(CheckpointError, match="same --model"):
        load_ends(model(), path)
    with pytest.raises(CheckpointError, match="cannot save"):
        save_ends(model(), tmp_path / "absent" / "ends")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--bootstrap"),
        (("--demo", "--invite", "x"), "of its own"),
        (("--demo", "--model", "small"), "of its own"),
        (("--demo", "--prompt", ""), "--prompt"),
        (("--demo", "--steps", "0"), "--steps"),
    ],
)
def test_what_does_not_go_together_is_refused(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as left:
        main(["train-lm", *arguments])
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err
