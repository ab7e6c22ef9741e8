import pytest

from p2pnode.clock import wall_time
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.runs import RunStore
from p2pnode.errors import ConfigError, KeyFileError, NotAMemberError, ProtocolError
from p2pnode.swarm.description import Kind


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


def describe(store, name="lm", **changes):
    usual = {"kind": Kind.LAYERS, "patterns": ["blocks.[0:4]"], "now": 100.0}
    return store.describe(name, **(usual | changes))


def test_an_owner_describes_a_run_and_changes_what_it_names_only(ours):
    ours.create("lm")
    first = describe(ours, options={"model": "tiny", "learning_rate": 0.1})
    assert ours.description("lm") == first
    second = ours.describe("lm", options={"learning_rate": None, "seed": 3}, now=200.0)
    assert second.options == {"model": "tiny", "seed": 3}
    assert second.patterns == ("blocks.[0:4]",)
    assert second.sequence == 200_000
    third = describe(ours, patterns=["blocks.[0:6]"], now=150.0)  # the clock was set back
    assert third.sequence == 200_001
    assert third.options == second.options
    assert ours.description("lm") == third


def test_nobody_else_describes_a_run(ours, theirs):
    theirs.create("lm")
    ours.accept(invite_to(theirs, "lm"))
    with pytest.raises(ConfigError, match="does not own"):
        describe(ours)


def test_what_a_run_cannot_consist_of_is_refused_and_nothing_changes(ours):
    ours.create("lm")
    first = describe(ours)
    with pytest.raises(ConfigError, match="no plain value"):
        describe(ours, options={"seed": float("nan")})
    assert ours.description("lm") == first


def test_a_member_keeps_the_newest_description_it_has_found(ours, theirs):
    theirs.create("lm")
    ours.accept(invite_to(theirs, "lm"))
    assert ours.description("lm") is None
    old = describe(theirs)
    sealed_old = theirs.sealed_description("lm")
    new = describe(theirs, now=300.0)
    ours.keep_description("lm", theirs.sealed_description("lm"))
    ours.keep_description("lm", sealed_old)
    assert ours.description("lm") == new != old
    with pytest.raises(ProtocolError):
        ours.keep_description("lm", b"something else")
    with pytest.raises(NotAMemberError):
        ours.keep_description("digits", sealed_old)


def test_a_corrupt_description_is_told_by_name(ours, tmp_path):
    ours.create("lm")
    describe(ours)
    (tmp_path / "ours" / "runs" / "lm.description").write_bytes(b"x")
    with pytest.raises(KeyFileError, match=r"lm\.description is corrupt"):
        ours.description("lm")
