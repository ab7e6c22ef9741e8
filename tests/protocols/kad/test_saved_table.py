import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.host.saved_peers import PeersNotKept
from p2pnode.protocols.kad.saved_table import MAX_PEERS, SavedTable, parse, render
from p2pnode.wire.peer_id import PeerId

PEERS = {
    PeerId(b"\x12\x20" + bytes([number]) * 32): [Multiaddr(f"/ip4/10.0.0.{number}/tcp/4001")]
    for number in range(1, 9)
}


async def test_a_table_is_read_as_it_was_saved(tmp_path):
    told = []
    saved = SavedTable(tmp_path / "table.json", told.append)
    assert saved.load() == {}
    await saved.save(PEERS)
    assert saved.load() == PEERS
    assert told == []


async def test_without_a_path_nothing_is_kept():
    saved = SavedTable(None, pytest.fail)
    await saved.save(PEERS)
    assert saved.load() == {}
    assert not saved.is_kept


def test_a_broken_file_is_told_of_and_put_aside(tmp_path):
    path, told = tmp_path / "table.json", []
    path.write_text("{")
    assert SavedTable(path, told.append).load() == {}
    assert not path.exists()
    assert (tmp_path / "table.json.broken").read_text() == "{"
    assert isinstance(told[0], PeersNotKept)


async def test_a_file_that_cannot_be_written_is_told_of(tmp_path):
    told = []
    await SavedTable(tmp_path / "missing" / "table.json", told.append).save(PEERS)
    assert "cannot be written" in told[0].reason


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "peers": {"x": []}}',
     '{"format": 1, "peers": {"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N": ["x"]}}'],
)  # fmt: skip
def test_what_is_not_a_table_is_refused(text):
    with pytest.raises(ValueError, match=r"format|not a saved|Expecting"):
        parse(text)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        parse(text)
    except ValueError:
        return


def test_the_number_read_is_bounded():
    many = {PeerId(b"\x12\x20" + number.to_bytes(32, "big")): [] for number in range(MAX_PEERS + 9)}
    assert len(parse(render(many))) == MAX_PEERS
