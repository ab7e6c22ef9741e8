"""Reports of simulations: plain data in, a folder of JSON, CSV, plots and one HTML page out."""

from simulations.report.data import (
    Axis,
    Figure,
    Goal,
    Panel,
    Plot,
    Report,
    RunFacts,
    Series,
    Spread,
    Table,
    at_least,
    at_most,
)
from simulations.report.document import dump, load
from simulations.report.sweep import merge
from simulations.report.write import check_drawing, write_report

__all__ = [
    "Axis",
    "Figure",
    "Goal",
    "Panel",
    "Plot",
    "Report",
    "RunFacts",
    "Series",
    "Spread",
    "Table",
    "at_least",
    "at_most",
    "check_drawing",
    "dump",
    "load",
    "merge",
    "write_report",
]
