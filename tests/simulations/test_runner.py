"""One plan gives one run: in this process and in others, in either fidelity, again and again."""

import io
import json
import os
import random
import shlex
import subprocess
import sys

import pytest
import trio

from p2pnode.clock import wall_time
from p2pnode.errors import NoPeersError
from simulations import pulse
from simulations.determinism import EPOCH
from simulations.errors import ParameterError, ScenarioError
from simulations.runner import Plan, check, run_seed

# Small, but with everything that could come in another order: chance, churn, loss, NATs and lies.
SMALL = {
    "light": {"nodes": 14, "duration": 60, "look-ups": 5, "churn.median": 30, "settle": 4},
    "full": {"nodes": 8, "duration": 60, "look-ups": 2, "churn.median": 60, "settle": 4},
}

IN_A_PROCESS = """
import hashlib, io, json, sys
from simulations.runner import Plan, run_seed
file = io.BytesIO()
outcome = run_seed(Plan(**json.loads(sys.argv[1])), log_file=file)
assert outcome.facts.log_digest == (hashlib.sha256(file.getvalue()).hexdigest(),)
print(outcome.facts.log_digest[0], outcome.steps, len(file.getvalue().splitlines()))
"""


def run_in_processes(plan, hash_seeds):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_PROCESS, json.dumps(plan)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in hash_seeds
    ]
    return [each.communicate()[0].split() for each in running]


@pytest.mark.parametrize("fidelity", ["light", "full"])
def test_one_seed_gives_one_log_in_every_process(fidelity):
    chosen = SMALL[fidelity] | {"liars.share": 10, "churn.return": 50, "churn.crash": 50}
    plan = {"scenario": "dht-churn", "chosen": chosen, "fidelity": fidelity, "trace": True}
    one, other = run_in_processes(plan, ["1", "2"])
    assert one == other
    assert int(one[2]) > 200


def test_another_seed_gives_another_log(toy):
    digests = {run_seed(Plan(scenario=toy, seed=seed)).facts.log_digest for seed in range(3)}
    assert len(digests) == 3


def test_the_command_of_a_run_replays_it(toy):
    outcome = run_seed(Plan(scenario=toy, chosen={"pause": "2.5"}, seed=11))
    words = shlex.split(outcome.facts.command)
    assert words[:2] == ["p2pnode", "simulate"]
    again = subprocess.run(
        [sys.executable, "-m", "cli.main", *words[1:], "--json"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(again.stdout)["run"]["log_digest"] == list(outcome.facts.log_digest)


def test_the_log_is_written_and_the_facts_tell_what_was_run(toy):
    file = io.BytesIO()
    outcome = run_seed(Plan(scenario=toy, chosen={"least": 2}), log_file=file)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [each["kind"] for each in lines] == ["phase", "phase", *["tick"] * 5, "phase"]
    assert outcome.facts.events == len(lines)
    assert outcome.facts.changed == ("least",)
    assert outcome.facts.virtual_seconds == pytest.approx(lines[-1]["t"])
    assert not outcome.is_good


def test_a_scenario_that_fails_says_how_to_see_it_again(toy):
    with pytest.raises(RuntimeError, match="a bug of this scenario") as caught:
        run_seed(Plan(scenario=toy, chosen={"fails": 3}, seed=3))
    assert f"p2pnode simulate {toy} --seed 3 --set fails=3" in "".join(caught.value.__notes__)


def test_several_bugs_at_once_are_told_together(tmp_path):
    body = (
        "sim.nursery.start_soon(trio.sleep, -1); sim.nursery.start_soon(trio.sleep, -2); "
        "await trio.sleep(1)"
    )
    with pytest.raises(ExceptionGroup) as caught:
        run_seed(scenario_that(tmp_path, body))
    assert caught.group_contains(ValueError)


def scenario_that(tmp_path, body):
    path = tmp_path / "one.py"
    path.write_text(
        "import random, trio\nfrom simulations import Scenario\nfrom p2pnode import errors\n"
        "from p2pnode.clock import wall_time\n"
        f"async def run(sim):\n    {body}\n"
        "SCENARIO = Scenario(name='one', summary='does one thing', run=run)\n"
    )
    return Plan(scenario=str(path))


def test_an_expected_error_comes_out_of_a_scenario_as_it_is(tmp_path):
    with pytest.raises(NoPeersError, match="nobody"):
        run_seed(scenario_that(tmp_path, "raise errors.NoPeersError('nobody')"))


def test_the_wall_clock_starts_at_one_moment_and_goes_with_the_virtual_one(tmp_path):
    plan = scenario_that(
        tmp_path, "await trio.sleep(3600); sim.report.figure('wall', wall_time() - sim.now)"
    )
    assert run_seed(plan).report.figures["wall"].value == EPOCH
    assert wall_time() < EPOCH  # outside, the real one


def test_tasks_beside_the_story_end_with_it(tmp_path):
    body = "sim.nursery.start_soon(trio.sleep_forever); await trio.sleep(1)"
    assert run_seed(scenario_that(tmp_path, body)).facts.virtual_seconds == 1.0


def test_chance_for_one_purpose_is_not_disturbed_by_another(tmp_path):
    body = (
        "[sim.rng.random() for _ in range({})]; "
        "sim.report.figure('drawn', sim.rng_for('else').random())"
    )
    drawn = {
        run_seed(scenario_that(tmp_path, body.format(n))).report.figures["drawn"].value
        for n in (0, 10)
    }
    assert len(drawn) == 1


def test_the_scheduler_of_others_is_left_as_it_was(toy):
    scheduler = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate(), random.getstate()
    run_seed(Plan(scenario=toy))
    after = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate(), random.getstate()
    assert before == after


def test_an_observer_sees_the_run_and_does_not_change_it(monkeypatch):
    monkeypatch.setattr(pulse, "INTERVAL", 0.0)  # at each look, however fast the machine is
    monkeypatch.setattr(pulse, "_STEPS_BETWEEN_LOOKS", 16)
    plan = Plan(scenario="bootstrap", chosen={"nodes": 6, "look-ups": 5, "idle": 0})
    seen = []
    watched, alone = run_seed(plan, observer=seen.append), run_seed(plan)
    assert watched.facts.log_digest == alone.facts.log_digest
    assert max(each.nodes_up for each in seen) == 6
    assert all(each.rate > 0 and each.phase for each in seen)


def test_the_speed_of_a_phase_is_told_when_the_run_has_ended(tmp_path):
    body = "sim.begin('resting'); sim.report_speed('speed'); await trio.sleep(1000)"
    outcome = run_seed(scenario_that(tmp_path, body))
    assert outcome.report.figures["speed"].value > 0
    assert [row[0] for row in outcome.report.tables["Speed of the simulation"].rows] == ["resting"]


@pytest.mark.parametrize(
    ("plan", "error", "says"),
    [
        (Plan(scenario="bootstrap", fidelity="ful"), ScenarioError, "did you mean 'full'"),
        (Plan(scenario="bootstrap", chosen={"node": 3}), ParameterError, "did you mean 'nodes'"),
        (Plan(scenario="boot"), ScenarioError, "no scenario 'boot'"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_before_it_begins(plan, error, says):
    with pytest.raises(error, match=says):
        check(plan)
