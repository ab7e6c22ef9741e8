"""One seed of a sweep, in a process of its own: `python -m simulations.worker`.

Reads a request from standard input, a line of JSON with the `plan` and the path of the event log's
file, if it should be kept. Writes lines of JSON to standard output: `{"snapshot": …}` while it runs
and one `{"outcome": …}` or `{"error": …}` at the end. What the scenario itself prints goes to
standard error. When whoever started it is gone, the next snapshot has nowhere to go, and the worker
ends.

Ctrl-C reaches a whole group of processes; the parent alone decides what it means.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from p2pnode.errors import P2PNodeError
from simulations.pulse import Snapshot
from simulations.report.document import document_of, report_of
from simulations.runner import Outcome, Plan, run_seed


def outcome_as_data(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain data."""
    return {"document": document_of(outcome.report, outcome.facts), "steps": outcome.steps}


def outcome_from_data(data: Mapping[str, Any]) -> Outcome:
    """Return the outcome that `outcome_as_data` wrote."""
    report, facts = report_of(data["document"])
    return Outcome(facts=facts, report=report, steps=data["steps"])


def describe_failure(error: BaseException) -> str:
    """Say in a line why a run ended without an outcome; of a bug, also where it was met."""
    if isinstance(error, P2PNodeError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def main() -> None:
    """Run the seed that standard input asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(sys.stdin.readline())
    plan = Plan(**request["plan"])
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(os.fdopen(os.dup(sys.stdout.fileno()), "w"))
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        log_file = None
        if request["log"] is not None:
            log_file = stack.enter_context(Path(request["log"]).open("wb"))
        try:
            outcome = run_seed(
                plan, log_file=log_file, observer=partial(_show, out), ends_process=True
            )
        except Exception as error:  # noqa: BLE001  # the boundary: the parent tells what failed
            _write(out, "error", describe_failure(error))
        else:
            _write(out, "outcome", outcome_as_data(outcome))


def _show(out: TextIO, snapshot: Snapshot) -> None:
    _write(out, "snapshot", dataclasses.asdict(snapshot))


def _write(out: TextIO, kind: str, value: Any) -> None:
    out.write(json.dumps({kind: value}) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
