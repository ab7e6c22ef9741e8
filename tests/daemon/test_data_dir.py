import os
import stat

import pytest

from p2pnode.daemon.data_dir import DataDir, default_data_dir
from p2pnode.errors import DataDirInUseError, DeadlineExceededError, KeyFileError, LocalError


@pytest.fixture
def data_dir(tmp_path):
    return DataDir(tmp_path / "node")


def test_the_identity_is_made_once_and_private(data_dir):
    key = data_dir.load_or_create_identity()
    assert data_dir.load_or_create_identity().peer_id == key.peer_id
    assert stat.S_IMODE(data_dir.identity_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(data_dir.path.stat().st_mode) == 0o700
    assert [path.name for path in data_dir.path.iterdir()] == ["identity.key"]


@pytest.mark.parametrize("content", [b"", b"\x08", b"garbage" * 20, b"x" * 70_000])
def test_a_corrupt_identity_is_reported_and_left_as_it_is(data_dir, content):
    data_dir.create()
    data_dir.identity_file.write_bytes(content)
    data_dir.identity_file.chmod(0o600)
    with pytest.raises(KeyFileError):
        data_dir.load_or_create_identity()
    assert data_dir.identity_file.read_bytes() == content


def test_an_identity_others_can_read_is_refused(data_dir):
    data_dir.load_or_create_identity()
    data_dir.identity_file.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        data_dir.load_or_create_identity()


def test_one_daemon_at_a_time(data_dir):
    with data_dir.lock():
        with pytest.raises(DataDirInUseError, match=f"process {os.getpid()}"), data_dir.lock():
            pass
        with pytest.raises(DeadlineExceededError):
            data_dir.wait_unlocked(0)
    data_dir.wait_unlocked(0)
    with data_dir.lock():
        pass


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="--data-dir"):
        DataDir(tmp_path / "file" / "node").create()


def test_a_full_disk_is_one_sentence(data_dir):
    data_dir.create()
    (data_dir.path / "lock").symlink_to("/dev/full")
    with pytest.raises(LocalError, match="make room"), data_dir.lock():
        pass


def test_the_default_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("P2PNODE_DATA_DIR", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("P2PNODE_DATA_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "p2pnode"


@pytest.mark.parametrize("home", [None, "/home/of/mine"])
def test_without_a_home_the_sentence_says_what_to_do(monkeypatch, home):
    for name in ("P2PNODE_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/of/mine")
    if home is None:  # as in a container whose user has no name
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        with pytest.raises(LocalError, match="--data-dir"):
            DataDir(default_data_dir())
    else:
        assert str(DataDir(default_data_dir()).path) == f"{home}/.local/share/p2pnode"


def test_a_lock_that_cannot_be_opened_is_one_sentence(data_dir):
    (data_dir.path / "lock").mkdir(parents=True)
    with pytest.raises(LocalError, match="lock"), data_dir.lock():
        pass
