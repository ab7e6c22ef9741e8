"""`simulate` runs, sweeps, lists and reports; its exit code says whether the goals were met."""

import json
import textwrap

import pytest
from click.testing import CliRunner

from cli.main import cli, main
from cli.simulation.progress import RunDisplay, SweepDisplay, describe, duration
from simulations.catalogue import names
from simulations.pulse import Snapshot
from simulations.runner import Plan
from simulations.sweep import Result

TOY = """
    import trio
    from simulations import Parameter, Scenario, at_least

    async def run(sim):
        sim.begin("resting")
        await trio.sleep(60)
        if sim.seed == sim.parameters["fails"]:
            raise RuntimeError("a bug")
        sim.report.figure("reached", float(sim.seed), "m", goal=at_least(sim.parameters["least"]))
        sim.report.series("way", [0, 1], [0, sim.seed], x_label="time", y_label="way")
        sim.report.note("A remark.")

    SCENARIO = Scenario(
        name="toy",
        summary="rests",
        parameters={
            "nodes": Parameter(3, "unused"),
            "least": Parameter(0.0, "the goal"),
            "fails": Parameter(-1, "seed"),
        },
        run=run,
    )
"""


@pytest.fixture
def toy(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(textwrap.dedent(TOY))
    return str(path)


def simulate(*args):
    """Run the command as `main` does; its return value is the exit code."""
    return CliRunner().invoke(cli, ["simulate", *args], standalone_mode=False)


def test_the_list_names_every_scenario():
    result = simulate("--list")
    assert result.return_value == 0
    for name in names():
        assert name in result.output
    lines = simulate("--list", "--json").output.splitlines()
    assert [json.loads(line)["name"] for line in lines] == names()


def test_the_list_of_one_scenario_has_its_parameters():
    result = simulate("dht-churn", "--list")
    assert "churn.median" in result.output
    assert "half of the sessions are shorter" in result.output
    lines = simulate("--list", "dht-churn", "--json").output.splitlines()
    by_name = {json.loads(line)["name"]: json.loads(line) for line in lines}
    assert by_name["churn.median"]["default"] == "1800"
    assert by_name["churn.median"]["unit"] == "s"


def test_a_run_prints_its_figures_and_ends_well_when_the_goals_are_met(toy):
    result = simulate(toy, "--seed", "4")
    assert result.return_value == 0
    for text in ("reached", "≥ 0", "met", "A remark.", "SHA-256"):
        assert text in result.output


def test_a_missed_goal_is_exit_code_1_and_a_command_to_see_it_again(toy):
    result = simulate(toy, "--seed", "4", "--set", "least=5", "--nodes", "7")
    assert result.return_value == 1
    assert "missed" in result.output
    assert f"simulate {toy} --seed 4 --set least=5 --set nodes=7" in result.output


def test_json_is_one_document(toy):
    document = json.loads(simulate(toy, "--json").output)
    assert document["run"]["scenario"] == "toy"
    assert document["figures"][0]["name"] == "reached"


def test_what_a_scenario_prints_is_not_among_the_results(tmp_path):
    path = tmp_path / "talks.py"
    path.write_text(textwrap.dedent(TOY).replace("await trio.sleep(60)", "print('hello')"))
    result = simulate(str(path), "--json")
    assert json.loads(result.stdout)["run"]["scenario"] == "toy"
    assert "hello" in result.stderr


def test_the_report_has_the_log_beside_it(toy, tmp_path):
    folder = tmp_path / "report"
    assert simulate(toy, "--report", str(folder)).return_value == 0
    assert {"report.json", "index.html", "events.jsonl"} <= {each.name for each in folder.iterdir()}
    lines = (folder / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds == ["phase", "phase", "phase"]


def test_a_sweep_gives_means_names_what_failed_and_reports_each_seed(toy, tmp_path):
    folder = tmp_path / "report"
    args = [toy, "--seeds", "3:5", "--set", "least=9", "--set", "fails=4", "--report", str(folder)]
    result = simulate(*args)
    assert result.return_value == 1
    assert "seed 3 misses its goal of reached" in result.output
    assert "seed 4 failed: " in result.output
    assert f"simulate {toy} --seed 4 --set least=9" in result.output
    merged = json.loads((folder / "report.json").read_text())
    assert merged["figures"][0]["spread"]["values"] == [3.0]
    assert "Seed 4 is not among these: it failed: RuntimeError: a bug" in merged["notes"][-1]
    assert "--seeds 3:5 --set least=9 --set fails=4" in merged["run"]["command"]
    assert {"report.json", "events.jsonl"} <= {each.name for each in (folder / "seed-3").iterdir()}


def test_a_sweep_as_json_has_a_line_for_each_seed_and_one_for_all(toy):
    result = simulate(toy, "--seeds", "0:2", "--set", "fails=1", "--json")
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [line.get("event") for line in lines] == [None, "failed", None]
    assert lines[1]["command"].endswith("--seed 1 --set fails=1")
    assert lines[2]["run"]["seeds"] == [0]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "name a scenario"),
        (["boot-strap"], 1, "did you mean 'bootstrap'"),
        (["bootstrap", "--set", "node=3"], 1, "did you mean 'nodes'"),
        (["bootstrap", "--set", "nodes"], 2, "PARAMETER=VALUE"),
        (["bootstrap", "--nodes", "many"], 1, "a whole number"),
        (["bootstrap", "--fidelity", "ful"], 1, "did you mean 'full'"),
        (["bootstrap", "--seeds", "3:3"], 2, "0:20"),
        (["bootstrap", "--seeds", "3"], 2, "0:20"),
        (["./none.toml"], 1, "no scenario file"),
        (["bootstrap", "--engine", "ray"], 2, "give --seeds"),
        (["bootstrap", "--jobs", "2"], 2, "give --seeds"),
        (["bootstrap", "--seeds", "0:2", "--ray-address", "auto"], 2, "--engine ray"),
        (["bootstrap", "--report", "/dev/null/here"], 1, "cannot be left in /dev/null/here"),
    ],
)
def test_what_cannot_be_run_is_told_in_a_sentence(args, code, says, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["simulate", *args])
    assert caught.value.code == code
    assert says in " ".join(capsys.readouterr().err.split())


SNAPSHOT = Snapshot(
    phase="joining",
    virtual=90.0,
    real=3.0,
    horizon=3600.0,
    ratio=30.0,
    rate=10_000.0,
    nodes_up=12,
)


def test_progress_tells_both_times_the_events_and_the_nodes():
    assert describe(SNAPSHOT) == (
        "joining: 1:30 of 1:00:00 simulated in 3.0 s (30.0 x), 10,000 events/s, 12 nodes up"
    )
    assert [duration(each) for each in (0.84, 42.4, 187, 7200)] == [
        "0.8 s",
        "42 s",
        "3:07",
        "2:00:00",
    ]


def test_progress_is_drawn_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with RunDisplay("toy, seed 0") as display:
        display.receive(SNAPSHOT)
    with SweepDisplay("toy", 2) as sweep:
        sweep.receive_snapshot(Plan(scenario="toy", seed=3), SNAPSHOT)
        sweep.receive_result(Result(Plan(scenario="toy", seed=3), None, "it failed"))
    shown = capsys.readouterr().err
    for text in ("joining", "30.0 x", "12", "seed 3", "failed: it failed", "1 of 2 seeds done"):
        assert text in shown
