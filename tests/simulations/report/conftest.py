"""A report that has something of everything, and the facts of its run."""

import pytest

from simulations.report import Axis, Report, RunFacts, at_least, at_most


@pytest.fixture(scope="session")
def make_report():
    """A function that makes the report of a seed."""

    def make(seed=7):
        report = Report()
        report.figure("experts found", 99.5 + seed / 100, "%", goal=at_least(99.55))
        report.figure("lookup time", 812.5, "ms", goal=at_most(900), detail="median & <p99>")
        report.figure("hops", 3)
        report.figure("never", float("nan"), goal=at_most(1))
        report.series(
            "nodes up",
            [0, 10, 20 + seed],
            [4, seed, 8],
            x_label="virtual time",
            x_unit="s",
            y_label="nodes",
            style="steps",
        )
        for name in ("median", "p99"):
            report.series(
                name,
                [100, 1000],
                [1.5, None],
                x_label="nodes",
                y_label="time",
                y_unit="ms",
                low=[1.0, None],
                high=[2.0, None],
            )
        report.plot(
            "lookup time", {"one": ["median"], "two": ["p99"]}, log_x=True, marks=[(500, "half")]
        )
        report.table(
            "by size",
            ["variant", Axis("time", "ms"), "ok"],
            [["a", 1.5 + seed, True], [None, 2, False]],
        )
        report.note("Compute is <modelled>.")
        return report

    return make


@pytest.fixture(scope="session")
def facts():
    """Facts of a run of seed 7."""
    return RunFacts(
        scenario="dht-churn",
        summary="Nodes come & go.",
        parameters={"nodes": 100, "churn.median": 600.0, "delays": (0.0, 100.0), "ok": True},
        changed=("churn.median",),
        seeds=(7,),
        fidelity="light",
        command="p2pnode simulate dht-churn --seed 7 --set churn.median=600",
        versions={"p2pnode": "0.1.0", "python": "3.11.7"},
        log_digest=("ab" * 32,),
        events=1234,
        virtual_seconds=18_000.0,
        real_seconds=33.25,
    )
