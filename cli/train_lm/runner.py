"""The run itself: from the first host to the sample of text."""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from cli.demo.daemons import DemoDaemon, ending, sigterm_unwinds, start_all, wait_until
from cli.output import as_one_line, print_event, print_facts, print_line, print_note
from cli.train_lm import plan
from cli.train_lm.text import Batches, Text, read
from cli.train_lm.training import Step, evaluate, load_ends, save_ends, train
from p2pnode import RemoteLanguageModel, connect
from p2pnode.clock import wall_time
from p2pnode.errors import ConfigError
from p2pnode.security.tokens import RunKey, issue_invite

_LINES: Final = 20  # progress lines of a whole run
_INVITE_LIFETIME: Final = 3600.0
_BYTES: Final = 256
_REPLICA_TIMEOUT: Final = 60.0  # seconds; it asks every second


@dataclass(slots=True, kw_only=True)
class _Record:
    """A run, filled in as it goes; losses are in nats a byte."""

    steps: list[Step] = field(default_factory=list)
    held_out_before: float | None = None
    held_out_at_kill: float | None = None  # just before a host is killed
    held_out_after_kill: float | None = None  # over the hosts that are left
    held_out_after: float | None = None
    killed: str | None = None
    killed_after_step: int | None = None
    calls: int = 0
    failed_calls: int = 0
    seconds: float = 0.0
    sample: str = ""

    @property
    def has_learnt(self) -> bool:
        """Whether the loss on what was held out has fallen."""
        before, after = self.held_out_before, self.held_out_after
        return before is not None and after is not None and after < before

    def summary(self) -> dict[str, Any]:
        """Return the facts of the run, without the series."""
        losses = [step.loss for step in self.steps if step.loss is not None]
        return {
            "steps": len(self.steps),
            "steps_lost": sum(step.loss is None for step in self.steps),
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "held_out_before": self.held_out_before,
            "held_out_at_kill": self.held_out_at_kill,
            "held_out_after_kill": self.held_out_after_kill,
            "held_out_after": self.held_out_after,
            "killed": self.killed,
            "killed_after_step": self.killed_after_step,
            "calls": self.calls,
            "failed_calls": self.failed_calls,
            "seconds": round(self.seconds, 2),
            "sample": self.sample,
        }


class _Run:
    """One training, over whatever hosts there are."""

    def __init__(self, options: plan.Options) -> None:
        self.record = _Record()
        self._options = options
        self._text = Text.split(read(options.text), options.context)
        self._every = max(1, options.steps // _LINES)

    def note(self, text: str) -> None:
        """Say what happens now."""
        if self._options.as_json:
            print_event("note", text=text)
        else:
            print_note(text)

    def train(
        self, bootstrap: Sequence[str], invite: str | None, hosts: Sequence[DemoDaemon]
    ) -> None:
        """Connect, train, and generate a sample.

        Raises:
            P2PNodeError: the training could not go on.
        """
        options, record = self._options, self.record
        torch.manual_seed(options.seed)
        with connect(bootstrap, run=options.run, invite=invite) as swarm:
            model = swarm.language_model(
                options.model,
                block=plan.BLOCK,
                seed=options.seed,
                dtype=options.dtype,
                micro_batches=options.micro_batches,
                codec=options.codec,
            )
            if model.ends.config.vocab_size != _BYTES:
                raise ConfigError(
                    f"{options.model} has {model.ends.config.vocab_size} tokens, but this command"
                    " reads bytes; train such a model with a script of yours"
                )
            if load_ends(model, options.ends):
                self.note(f"going on with {options.ends}")
            windows = self._text.windows(options.context)
            record.held_out_before = evaluate(model, windows)
            self.note(
                f"{len(self._text.train)} bytes to read, {len(self._text.held_out)} held out;"
                f" held-out loss {record.held_out_before:.3f} nats a byte"
            )
            batches = Batches(self._text, options.batch, options.context, options.seed)
            for step in train(
                model, batches, steps=options.steps, learning_rate=options.learning_rate
            ):
                record.steps.append(step)
                self._tell(step)
                if step.number == options.kill_at:
                    self._kill(model, windows, hosts)
            record.held_out_after = evaluate(model, windows)
            save_ends(model, options.ends)
            record.sample = self._generate(model)
            stats = swarm.stats()
            record.calls, record.failed_calls = stats.calls, stats.failed_calls

    def _tell(self, step: Step) -> None:
        if self._options.as_json:
            print_event("step", step=step.number, loss=step.loss, error=step.error)
        elif step.error is not None:
            print_note(f"step {step.number} is lost: {step.error}")
        elif step.number % self._every == 0 or step.number in {1, self._options.steps}:
            print_line(
                f"step {step.number}/{self._options.steps}  loss {step.loss:.3f}", sys.stdout
            )

    def _kill(
        self, model: RemoteLanguageModel, windows: torch.Tensor, hosts: Sequence[DemoDaemon]
    ) -> None:
        """Kill a host whose replica has learnt something, in the middle of everything."""
        record = self.record
        what = f"the first version of all blocks to reach {hosts[-1].name}"
        wait_until(lambda: all(e["steps"] for e in hosts[-1].experts()), what, _REPLICA_TIMEOUT)
        record.held_out_at_kill = evaluate(model, windows)
        victim = hosts[0]
        victim.kill()
        record.killed, record.killed_after_step = victim.name, len(record.steps)
        record.held_out_after_kill = evaluate(model, windows)
        self.note(
            f"killed {victim.name} after step {record.killed_after_step}: held-out loss"
            f" {record.held_out_at_kill:.3f} before, {record.held_out_after_kill:.3f} with the"
            " replicas of its blocks"
        )

    def _generate(self, model: RemoteLanguageModel) -> str:
        options = self._options
        prompt = options.prompt.encode()
        if not options.length:
            return ""
        generator = torch.Generator().manual_seed(options.seed)
        new = model.generate(
            torch.tensor([list(prompt)]),
            options.length,
            temperature=options.temperature,
            generator=generator,
        )
        return (prompt + bytes(int(token) for (token,) in new)).decode(errors="replace")

    def finish(self, seconds: float) -> int:
        """Show the outcome; 0 when no step was lost and the model has learnt."""
        options, record = self._options, self.record
        record.seconds = seconds
        summary = record.summary()
        if options.report is not None:
            series = [step.loss for step in record.steps]
            report = json.dumps({**summary, "losses": series}, indent=1)
            (options.report / "report.json").write_text(report + "\n", encoding="utf-8")
        if options.as_json:
            print_event("report", **summary)
        else:
            facts = {
                name.replace("_", " "): f"{each:.3f}" if isinstance(each, float) else each
                for name, each in summary.items()
            }
            sample = facts.pop("sample")
            print_facts("train-lm, losses in nats a byte", facts)
            print_line("\n".join(map(as_one_line, str(sample).split("\n"))), sys.stdout)
        return 0 if record.has_learnt and not summary["steps_lost"] else 1


def run(options: plan.Options) -> int:
    """Train; 0 when no step was lost and the model has learnt, 1 otherwise.

    Raises:
        P2PNodeError: a host could not be started, or the training could not go on.
    """
    started = time.monotonic()
    if options.report is not None:
        options.report.mkdir(parents=True, exist_ok=True)
    training = _Run(options)
    if options.demo:
        _run_demo(options, training)
    else:
        training.train(options.bootstrap, options.invite, ())
    return training.finish(time.monotonic() - started)


# --- the hosts of a demo ------------------------------------------------------------------------


def _run_demo(options: plan.Options, training: _Run) -> None:
    torch.set_num_threads(1)  # four processes share this machine
    key = RunKey.generate()
    with sigterm_unwinds(), tempfile.TemporaryDirectory(prefix="p2pnode-train-lm-") as folder:
        state = Path(folder)
        hosts = [
            _make_host(number, options, key, state, options.report or state)
            for number in range(len(plan.SERVED) + 1)
        ]
        with ending(hosts):
            training.note("starting two hosts for half of the blocks each, and one that stands by")
            start_all(hosts[:-1])
            start_all(hosts[-1:], [host.address for host in hosts[:-1]])
            training.train([host.address for host in hosts], _invite(key, "train"), hosts)
            training.note("stopping the hosts")


def _make_host(
    number: int, options: plan.Options, key: RunKey, state: Path, logs: Path
) -> DemoDaemon:
    name = f"host-{number}"
    config = logs / f"{name}.toml"
    lines = []
    settings = plan.host_settings(number, options.seed, options.micro_batches)
    for section, values in settings.items():
        lines += [
            f"[{section}]",
            *(f"{field} = {json.dumps(value)}" for field, value in values.items()),
        ]
    config.write_text("\n".join([*lines, ""]), encoding="utf-8")
    arguments = ("--config", str(config.absolute()), "--run", plan.RUN)
    return DemoDaemon(name, state / name, logs, (*arguments, "--invite", _invite(key, "host")))


def _invite(key: RunKey, scope: str) -> str:
    return issue_invite(key, plan.RUN, scopes={scope}, expires_at=wall_time() + _INVITE_LIFETIME)
