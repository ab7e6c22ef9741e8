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
]
