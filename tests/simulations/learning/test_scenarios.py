"""The scenarios of learning at a small size: their figures, and that a seed gives one run."""

import os
import subprocess
import sys

import pytest

from p2pnode.errors import ConfigError
from simulations.learning.convergence import at_end, plan
from simulations.learning.training import Evaluation, History
from simulations.report import dump
from simulations.runner import Plan, run_seed

SMALL = {
    "learning-convergence": {
        "steps": 40,
        "evaluations": 4,
        "delays": (0.0, 100.0),
        "trainers": (1, 4),
        "failures": (0.0, 0.1),
        "features": 4,
        "blocks": 1,
        "experts": 6,
        "k_best": 2,
    },
    "learning-throughput": {"blocks": 12, "jobs": 16, "pings": 3, "batches": 3},
    "stragglers": {"hosts": 8, "grid": 4, "steps": 4, "batch": 4},
}


@pytest.fixture(scope="module")
def outcomes():
    """The outcome of each scenario with seed 3."""
    return {
        name: run_seed(Plan(scenario=name, chosen=chosen, seed=3)) for name, chosen in SMALL.items()
    }


def values_of(outcome):
    return {name: figure.value for name, figure in outcome.report.figures.items()}


def test_convergence_trains_every_combination_and_a_dense_network_for_each_delay(outcomes):
    report = outcomes["learning-convergence"].report
    table = report.tables["accuracy at the end"]
    assert len(table.rows) == 2 + 2 * 2 * 2
    assert [row[:4] for row in table.rows[:3]] == [
        ("dense", 0, 1, 0),
        ("dense", 100, 4, 0),
        ("as-published", 0, 1, 0),
    ]
    assert [
        len(panel.series) for plot in list(report.plots.values())[:2] for panel in plot.panels
    ] == [3] * 4
    assert len(next(iter(report.all_series.values())).x) == 5  # before training, and four times
    assert {"ahead of dense at 100 ms, as-published", "staleness of 4 trainers"} <= set(
        report.figures
    )


def test_without_delays_a_mixture_need_not_be_ahead_of_a_dense_network():
    chosen = SMALL["learning-convergence"] | {"steps": 4, "delays": (0.0,)}
    report = run_seed(Plan(scenario="learning-convergence", chosen=chosen)).report
    assert report.figures["ahead of dense at 0 ms, as-published"].goal is None


def test_convergence_starts_every_variant_from_the_same_weights(outcomes):
    series = outcomes["learning-convergence"].report.all_series
    for delay in (0, 100):
        names = [
            f"{variant}, {delay} ms, 0% failures" for variant in ("as-published", "trained-gate")
        ]
        assert series[names[0]].y[0] == series[names[1]].y[0]


def test_throughput_stays_below_its_bounds(outcomes):
    report = outcomes["learning-throughput"].report
    assert len(report.tables["throughput"].rows) == 3
    for label in ("asynchronous", "synchronous"):
        measured, bound = (report.all_series[name].y for name in (label, f"{label} bound"))
        for value, most in zip(measured, bound, strict=True):
            assert value < 1.2 * most  # few batches: chance may be better than its mean
    assert (
        values_of(outcomes["learning-throughput"])["kept at the longest ping, asynchronous"] < 100
    )


def test_a_trainer_that_cuts_slow_hosts_off_is_faster_than_one_that_waits(outcomes):
    values = values_of(outcomes["stragglers"])
    assert values["faster for cutting off"] > 1
    rows = {row[0]: row for row in outcomes["stragglers"].report.tables["step times"].rows}
    assert rows["cuts off"][-1] > 0
    assert rows["waits for all"][-1] == rows["no slow host"][-1] == 0
    slow_pass = 40 * 0.05
    assert rows["waits for all"][2] > slow_pass
    assert rows["no slow host"][2] < slow_pass


def test_one_seed_gives_one_run_whatever_the_process_hashes(outcomes):
    code = (
        "from simulations.runner import Plan, run_seed\n"
        f"for name, chosen in {SMALL!r}.items():\n"
        "    outcome = run_seed(Plan(scenario=name, chosen=chosen, seed=3))\n"
        "    print(*outcome.facts.log_digest)\n"
        "    print([each.value for each in outcome.report.figures.values()])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        line
        for outcome in outcomes.values()
        for line in (outcome.facts.log_digest[0], str(list(values_of(outcome).values())))
    ]


def test_another_seed_gives_another_run(outcomes):
    name = "learning-throughput"
    other = run_seed(Plan(scenario=name, chosen=SMALL[name], seed=4))
    assert other.facts.log_digest != outcomes[name].facts.log_digest


@pytest.mark.parametrize("name", SMALL)
def test_their_reports_can_be_written(outcomes, name):
    assert dump(outcomes[name].report, outcomes[name].facts)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("learning-convergence", {"k_best": 17}),
        ("stragglers", {"k_min": 5}),
        ("stragglers", {"grid": 1}),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_anything_runs(name, chosen):
    with pytest.raises(ConfigError, match="k_best"):
        run_seed(Plan(scenario=name, chosen=chosen))


def test_every_delay_has_its_trainers_and_the_last_number_goes_on():
    runs = plan(("as-published",), (0.0, 10.0, 20.0), (1, 8), (0.0, 0.5))
    assert [(run.variant, run.delay, run.failures, run.trainers) for run in runs] == [
        ("dense", 0.0, 0.0, 1),
        ("dense", 10.0, 0.0, 8),
        ("dense", 20.0, 0.0, 8),
        ("as-published", 0.0, 0.0, 1),
        ("as-published", 0.0, 0.5, 1),
        ("as-published", 10.0, 0.0, 8),
        ("as-published", 10.0, 0.5, 8),
        ("as-published", 20.0, 0.0, 8),
        ("as-published", 20.0, 0.5, 8),
    ]


def test_the_accuracy_at_the_end_is_the_mean_of_the_last_evaluations():
    values = [0.1, 0.9, 0.5, 0.6, 0.7, 0.8, 0.9]
    history = History(evaluations=[Evaluation(n, n, each, 0) for n, each in enumerate(values)])
    assert at_end(history) == pytest.approx(70)
