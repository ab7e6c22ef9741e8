"""What is recorded of a demo run: one row a step, and what is made of them at the end."""

from dataclasses import dataclass, field
from typing import Any

from cli.demo import plan
from cli.demo.training import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One step, and the state of the swarm after it."""

    step: Step
    seconds: float  # since the first step began
    calls: int  # so far
    failed_calls: int  # so far
    live_experts: int


@dataclass(slots=True, kw_only=True)
class Record:
    """A run, filled in as it goes."""

    options: plan.Options
    rows: list[Row] = field(default_factory=list)
    killed_at: int | None = None  # steps done when the daemon was killed
    killed_steps: dict[str, int] = field(default_factory=dict)  # its experts' steps just before
    started_again_at: int | None = None  # steps done when the replacement was started
    restored_at: int | None = None  # steps done when the trainer saw its experts alive again
    restored_steps: dict[str, int] = field(default_factory=dict)  # its experts' steps at its start
    final_steps: dict[str, int] = field(default_factory=dict)  # all experts' steps at the end
    test_accuracy: float | None = None
    local_steps: list[Step] = field(default_factory=list)
    local_accuracy: float | None = None
    seconds: float = 0.0

    @property
    def skipped_steps(self) -> int:
        """Steps lost because some samples had lost all their experts."""
        return sum(row.step.loss is None for row in self.rows)

    @property
    def failed_calls(self) -> int:
        """Calls that failed, those that another expert stood in for included."""
        return self.rows[-1].failed_calls if self.rows else 0

    @property
    def calls_per_second(self) -> float:
        """The average over the whole training."""
        last = self.rows[-1] if self.rows else None
        return last.calls / last.seconds if last else 0.0

    @property
    def loss_difference(self) -> float | None:
        """The largest difference to the local run's loss before the kill: the network adds none."""
        pairs = zip(self.rows[: self.killed_at], self.local_steps, strict=False)
        losses = ((row.step.loss, step.loss) for row, step in pairs)
        return max((abs(a - b) for a, b in losses if a is not None and b is not None), default=None)

    def shortcomings(self) -> list[str]:
        """Say what a good run would have had, a sentence each; none for a good run."""
        found = []
        accuracy = self.test_accuracy
        if accuracy is None or accuracy < plan.REQUIRED_ACCURACY:
            found.append(
                f"the test accuracy is {accuracy if accuracy is None else round(accuracy, 4)},"
                f" below {plan.REQUIRED_ACCURACY}"
            )
        if not any(self.restored_steps.values()):
            found.append("the replacement restored no training from its checkpoints")
        if self.restored_at is None:
            found.append("the trainer never saw the replacement's experts")
        if not any(self.final_steps.get(uid, 0) > n for uid, n in self.restored_steps.items()):
            found.append("the restored experts learnt nothing more")
        return found

    def summary(self) -> dict[str, Any]:
        """Return the facts of the run, without the series."""
        return {
            "passed": not self.shortcomings(),
            "shortcomings": self.shortcomings(),
            "test_accuracy": self.test_accuracy,
            "local_accuracy": self.local_accuracy,
            "loss_difference_before_kill": self.loss_difference,
            "steps": len(self.rows),
            "skipped_steps": self.skipped_steps,
            "calls": self.rows[-1].calls if self.rows else 0,
            "calls_per_second": round(self.calls_per_second, 1),
            "failed_calls": self.failed_calls,
            "killed_at": self.killed_at,
            "started_again_at": self.started_again_at,
            "restored_at": self.restored_at,
            "seconds": round(self.seconds, 2),
            "seed": self.options.seed,
        }

    def report(self) -> dict[str, Any]:
        """Return everything, for `report.json`."""
        return {
            **self.summary(),
            "daemons": {
                f"daemon-{number}": plan.experts_of(number) for number in range(plan.DAEMONS)
            },
            "victim": {
                "daemon": f"daemon-{plan.VICTIM}",
                "steps_before_the_kill": self.killed_steps,
                "steps_restored": self.restored_steps,
                "steps_at_the_end": {uid: self.final_steps.get(uid) for uid in self.restored_steps},
            },
            "expert_steps": self.final_steps,
            "series": {
                "step": [row.step.number for row in self.rows],
                "seconds": [round(row.seconds, 3) for row in self.rows],
                "loss": [row.step.loss for row in self.rows],
                "accuracy": [row.step.accuracy for row in self.rows],
                "validation_accuracy": [row.step.validation for row in self.rows],
                "calls": [row.calls for row in self.rows],
                "failed_calls": [row.failed_calls for row in self.rows],
                "live_experts": [row.live_experts for row in self.rows],
            },
            "local_series": {
                "step": [step.number for step in self.local_steps],
                "loss": [step.loss for step in self.local_steps],
                "accuracy": [step.accuracy for step in self.local_steps],
                "validation_accuracy": [step.validation for step in self.local_steps],
            },
        }
