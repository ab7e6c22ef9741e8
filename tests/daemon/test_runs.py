import pytest

from p2pnode.clock import wall_time
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.runs import RunStore
from p2pnode.errors import ConfigError


@pytest.fixture
def ours(tmp_path):
    return RunStore(DataDir(tmp_path / "ours"))


@pytest.fixture
def theirs(tmp_path):
    return RunStore(DataDir(tmp_path / "theirs"))


def invite_to(store, name):
    return store.invite(name, scopes=["train"], expires_at=wall_time() + 60, peer=None)


def test_a_new_run_never_replaces_one_this_node_owns(ours):
    run_id = ours.create("digits").run_id
    with pytest.raises(ConfigError, match="already owns"):
        ours.create("digits")
    assert ours.get("digits").run_id == run_id


def test_a_new_run_never_replaces_a_membership(ours, theirs):
    run_id = theirs.create("digits").run_id
    ours.accept(invite_to(theirs, "digits"))
    with pytest.raises(ConfigError, match="somebody else's run called digits"):
        ours.create("digits")
    assert ours.get("digits").run_id == run_id


def test_an_invite_to_another_run_of_a_known_name_is_refused(ours, theirs):
    run_id = ours.create("digits").run_id
    theirs.create("digits")
    with pytest.raises(ConfigError, match="another run called digits"):
        ours.accept(invite_to(theirs, "digits"))
    assert ours.get("digits").run_id == run_id
