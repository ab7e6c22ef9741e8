import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import InvalidUidError
from p2pnode.wire.uids import (
    MAX_COORDINATE,
    MAX_DIMENSIONS,
    MAX_UID_CHARS,
    Uid,
    check_prefix,
    check_run,
    expand,
    expand_all,
)

coordinates = st.lists(st.integers(0, MAX_COORDINATE), min_size=1, max_size=MAX_DIMENSIONS)


def test_a_uid_is_read_into_its_parts():
    uid = Uid.parse("digits/ffn0.1.2")
    assert (uid.run, uid.name, uid.block) == ("digits", "ffn0.1.2", "ffn0")
    assert (uid.prefix, uid.coordinate, uid.coordinates) == ("ffn0.1", 2, (1, 2))
    assert uid.prefixes == (("ffn0", 1), ("ffn0.1", 2))
    assert str(uid) == "digits/ffn0.1.2"


def test_a_name_without_a_run_takes_the_default_run():
    assert Uid.parse("blocks.5", run="lm") == Uid("lm", "blocks.5")
    assert Uid.parse("other/blocks.5", run="lm") == Uid("other", "blocks.5")
    with pytest.raises(InvalidUidError, match="does not say its run"):
        Uid.parse("blocks.5")


def test_in_run_changes_the_run_alone():
    assert Uid.parse("digits/ffn0.1").in_run("open:digits") == Uid("open:digits", "ffn0.1")


@given(st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True), coordinates)
def test_every_uid_reads_back_from_its_text(block, position):
    uid = Uid("run", ".".join((block, *map(str, position))))
    assert Uid.parse(str(uid)) == uid
    assert uid.coordinates == tuple(position)
    assert len(uid.prefixes) == len(position)
    assert uid.prefixes[-1] == (uid.prefix, uid.coordinate)
    assert all(f"{prefix}.{nxt}" in uid.name for prefix, nxt in uid.prefixes)


@given(st.text(max_size=40))
def test_any_text_is_a_uid_or_refused_by_name(text):
    with contextlib.suppress(InvalidUidError):
        assert str(Uid.parse(text, run="r")).endswith(text)


@pytest.mark.parametrize(
    "text",
    [
        "digits/ffn0",  # a block is not an expert
        "digits/ffn0.",
        "digits/ffn0.01",
        "digits/ffn0.-1",
        "digits/ffn0.1.x",
        "digits/ffn0.٣",  # digits of other scripts
        "digits/ffn0.1\n",
        "digits/.1",
        "/ffn0.1",
        "a b/ffn0.1",
        "digits/x/ffn0.1",
        f"digits/ffn0.{MAX_COORDINATE + 1}",
        "digits/ffn0" + ".1" * (MAX_DIMENSIONS + 1),
        "digits/" + "f" * MAX_UID_CHARS + ".1",
        "digits/ffn0.[0:2]",  # a pattern is not a uid
    ],
)
def test_a_malformed_uid_is_refused(text):
    with pytest.raises(InvalidUidError):
        Uid.parse(text)


def test_a_pattern_expands_with_the_last_coordinate_running_fastest():
    names = [str(uid) for uid in expand("digits/ffn0.[0:2].[3:5]")]
    assert names == [
        "digits/ffn0.0.3",
        "digits/ffn0.0.4",
        "digits/ffn0.1.3",
        "digits/ffn0.1.4",
    ]
    assert expand("blocks.5", run="lm") == [Uid("lm", "blocks.5")]


def test_patterns_that_overlap_give_each_uid_once():
    uids = expand_all(["r/f.[0:3]", "r/f.[2:4]", "r/f.0"])
    assert [uid.coordinate for uid in uids] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "pattern",
    [
        "r/ffn.[4:4]",
        "r/ffn.[4:2]",
        "r/ffn.[:2]",
        "r/ffn.[0-2]",
        "r/ffn.[0:02]",
        "r/ffn",
        "r/[0:2].1",
        "r/ffn.[0:9999999999]",
        "r/ffn.[0:1000].[0:1000]",
        "r/ffn" + ".[0:2]" * 9,
    ],
)
def test_a_pattern_that_is_malformed_or_too_large_is_refused(pattern):
    with pytest.raises(InvalidUidError):
        expand(pattern)


def test_the_limit_holds_for_all_patterns_together():
    with pytest.raises(InvalidUidError, match="at most 3"):
        expand_all(["r/f.[0:2]", "r/g.[0:2]"], limit=3)


def test_prefixes_and_runs_are_checked():
    assert check_prefix("ffn0") == "ffn0"
    assert check_prefix("ffn0.3") == "ffn0.3"
    assert check_run("open:digits") == "open:digits"
    for bad in ("", "ffn0.", "0ffn", "r/ffn0"):
        with pytest.raises(InvalidUidError):
            check_prefix(bad)
    for bad in ("", "a/b", "-x", "é"):
        with pytest.raises(InvalidUidError):
            check_run(bad)


def test_a_span_is_the_uids_that_follow_in_the_last_coordinate():
    first = Uid("lm", "blocks.3.8")
    names = ["blocks.3.8", "blocks.3.9", "blocks.3.10"]
    assert first.span(3) == tuple(Uid("lm", name) for name in names)
    assert first.span(1) == (first,)


@pytest.mark.parametrize(("coordinate", "length"), [(0, 0), (0, -1), (MAX_COORDINATE, 2)])
def test_a_span_of_uids_that_cannot_be_is_refused(coordinate, length):
    with pytest.raises(InvalidUidError, match="from blocks"):
        Uid("lm", f"blocks.{coordinate}").span(length)
