"""The demo itself, from the first daemon to the report."""

import contextlib
import json
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch

from cli.demo import plan
from cli.demo.daemons import (
    START_TIMEOUT,
    DemoDaemon,
    ending,
    is_saved,
    sigterm_unwinds,
    start_all,
    wait_until,
)
from cli.demo.data import Digits, load
from cli.demo.display import Display, open_display
from cli.demo.plot import draw
from cli.demo.record import Record, Row
from cli.demo.training import Classifier, build_classifier, evaluate, train
from p2pnode import MixtureOfExperts, Settings, Trainer, connect
from p2pnode.clock import wall_time
from p2pnode.errors import DaemonNotRunningError
from p2pnode.security.tokens import RunKey, issue_invite
from p2pnode.trainer.local import LocalExperts
from p2pnode.wire.uids import expand_all

_INVITE_LIFETIME: Final = 3600.0
_SAVE_TIMEOUT: Final = 30.0
_RETURN_TIMEOUT: Final = 90.0
_CALL_TIMEOUT: Final = 20.0
_STRAGGLER_TIMEOUT: Final = 5.0  # five processes share the machine: being slow is no failure


def run_demo(options: plan.Options) -> int:
    """Run the demo; 0 when it went as it should, 1 when it fell short.

    Raises:
        P2PNodeError: a daemon could not be started, or the training could not go on.
    """
    started = time.monotonic()
    torch.set_num_threads(1)
    options.report.mkdir(parents=True, exist_ok=True)
    record = Record(options=options)
    data = load()
    with open_display(options) as display, sigterm_unwinds(), _state(options) as state:
        _RemoteTraining(record, data, display).run(state)
        display.note("training the same model in one process, for comparison")
        _train_locally(record, data)
        record.seconds = time.monotonic() - started
        _write_report(record)
        display.finish(record)
    return 1 if record.shortcomings() else 0


class _RemoteTraining:
    """The training over the network, and what happens to its daemons meanwhile."""

    def __init__(self, record: Record, data: Digits, display: Display) -> None:
        self._record = record
        self._options = record.options
        self._data = data
        self._display = display

    def run(self, state: Path) -> None:
        """Start the daemons, train, and end the daemons."""
        key = RunKey.generate()
        for old in self._options.report.glob("daemon-*"):
            old.unlink()
        config = self._options.report / "daemon.toml"
        config.write_text(_config(self._options), encoding="utf-8")
        daemons = [_make_daemon(number, key, state, config) for number in range(plan.DAEMONS)]
        with ending(daemons):
            self._display.note(f"starting {plan.DAEMONS} daemons, {plan.EXPERTS} experts in all")
            start_all(daemons)
            settings = Settings().replace(swarm={"refresh_interval": 1.0})
            with connect(
                daemons[0].address, run=plan.RUN, invite=_invite(key, "train"), settings=settings
            ) as swarm:
                self._train(swarm, daemons)
            self._record.final_steps = _steps_of(daemons)
            self._display.note("stopping the daemons")

    def _train(self, swarm: Trainer, daemons: Sequence[DemoDaemon]) -> None:
        options, rows = self._options, self._record.rows
        model = build_classifier(lambda block: _remote_layer(swarm, block), options.seed)
        _wait_alive(model, [uid for each in range(plan.DAEMONS) for uid in plan.experts_of(each)])
        self._display.note("all experts found; training")
        began = time.monotonic()
        for step in train(model, self._data, steps=options.steps, seed=options.seed):
            stats, live = swarm.stats(), _live_experts(model)
            row = Row(
                step=step,
                seconds=time.monotonic() - began,
                calls=stats.calls,
                failed_calls=stats.failed_calls,
                live_experts=len(live),
            )
            rows.append(row)
            self._display.step(row)
            self._happen(step.number, model, live, daemons)
            if step.loss is None:
                wait_any_alive(model)
        self._record.test_accuracy = evaluate(model, self._data.test)

    def _happen(
        self, number: int, model: Classifier, live: set[str], daemons: Sequence[DemoDaemon]
    ) -> None:
        """Kill a daemon, start it again, or notice its return, when it is time to."""
        record, options, victim = self._record, self._options, daemons[plan.VICTIM]
        if number == options.kill_at:
            self._kill(victim, number)
        elif number == options.return_at:
            for other in daemons:
                if other is not victim:
                    victim.join(other.address)  # the one it knew may be gone as well
            victim.start()
            record.started_again_at = number
            self._display.note(f"starting {victim.name} again after step {number}")
        elif record.started_again_at is not None and record.restored_at is None:
            experts = set(plan.experts_of(plan.VICTIM))
            if number >= options.needed_at:
                wait_until(victim.poll, f"the return of {victim.name}", START_TIMEOUT)
                _wait_alive(model, experts)
                live = experts
            if victim.poll() and live >= experts:
                self._note_return(victim, number)

    def _kill(self, victim: DemoDaemon, number: int) -> None:
        with contextlib.suppress(DaemonNotRunningError):  # someone else was faster
            what = f"the first checkpoint of {victim.name}"
            wait_until(lambda: is_saved(victim), what, _SAVE_TIMEOUT)
            self._record.killed_steps = _steps_of([victim])
        victim.kill()
        self._record.killed_at = number
        count = len(plan.experts_of(plan.VICTIM))
        self._display.note(f"killed {victim.name} and its {count} experts after step {number}")

    def _note_return(self, victim: DemoDaemon, number: int) -> None:
        assert victim.ready is not None
        experts = victim.ready["experts"]
        self._record.restored_at = number
        self._record.restored_steps = {expert["uid"]: expert["step"] for expert in experts}
        restored = sum(expert["restored"] for expert in experts)
        self._display.note(
            f"{victim.name} is back after step {number}, {restored} experts restored"
        )


def _steps_of(daemons: Sequence[DemoDaemon]) -> dict[str, int]:
    """Ask the daemons how often their experts have stepped; who has died cannot tell."""
    found: dict[str, int] = {}
    for daemon in daemons:
        with contextlib.suppress(DaemonNotRunningError):
            found |= {expert["uid"]: expert["steps"] for expert in daemon.experts()}
    return found


def _remote_layer(swarm: Trainer, block: str) -> MixtureOfExperts:
    return swarm.mixture_of_experts(
        block,
        grid=plan.GRID,
        in_features=plan.HIDDEN_DIM,
        k_best=plan.K_BEST,
        forward_timeout=_CALL_TIMEOUT,
        backward_timeout=_CALL_TIMEOUT,
        timeout_after_k_min=_STRAGGLER_TIMEOUT,
    )


def _live_experts(model: Classifier) -> set[str]:
    return {f"{plan.RUN}/{name}" for layer in model.layers() for name in layer.live_experts()}


def _wait_alive(model: Classifier, experts: Collection[str]) -> None:
    wait_until(
        lambda: _live_experts(model).issuperset(experts),
        f"finding {len(experts)} experts in the DHT",
        _RETURN_TIMEOUT,
    )


def wait_any_alive(model: Classifier) -> None:
    """Wait until each mixture has an expert again; without, all further steps would fly by.

    A machine may be too busy for a moment to let its daemons announce themselves.

    Raises:
        DeadlineExceededError: none came back.
    """
    wait_until(
        lambda: all(layer.live_experts() for layer in model.layers()),
        "finding a live expert again",
        _RETURN_TIMEOUT,
    )


# --- the daemons --------------------------------------------------------------------------------


def _make_daemon(number: int, key: RunKey, state: Path, config: Path) -> DemoDaemon:
    patterns = [part for uid in plan.experts_of(number) for part in ("--experts", uid)]
    return DemoDaemon(
        f"daemon-{number}",
        state / f"daemon-{number}",
        config.parent,
        [
            *("--config", str(config.absolute()), "--run", plan.RUN),
            *("--invite", _invite(key, "host"), *patterns),
        ],
    )


def _invite(key: RunKey, scope: str) -> str:
    return issue_invite(key, plan.RUN, scopes={scope}, expires_at=wall_time() + _INVITE_LIFETIME)


def _config(options: plan.Options) -> str:
    settings = plan.hosting_settings(options.seed)
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "\n".join(["# What the demo's daemons were started with.", "[hosting]", *lines, ""])


# --- the rest -----------------------------------------------------------------------------------


def _train_locally(record: Record, data: Digits) -> None:
    options = record.options
    hosting = Settings.load(
        environ={}, overrides={"hosting": plan.hosting_settings(options.seed)}
    ).hosting
    patterns = [uid for number in range(plan.DAEMONS) for uid in plan.experts_of(number)]
    experts = LocalExperts(expand_all(patterns), hosting)

    def build(block: str) -> MixtureOfExperts:
        return MixtureOfExperts(
            experts,
            block,
            grid=plan.GRID,
            in_features=plan.HIDDEN_DIM,
            k_best=plan.K_BEST,
            k_min=1,
            backward_k_min=1,
            forward_timeout=_CALL_TIMEOUT,
            backward_timeout=_CALL_TIMEOUT,
            timeout_after_k_min=_STRAGGLER_TIMEOUT,
        )

    model = build_classifier(build, options.seed)
    record.local_steps = list(train(model, data, steps=options.steps, seed=options.seed))
    record.local_accuracy = evaluate(model, data.test)


def _write_report(record: Record) -> None:
    folder = record.options.report
    text = json.dumps(record.report(), indent=1)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    draw(record, folder / "report.png")


@contextlib.contextmanager
def _state(options: plan.Options) -> Iterator[Path]:
    """Give the folder of the daemons' data directories; a temporary one ends with the block."""
    if options.data_dir is not None:
        options.data_dir.mkdir(parents=True, exist_ok=True)
        yield options.data_dir
        return
    with tempfile.TemporaryDirectory(prefix="p2pnode-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name)
