"""The benchmarks run and report; how fast they find us is for people to judge."""

import json

import pytest
from click.testing import CliRunner

from cli.bench.figures import Figure, Goal
from cli.main import cli

NAMES = [
    "bare_sealed",
    "bare_batched",
    "throughput_1024k_1",
    "throughput_64k_1",
    "throughput_64k_8",
    "ping",
    "open_stream",
    "dial",
    "idle_memory",
]
TINY = ["--rounds", "2", "--megabytes", "1", "--pings", "2", "--dials", "1", "--connections", "5"]


@pytest.mark.real
def test_each_figure_of_streams_is_one_line():
    result = CliRunner().invoke(cli, ["bench", "stream", "--json", *TINY])
    assert result.exit_code == 0, result.output
    figures = [json.loads(line) for line in result.output.splitlines()]
    assert [each["name"] for each in figures] == NAMES
    for figure in figures:
        assert figure["min"] <= figure["value"] <= figure["max"]
        assert figure["met"] in {True, False, None}
        assert (figure["ratio"] is None) == (figure["baseline"] is None)
    assert all(figure["value"] > 0 for figure in figures[:-1])


def test_sizes_are_bounded():
    for option in ("--rounds", "--megabytes", "--pings", "--dials", "--connections"):
        for value in ("0", "1000000"):
            result = CliRunner().invoke(cli, ["bench", "stream", option, value])
            assert result.exit_code == 2
            assert "not in the range" in result.output


def test_the_ratio_is_taken_within_each_round():
    figure = Figure(
        name="f",
        title="f",
        unit="x",
        values=[1, 10, 100],
        baselines=[1, 5, 400],
        goal=Goal(bound=1, at_least=True),
    )
    assert (figure.value, figure.baseline, figure.ratio) == (10, 5, 1)
    assert figure.met


@pytest.mark.parametrize(
    ("at_least", "value", "met"), [(True, 2, True), (True, 0.5, False), (False, 2, False)]
)
def test_without_a_baseline_the_value_must_meet_the_goal(at_least, value, met):
    figure = Figure(
        name="f", title="f", unit="x", values=[value], goal=Goal(bound=1, at_least=at_least)
    )
    assert figure.met is met
    assert figure.to_json()["ratio"] is None
