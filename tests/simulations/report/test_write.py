"""The folder of a report: its files, and the page."""

import csv
import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from p2pnode.errors import LocalError
from simulations.report import Report, check_drawing, merge, write_report

PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "br", "img", "use", "path"}


class Page(HTMLParser):
    """Reads a page, and finds what is unbalanced, repeated or loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.loads, self.text = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.loads += [
            value
            for name, value in attrs
            if name in {"src", "href", "xlink:href"} and not value.startswith("#")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(make_report, facts, tmp_path_factory):
    """A folder with a report; nobody changes it."""
    folder = tmp_path_factory.mktemp("written") / "deep" / "report"
    write_report(make_report(), facts, folder)
    return folder


def test_the_folder_has_everything(folder):
    assert sorted(
        str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()
    ) == [
        "index.html",
        "plots/lookup-time.png",
        "plots/lookup-time.svg",
        "plots/nodes-up.png",
        "plots/nodes-up.svg",
        "report.json",
        "series/median.csv",
        "series/nodes-up.csv",
        "series/p99.csv",
        "tables/by-size.csv",
    ]
    assert json.loads((folder / "report.json").read_text())["run"]["scenario"] == "dht-churn"
    assert all(each.read_bytes().startswith(PNG) for each in folder.glob("plots/*.png"))


def test_columns_of_series_and_tables_have_names_and_units(folder):
    with (folder / "series/median.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["nodes", "time [ms]", "time, low", "time, high"],
            ["100.0", "1.5", "1.0", "2.0"],
            ["1000.0", "", "", ""],
        ]
    with (folder / "tables/by-size.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["variant", "time [ms]", "ok"],
            ["a", "8.5", "True"],
            ["", "2", "False"],
        ]


def test_the_page_is_whole_and_loads_nothing(folder):
    text = (folder / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert "url(http" not in text
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 2


def test_every_reference_inside_the_page_has_its_target(folder):
    text = (folder / "index.html").read_text()
    wanted = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    assert wanted
    assert wanted <= set(re.findall(r'id="([^"]+)"', text))


def test_the_page_tells_figures_goals_parameters_and_the_command(folder):
    words = " ".join("".join(Page((folder / "index.html").read_text()).text).split())
    for told in (
        "2 of 3 goals met",
        "99.57 %",
        "goal ≥ 99.55 %",
        "812.5 ms",
        "median & <p99>",
        "not measured",
        "seed 7 · light fidelity · 5.0 h of virtual time · 33.2 s of real time",
        "p2pnode simulate dht-churn --seed 7 --set churn.median=600",
        "Compute is <modelled>.",
        "ab" * 32,
        "Nodes come & go.",
    ):
        assert told in words


def test_colours_of_the_page_s_pictures_follow_the_page(folder):
    text = (folder / "index.html").read_text()
    drawn = text[text.index("<svg") :]
    assert "var(--series-1)" in drawn
    assert "var(--ink)" in drawn
    assert "#0072b2" not in drawn
    assert "prefers-color-scheme: dark" in text
    # A picture that stands alone has no page to ask.
    assert "#0072b2" in (folder / "plots/lookup-time.svg").read_text()


def test_one_report_gives_the_same_bytes_each_time(make_report, facts, folder, tmp_path):
    write_report(make_report(), facts, tmp_path / "again")
    for path in (each for each in folder.rglob("*") if each.is_file()):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_a_new_report_replaces_the_old_one_and_nothing_else(folder, facts, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "copy")
    (folder / "events.jsonl").write_text("kept")
    report = Report()
    report.series("other", [1], [1], x_label="x", y_label="y")
    write_report(report, facts, folder)
    assert [each.name for each in (folder / "series").iterdir()] == ["other.csv"]
    assert (folder / "events.jsonl").read_text() == "kept"


def test_names_that_files_cannot_tell_apart_get_numbers(facts, tmp_path):
    report = Report()
    for name in ("A b", "a/b", "…", "?"):
        report.series(name, [1], [1], x_label="x", y_label="y")
    write_report(report, facts, tmp_path)
    assert sorted(each.name for each in tmp_path.glob("series/*")) == [
        "a-b-2.csv",
        "a-b.csv",
        "unnamed-2.csv",
        "unnamed.csv",
    ]


def test_an_empty_report_and_one_of_a_sweep_are_written(make_report, facts, tmp_path):
    write_report(Report(), facts, tmp_path / "empty")
    assert Page((tmp_path / "empty/index.html").read_text()).open == []
    write_report(merge([make_report(1), make_report(2)], [1, 2]), facts, tmp_path / "sweep")
    words = "".join(Page((tmp_path / "sweep/index.html").read_text()).text)
    assert "99.51 to 99.52 % over 2 seeds" in words


def test_without_matplotlib_one_sentence_tells_what_to_install(
    monkeypatch, make_report, facts, tmp_path
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(LocalError, match=r"pip install 'p2pnode\[simulate\]'"):
        check_drawing()
    with pytest.raises(LocalError):
        write_report(make_report(), facts, tmp_path / "report")
    assert not (tmp_path / "report").exists()
