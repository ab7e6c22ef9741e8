import importlib
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from simulations import ray_engine
from simulations.errors import SimulationFailedError
from simulations.ray_engine import run_ray_sweep
from simulations.runner import Plan, run_seed
from simulations.sweep import SweepObserver, run_sweep


class Notes(SweepObserver):
    def __init__(self):
        self.results = []

    def receive_result(self, result):
        self.results.append(result.plan.seed)


def plans(toy, count, **chosen):
    return [Plan(scenario=toy, chosen=chosen, seed=seed) for seed in range(count)]


def test_a_sweep_gives_what_each_seed_gives_alone_and_goes_on_when_one_fails(toy, tmp_path):
    notes = Notes()
    some = plans(toy, 3, fails=1)
    results = run_sweep(
        some, jobs=2, observer=notes, log_path=lambda plan: tmp_path / f"{plan.seed}.jsonl"
    )
    assert [each.plan for each in results] == some
    assert sorted(notes.results) == [0, 1, 2]
    assert "RuntimeError: a bug of this scenario" in results[1].failure
    assert [each.is_good for each in results] == [True, False, True]
    for result in (results[0], results[2]):
        alone = run_seed(result.plan)
        assert result.outcome.facts.log_digest == alone.facts.log_digest
        assert result.outcome.report.figures == alone.report.figures
        lines = (tmp_path / f"{result.plan.seed}.jsonl").read_text().splitlines()
        assert len(lines) == alone.facts.events


def test_a_process_that_dies_is_told_with_its_exit_code(tmp_path):
    path = tmp_path / "dies.py"
    path.write_text(
        "import os\nfrom simulations import Scenario\nasync def run(sim): os._exit(7)\n"
        "SCENARIO = Scenario(name='dies', summary='dies', run=run)\n"
    )
    (result,) = run_sweep([Plan(scenario=str(path))], jobs=1, observer=SweepObserver())
    assert "exit code 7" in result.failure


def test_what_a_scenario_prints_is_not_taken_for_its_outcome(tmp_path):
    path = tmp_path / "talks.py"
    path.write_text(
        "import os\nfrom simulations import Scenario\n"
        "async def run(sim): print('{}', flush=True); os.write(1, b'no json\\n')\n"
        "SCENARIO = Scenario(name='talks', summary='prints', run=run)\n"
    )
    (result,) = run_sweep([Plan(scenario=str(path))], jobs=1, observer=SweepObserver())
    assert result.outcome is not None, result.failure


SLOW = """
import os, time
from simulations import Scenario
async def run(sim):
    os.write(2, b"%d\\n" % os.getpid())  # in one piece, as two of them share the pipe
    for _ in range(600):  # it ends by itself, should the test be killed
        time.sleep(0.05)
SCENARIO = Scenario(name="slow", summary="takes half a minute", run=run)
"""


@pytest.mark.real
def test_an_interrupt_ends_the_sweep_and_all_its_processes(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    sweep = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "simulate", str(path), "--seeds", "0:4", "--jobs", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with sweep:
        workers = [int(sweep.stderr.readline()) for _ in range(2)]
        os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does
        assert sweep.wait(20) == 130
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def fake_ray():
    """The part of Ray's public API that is used, in this process."""
    ray = SimpleNamespace(cancelled=[], address="nobody called init", is_up=True)
    ray.exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))

    def init(address=None, **options):
        ray.address = address

    def remote(**options):
        assert options == {"num_cpus": 1, "max_retries": 0}

        def wrap(function):
            def call(plan):
                return SimpleNamespace(run=lambda: json.loads(json.dumps(function(plan))))

            return SimpleNamespace(remote=call)

        return wrap

    def get(reference):
        return reference.run()

    def wait(references, num_returns, timeout):
        return references[-1:], references[:-1]  # in another order than asked

    def cancel(reference, force):
        ray.cancelled.append(reference)

    def shutdown():
        ray.is_up = False

    ray.init, ray.remote, ray.get, ray.wait = init, remote, get, wait
    ray.cancel, ray.shutdown = cancel, shutdown
    return ray


@pytest.fixture
def ray(monkeypatch):
    module = fake_ray()
    monkeypatch.setattr(ray_engine, "_import_ray", lambda: module)
    return module


def test_ray_tasks_give_what_each_seed_gives_alone(toy, ray):
    results = run_ray_sweep(plans(toy, 3, fails=1), address="auto", observer=Notes())
    assert ray.address == "auto"
    assert not ray.is_up
    assert [each.plan.seed for each in results] == [0, 1, 2]
    assert "a bug of this scenario" in results[1].failure
    for result in (results[0], results[2]):
        assert result.outcome.facts.log_digest == run_seed(result.plan).facts.log_digest


def test_a_machine_of_the_cluster_that_dies_costs_its_seed_alone(toy, ray):
    get = ray.get

    def get_or_die(reference):
        if not ray.cancelled and not hasattr(ray, "died"):
            ray.died = True
            raise ray.exceptions.RayError("the worker died")
        return get(reference)

    ray.get = get_or_die
    results = run_ray_sweep(plans(toy, 2), address=None, observer=Notes())
    assert sorted(each.failure for each in results) == ["", "Ray: the worker died"]


def test_an_interrupt_cancels_the_tasks_under_way(toy, ray):
    def wait(references, num_returns, timeout):
        raise KeyboardInterrupt

    ray.wait = wait
    with pytest.raises(KeyboardInterrupt):
        run_ray_sweep(plans(toy, 3), address=None, observer=Notes())
    assert len(ray.cancelled) == 3
    assert not ray.is_up


def test_without_ray_the_engine_says_what_to_install(toy, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SimulationFailedError, match=r"pip install 'p2pnode\[ray\]'"):
        run_ray_sweep(plans(toy, 1), address=None, observer=Notes())


@pytest.mark.real
def test_a_sweep_runs_on_a_real_ray_where_it_is_installed(toy):
    pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'p2pnode[ray]'")
    (result,) = run_ray_sweep(plans(toy, 1), address=None, observer=Notes())
    assert result.outcome.facts.log_digest == run_seed(result.plan).facts.log_digest
