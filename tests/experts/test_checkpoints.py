import errno
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from p2pnode.errors import CheckpointError
from p2pnode.experts.checkpoints import Checkpoint, CheckpointStore, read_checkpoint
from p2pnode.experts.states import ExpertState
from p2pnode.wire.uids import Uid

UID = Uid("open:digits", "ffn.1.2")
KEYS = [bytes([number] * 16) for number in range(3)]


def checkpoint(steps=1, applied=tuple(KEYS)):
    tensors = {
        "module.weight": torch.full((2, 3), float(steps)),
        "module.half": torch.arange(4, dtype=torch.bfloat16),
        "module.count": torch.tensor(7),
        "optimizer.0.step": torch.tensor(3.0),
        "module.nothing": torch.empty(0, 2),
    }
    state = ExpertState(tensors=tensors, steps=steps, rows=2 * steps, layer="ffn", optimizer="adam")
    return Checkpoint(state=state, applied=applied)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "experts", keep=2)


def names(store):
    return sorted(path.name for path in store.folder(UID).iterdir())


def damage(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return bytes(data)


def test_an_expert_without_checkpoints_has_none(store):
    assert store.load(UID) is None


def test_what_is_saved_is_what_is_loaded(store):
    path = store.save(UID, checkpoint())
    restored = CheckpointStore(store._directory, keep=2).load(UID)
    assert (restored.path, restored.skipped) == (path, [])
    expected, found = checkpoint().state, restored.checkpoint.state
    assert {**found.tensors}.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    assert (found.steps, found.rows, found.layer, found.optimizer) == (1, 2, "ffn", "adam")
    assert restored.checkpoint.applied == KEYS


def test_a_checkpoint_without_applied_calls_is_one_too(store):
    store.save(UID, checkpoint(applied=()))
    assert store.load(UID).checkpoint.applied == []


def test_a_file_is_plain_safetensors_with_json_metadata(store):
    data = store.save(UID, checkpoint()).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = json.loads(header["__metadata__"]["p2pnode"])
    assert metadata["uid"] == "open:digits/ffn.1.2"
    assert (metadata["format"], metadata["steps"], metadata["optimizer"]) == (1, 1, "adam")
    assert header["module.weight"]["shape"] == [2, 3]
    assert header["replay.applied"]["shape"] == [3, 16]


def test_runs_and_experts_have_folders_of_their_own(store):
    others = [Uid("digits", UID.name), Uid(UID.run, "ffn.1.3"), UID]
    for number, uid in enumerate(others):
        store.save(uid, checkpoint(number))
    assert [store.load(uid).checkpoint.state.steps for uid in others] == [0, 1, 2]
    assert ":" not in str(store.folder(UID).relative_to(store._directory))


def test_versions_set_aside_are_neither_loaded_nor_deleted_with_the_others(store):
    store.save(UID, checkpoint(1))
    aside = store.set_aside(UID, checkpoint(9))
    for steps in (2, 3, 4):
        store.save(UID, checkpoint(steps))
    assert aside.name == "kept-00000001.safetensors"
    assert names(store) == ["00000003.safetensors", "00000004.safetensors", aside.name]
    assert store.load(UID).checkpoint.state.steps == 4
    aside.rename(aside.with_name("00000005.safetensors"))  # its owner wants it back
    assert store.load(UID).checkpoint.state.steps == 9


def test_the_newest_versions_set_aside_are_kept(store):
    for steps in range(4):
        store.set_aside(UID, checkpoint(steps))
    assert names(store) == ["kept-00000003.safetensors", "kept-00000004.safetensors"]


def test_the_newest_are_kept(store):
    for steps in range(5):
        store.save(UID, checkpoint(steps))
    assert names(store) == ["00000004.safetensors", "00000005.safetensors"]
    assert store.load(UID).checkpoint.state.steps == 4


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_cut_file_is_skipped_and_the_one_before_is_used(store, size):
    good, bad = store.save(UID, checkpoint(1)), store.save(UID, checkpoint(2))
    bad.write_bytes(bad.read_bytes()[:size])
    restored = CheckpointStore(store._directory, keep=2).load(UID)
    assert restored.path == good
    assert [path for path, _ in restored.skipped] == [bad]
    assert "damaged" in restored.skipped[0][1]


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(at=st.integers(0, 10_000))
def test_a_bit_changed_anywhere_is_noticed(tmp_path, at):
    store = CheckpointStore(tmp_path, keep=100)
    path = store.save(UID, checkpoint())
    original = path.read_bytes()
    try:
        damage(path, at % len(original))
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path, UID)
    finally:
        path.unlink()


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_garbage_is_not_a_checkpoint(tmp_path, data):
    path = tmp_path / "garbage"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        read_checkpoint(path, UID)


def test_a_file_of_another_expert_is_not_used(store):
    path = store.save(UID, checkpoint())
    with pytest.raises(CheckpointError, match=r"it holds open:digits/ffn\.1\.2"):
        read_checkpoint(path, Uid(UID.run, "ffn.9.9"))


def test_a_damaged_file_is_never_overwritten_nor_deleted(store):
    store.save(UID, checkpoint(1))
    bad = store.save(UID, checkpoint(2))
    content = damage(bad)
    fresh = CheckpointStore(store._directory, keep=2)
    assert fresh.load(UID).checkpoint.state.steps == 1
    for steps in range(3, 8):
        fresh.save(UID, checkpoint(steps))
    assert bad.read_bytes() == content
    assert names(fresh) == [
        "00000002.safetensors",
        "00000006.safetensors",
        "00000007.safetensors",
    ]
    assert fresh.load(UID).checkpoint.state.steps == 7


def test_an_older_damaged_file_that_nobody_has_read_is_not_deleted_either(store):
    old, good = store.save(UID, checkpoint(1)), store.save(UID, checkpoint(2))
    content = damage(old)
    fresh = CheckpointStore(store._directory, keep=1)
    assert fresh.load(UID).path == good
    fresh.save(UID, checkpoint(3))
    assert old.read_bytes() == content
    assert not good.exists()


def test_an_expert_whose_files_are_all_damaged_is_not_silently_fresh(store):
    paths = [store.save(UID, checkpoint(steps)) for steps in range(2)]
    contents = [damage(path) for path in paths]
    with pytest.raises(CheckpointError, match="to start afresh") as caught:
        CheckpointStore(store._directory, keep=2).load(UID)
    assert str(store.folder(UID)) in str(caught.value)
    assert [path.read_bytes() for path in paths] == contents


def test_an_unusable_directory_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = CheckpointStore(tmp_path / "file", keep=2)
    with pytest.raises(CheckpointError, match="cannot list"):
        store.load(UID)
    with pytest.raises(CheckpointError, match=r"cannot save|cannot list"):
        store.save(UID, checkpoint())


def test_a_full_disk_leaves_the_earlier_checkpoints(store, monkeypatch):
    store.save(UID, checkpoint(1))

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        store.save(UID, checkpoint(2))
    monkeypatch.undo()
    assert names(store) == ["00000001.safetensors"]
    assert store.load(UID).checkpoint.state.steps == 1


def test_a_crash_while_writing_leaves_a_file_that_nobody_reads(store):
    store.save(UID, checkpoint(1))
    (store.folder(UID) / ".writing").write_bytes(b"half a checkpoi")
    fresh = CheckpointStore(store._directory, keep=2)
    assert fresh.load(UID).checkpoint.state.steps == 1
    fresh.save(UID, checkpoint(2))
    assert names(fresh) == ["00000001.safetensors", "00000002.safetensors"]


def test_a_name_appears_only_after_its_content_is_on_the_disk(store, monkeypatch):
    steps = []
    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor):
        steps.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112  # follows the link
        fsync(descriptor)

    def record_rename(self, target):
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    store.save(UID, checkpoint())
    assert steps == ["file", "rename", "directory"]
