"""A sweep over many machines with Ray: `pip install 'p2pnode[ray]'`, `--engine ray`.

Each seed is a Ray task of one core. Every machine of the cluster needs this version of p2pnode, and
a scenario file of your own at the same path. Event logs stay where they are made; their digests
come back.

Source: Ray's core API (`ray.init`, `ray.remote`, `ray.wait`, `ray.get`, `ray.cancel`).
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from simulations.errors import SimulationFailedError
from simulations.runner import Plan, run_seed
from simulations.sweep import Result, SweepObserver
from simulations.worker import describe_failure, outcome_as_data, outcome_from_data

_POLL: Final = 0.5  # seconds; how late Ctrl-C may be noticed


def run_ray_sweep(
    plans: Sequence[Plan], *, address: str | None, observer: SweepObserver
) -> list[Result]:
    """Run all plans as tasks of a Ray cluster.

    Args:
        plans: one for each seed.
        address: of a running cluster, such as `auto` or `ray://host:10001`; None starts one here.
        observer: is told of each result.

    Returns:
        A result for each plan, in their order.

    Raises:
        SimulationFailedError: Ray is not installed, or there is no cluster at that address.
    """
    ray = _import_ray()
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SimulationFailedError(f"Ray cannot start at {address or 'here'}: {error}") from error
    task = ray.remote(num_cpus=1, max_retries=0)(run_for_ray)
    references = [task.remote(asdict(plan)) for plan in plans]
    results: dict[int, Result] = {}
    pending = list(references)
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=_POLL)
            for reference in done:
                position = references.index(reference)
                results[position] = _result_of(ray, reference, plans[position])
                observer.receive_result(results[position])
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        ray.shutdown()
    return [results[position] for position in range(len(plans))]


def run_for_ray(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Run one seed on whatever machine this is; the body of the task."""
    try:
        return {"outcome": outcome_as_data(run_seed(Plan(**plan)))}
    except Exception as error:  # noqa: BLE001  # the boundary: the driver tells what failed
        return {"error": describe_failure(error)}


def _result_of(ray: Any, reference: Any, plan: Plan) -> Result:
    try:
        answer = ray.get(reference)
    except ray.exceptions.RayError as error:  # its worker or machine died
        return Result(plan, None, f"Ray: {error}")
    if "error" in answer:
        return Result(plan, None, answer["error"])
    return Result(plan, outcome_from_data(answer["outcome"]))


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise SimulationFailedError(
            "--engine ray needs Ray: pip install 'p2pnode[ray]', or leave the engine out to sweep "
            "over the cores of this machine"
        ) from error
