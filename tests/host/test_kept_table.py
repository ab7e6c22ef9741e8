"""A table of peers on disk, whatever stands in it: what is broken, missing or too large."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.host.kept_table import (
    MAX_FILE_BYTES,
    KeptTable,
    TableFormat,
    TableNotKept,
    write_atomically,
)
from p2pnode.wire.keys import PrivateKey

ONE, TWO = (PrivateKey.from_seed(bytes([each]) * 32).peer_id for each in (1, 2))
NUMBERS = TableFormat(name="table", number=3, to_json=str, from_json=lambda _, text: int(text))


def test_a_person_can_read_it():
    assert NUMBERS.render({ONE: 5}) == f'{{\n "format": 3,\n "peers": {{\n  "{ONE}": "5"\n }}\n}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"format": 2, "peers": {}}',
        '{"format": 3}',
        '{"format": 3, "peers": []}',
        '{"format": 3, "peers": {"x": "1"}}',
        f'{{"format": 3, "peers": {{"{ONE}": "x"}}}}',
        f'{{"format": 3, "peers": {{"{ONE}": []}}}}',
    ],
)
def test_what_is_no_such_table_is_refused(text):
    with pytest.raises(ValueError, match=r"format|not a saved table|Expecting|invalid literal"):
        NUMBERS.parse(text)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        NUMBERS.parse(text)
    except ValueError:
        return


async def test_a_table_is_read_as_it_was_saved(tmp_path):
    path, told = tmp_path / "table.json", []
    kept = KeptTable(path, NUMBERS, told.append)
    assert kept.is_kept
    assert await kept.load() == {}
    await kept.save({ONE: 1, TWO: 2})
    assert await kept.load() == {ONE: 1, TWO: 2}
    assert list(tmp_path.iterdir()) == [path]
    assert told == []


async def test_without_a_path_nothing_is_kept():
    kept = KeptTable(None, NUMBERS, pytest.fail)
    await kept.save({ONE: 1})
    assert await kept.load() == {}
    assert not kept.is_kept


@pytest.mark.parametrize("content", [b"{", b"\xff"])
async def test_a_broken_file_is_told_of_and_put_aside(tmp_path, content):
    path, told = tmp_path / "table.json", []
    path.write_bytes(content)
    assert await KeptTable(path, NUMBERS, told.append).load() == {}
    assert not path.exists()
    assert (tmp_path / "table.json.broken").read_bytes() == content
    (event,) = told
    assert isinstance(event, TableNotKept)
    assert event.path == path
    assert "table.json.broken" in event.reason


async def test_a_file_that_is_too_large_is_not_even_read(tmp_path):
    path, told = tmp_path / "table.json", []
    path.touch()
    with path.open("r+b") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # it takes no room on the disk
    assert await KeptTable(path, NUMBERS, told.append).load() == {}
    assert "more than" in told[0].reason


async def test_a_file_that_cannot_be_written_is_told_of(tmp_path):
    told = []
    await KeptTable(tmp_path / "missing" / "table.json", NUMBERS, told.append).save({ONE: 1})
    assert "cannot be written" in told[0].reason


async def test_a_file_that_cannot_be_read_is_told_of(tmp_path):
    told = []
    assert await KeptTable(tmp_path, NUMBERS, told.append).load() == {}
    assert "cannot be read" in told[0].reason


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    write_atomically(path, "old")

    def full(_descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
