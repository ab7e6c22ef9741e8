"""The folder of a report.

    report.json             everything, for programs: see `simulations.report.document`
    index.html              everything, for people
    series/<name>.csv       x, y, and the band if there is one
    tables/<name>.csv       the table's columns
    plots/<name>.svg, .png  the pictures

What is in a folder of an earlier report of these names is replaced; other files are left alone.
"""

import csv
import importlib.util
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from p2pnode.errors import LocalError
from simulations.report.data import Report, RunFacts, Scalar
from simulations.report.document import dump
from simulations.report.page import page
from simulations.report.style import file_name

_PARTS: Final = {"series": (".csv",), "tables": (".csv",), "plots": (".svg", ".png")}


def write_report(report: Report, facts: RunFacts, folder: Path) -> None:
    """Write a report into a folder, which is made if need be.

    Raises:
        LocalError: the drawing library is not installed; nothing was written.
        OSError: the folder cannot be written.
    """
    check_drawing()
    from simulations.report.plots import draw_png, draw_svg  # noqa: PLC0415  # it is an extra

    pictures = {plot.name: draw_svg(plot, report) for plot in report.all_plots()}
    files: dict[str, str | bytes] = {
        "report.json": dump(report, facts),
        "index.html": page(report, facts, pictures),
    }
    for name, path in _paths("series", report.all_series).items():
        files[f"{path}.csv"] = _series_csv(report, name)
    for name, path in _paths("tables", report.tables).items():
        table = report.tables[name]
        files[f"{path}.csv"] = _csv([str(each) for each in table.columns], table.rows)
    plots = {plot.name: plot for plot in report.all_plots()}
    for name, path in _paths("plots", plots).items():
        files[f"{path}.svg"] = pictures[name]
        files[f"{path}.png"] = draw_png(plots[name], report)
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())


def check_drawing() -> None:
    """Find out whether plots can be drawn, before a long run ends without its report.

    Raises:
        LocalError: they cannot; it says what to install.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise LocalError(
            "reports of simulations need matplotlib; install it with: pip install"
            " 'p2pnode[simulate]'"
        )


def _paths(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Return the path of each name, without its suffix; no two are the same."""
    paths: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        base = path = f"{folder}/{file_name(name)}"
        number = 2
        while path in taken:
            path = f"{base}-{number}"
            number += 1
        taken.add(path)
        paths[name] = path
    return paths


def _clear(folder: Path) -> None:
    for part, suffixes in _PARTS.items():
        for path in sorted((folder / part).glob("*")):
            if path.suffix in suffixes and path.is_file():
                path.unlink()


def _series_csv(report: Report, name: str) -> str:
    series = report.all_series[name]
    heads = [str(series.x_axis), str(series.y_axis)]
    columns: list[Sequence[Scalar]] = [series.x, series.y]
    if series.low:
        heads += [f"{series.y_axis.label}, {edge}" for edge in ("low", "high")]
        columns += [series.low, series.high]
    return _csv(heads, zip(*columns, strict=True))


def _csv(heads: Sequence[str], rows: Iterable[Sequence[Scalar]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return out.getvalue()
