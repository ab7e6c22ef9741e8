from pathlib import Path

from cli.commands.host import absolute
from p2pnode.config import HostingSettings


def test_files_are_named_so_that_a_daemon_in_another_directory_finds_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here, home = Path.cwd(), tmp_path / "home"
    own = HostingSettings(layer="mine.py:A,wide=~/b.py:B,narrow=mine:C", model="weights")
    assert absolute(own) == {
        "layer": f"{here}/mine.py:A,wide={home}/b.py:B,narrow=mine:C",
        "model": f"{here}/weights",
    }


def test_names_that_are_no_files_stay_as_they_are():
    assert absolute(HostingSettings(layer="mine:C,wide=linear", model="tiny")) == {}
