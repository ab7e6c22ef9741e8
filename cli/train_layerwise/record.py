"""What happened in a run, from the participants' own words, and the report of it.

`Record.in_words` says it in sentences: how long it took at equal accuracy, and where the time went.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cli.train_layerwise.plan import DemoOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One process's accuracy on the hold-out, at one moment."""

    seconds: float
    samples: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundScore:
    """A participant's accuracy on its hold-out at the end of a round."""

    seconds: float  # since training began anywhere
    round: int
    score: float


@dataclass(slots=True, kw_only=True)
class Told:
    """What one participant has told."""

    name: str
    layer: int
    scores: list[RoundScore] = field(default_factory=list)
    samples: int = 0
    stale: int = 0
    lost: int = 0
    updates: int = 0
    rerouted: int = 0
    staleness: float = 0.0  # the sum over updates
    max_staleness: int = 0
    checks: dict[str, int] = field(default_factory=dict)  # of others' weights, by verdict
    averages: int = 0  # that were taken over
    training: float = 0.0  # seconds, of sending examples through the layers
    waited: float = 0.0  # for others' announcements
    in_rounds: float = 0.0  # in all
    ended: str | None = None  # why its training did
    seconds: float | None = None  # when
    killed: bool = False

    @property
    def score(self) -> float | None:
        """The accuracy on its own hold-out after its last round."""
        return self.scores[-1].score if self.scores else None


@dataclass(slots=True, kw_only=True)
class Record:
    """A run of the demo, filled in as it goes."""

    options: DemoOptions
    told: list[Told]
    cores: int = 1  # that all processes share
    began: float | None = None  # wall-clock time at which training began anywhere
    test_accuracy: float | None = None
    alone: list[Look] = field(default_factory=list)
    alone_test_accuracy: float | None = None

    def receive(self, number: int, event: Mapping[str, Any]) -> bool:
        """Take in what a participant tells; returns whether it is worth showing."""
        told = self.told[number]
        match event["event"]:
            case "samples_trained":
                if self.began is None:
                    self.began = event["time"] - event["seconds"]
                for name in ("samples", "stale", "lost", "updates", "rerouted"):
                    setattr(told, name, getattr(told, name) + event[name])
                told.staleness += event["staleness"] * event["updates"]
                told.max_staleness = max(told.max_staleness, event["max_staleness"])
                told.training += event["seconds"]
                return False
            case "round_ended":
                told.waited += event["waited"]
                told.in_rounds += event["seconds"]
                score = RoundScore(
                    seconds=self._since(event["time"]), round=event["round"], score=event["score"]
                )
                told.scores.append(score)
            case "claim_checked":
                told.checks[event["verdict"]] = told.checks.get(event["verdict"], 0) + 1
            case "averaged":
                told.averages += event["adopted"]
            case "rounds_ended":
                told.ended, told.seconds = event["reason"], self._since(event["time"])
                if told.score != event["score"]:  # of weights that were adopted meanwhile
                    told.scores.append(
                        RoundScore(seconds=told.seconds, round=event["round"], score=event["score"])
                    )
            case _:
                return False
        return True

    def _since(self, moment: float) -> float:
        return moment - (moment if self.began is None else self.began)

    @property
    def living(self) -> list[Told]:
        """The participants that were not killed."""
        return [each for each in self.told if not each.killed]

    @property
    def mean_scores(self) -> list[tuple[float, float]]:
        """The mean of all participants' newest scores, at each moment at which one changes."""
        newest: dict[str, float] = {}
        moments = sorted(
            (score.seconds, told.name, score.score) for told in self.living for score in told.scores
        )
        found = []
        for seconds, name, score in moments:
            newest[name] = score
            if len(newest) == len(self.living):
                found.append((seconds, sum(newest.values()) / len(newest)))
        return found

    @property
    def seconds(self) -> float | None:
        """Until each participant had found the threshold reached; None if one has not."""
        reached = [each.seconds for each in self.living if each.ended == "threshold"]
        found = [each for each in reached if each is not None]
        return max(found) if len(found) == len(self.living) else None

    @property
    def seconds_to_mean(self) -> float | None:
        """Until the mean of their scores was at the threshold."""
        threshold = self.options.agreed.threshold
        return next((at for at, mean in self.mean_scores if mean >= threshold), None)

    @property
    def seconds_alone(self) -> float | None:
        """Until one process had the threshold on the hold-outs of all, scoring included."""
        threshold = self.options.agreed.threshold
        return next((each.seconds for each in self.alone if each.score >= threshold), None)

    @property
    def speed_up(self) -> float | None:
        """How many times sooner the swarms were at the same accuracy; below 1, later."""
        if self.seconds_to_mean is None or self.seconds_alone is None:
            return None
        return self.seconds_alone / max(self.seconds_to_mean, 1e-9)

    @property
    def paces(self) -> tuple[float, float] | None:
        """Examples that the swarms have trained on a second, and one process; scoring included."""
        ends = [each.scores[-1].seconds for each in self.told if each.scores]
        if not ends or not self.alone:
            return None
        samples, alone = sum(each.samples for each in self.told), self.alone[-1]
        return samples / max(*ends, 1e-9), alone.samples / max(alone.seconds, 1e-9)

    @property
    def time_parts(self) -> tuple[float, float, float] | None:
        """The parts of the participants' time that were training, waiting, and all else in rounds.

        All else is scoring one's own weights, and fetching, scoring and taking over others'.
        """
        rounds = sum(each.in_rounds for each in self.told)
        if not rounds:
            return None
        waited = min(1.0, sum(each.waited for each in self.told) / rounds)
        training = min(1.0 - waited, sum(each.training for each in self.told) / rounds)
        return training, waited, 1.0 - training - waited

    def in_words(self) -> list[str]:
        """Say how the swarms compare with one process, and why."""
        options, found = self.options, []
        count, threshold = options.participants, f"{options.agreed.threshold:.0%}"
        together, alone = self.seconds_to_mean, self.seconds_alone
        if together is None or alone is None:
            who = "One process alone was not" if together is not None else "The swarms were not"
            found.append(f"{who} at {threshold}, so their times cannot be compared.")
        else:
            found.append(
                f"At {threshold} of the hold-out, {count} participants took {together:.1f} s and"
                f" one process alone {alone:.2g} s: the swarms are {_compared(alone / together)}."
            )
        paces = self.paces
        if paces is not None:
            samples = sum(each.samples for each in self.told)
            found.append(
                f"They have trained on {samples:,} examples, {paces[0]:,.0f} a second, it on"
                f" {self.alone[-1].samples:,}, {paces[1]:,.0f} a second; all of them share"
                f" {self.cores} {'cores' if self.cores > 1 else 'core'} of this machine."
            )
        if (parts := self.time_parts) is not None:
            training, waiting, rest = parts
            found.append(
                f"Of the participants' time {training:.0%} was training, calls included,"
                f" {waiting:.0%} waiting for each other, {rest:.0%} scoring, checking and taking"
                " over weights."
            )
        if paces is not None and (self.speed_up or 1.0) < 1:
            found.append(self._why_slower(*paces))
        return found

    def _why_slower(self, together: float, alone: float) -> str:
        if together < alone:
            return (
                f"Calls and rounds cost more than sharing a network of {self.options.hidden_dim}"
                " hidden units saves; larger ones (--hidden-dim, --batch), more cores or more"
                " machines shift that."
            )
        lost = (
            "of a round, what the winner has learnt counts, and the others' work is lost"
            if self.options.agreed.mode == "best"
            else "replicas that train apart and are averaged learn less than one that steps for all"
        )
        return f"They get through more examples a second, but learn less from each: {lost}."

    def summary(self) -> dict[str, Any]:
        """Return the facts of the run, without the series."""
        updates = sum(each.updates for each in self.told)
        parts = self.time_parts or (None, None, None)
        paces = self.paces or (None, None)
        return {
            "mode": self.options.agreed.mode,
            "threshold": self.options.agreed.threshold,
            "layers": self.options.layers,
            "peers_of_each": self.options.peers,
            "killed": next((each.name for each in self.told if each.killed), None),
            "rounds": max((each.scores[-1].round for each in self.told if each.scores), default=0),
            "score": self.mean_scores[-1][1] if self.mean_scores else None,
            "test_accuracy": self.test_accuracy,
            "seconds_until_all": self.seconds,
            "seconds": self.seconds_to_mean,
            "alone_seconds": self.seconds_alone,
            "alone_score": self.alone[-1].score if self.alone else None,
            "alone_test_accuracy": self.alone_test_accuracy,
            "speed_up_at_equal_accuracy": self.speed_up,
            "samples": sum(each.samples for each in self.told),
            "samples_a_second": paces[0],
            "alone_samples": self.alone[-1].samples if self.alone else None,
            "alone_samples_a_second": paces[1],
            "samples_stale": sum(each.stale for each in self.told),
            "samples_lost": sum(each.lost for each in self.told),
            "updates": updates,
            "mean_staleness": sum(each.staleness for each in self.told) / updates
            if updates
            else None,
            "max_staleness": max(each.max_staleness for each in self.told),
            "staleness_bound": self.options.agreed.max_staleness,
            "rerouted_calls": sum(each.rerouted for each in self.told),
            "weights_adopted": sum(each.checks.get("adopted", 0) for each in self.told),
            "averages_adopted": sum(each.averages for each in self.told),
            "cores": self.cores,
            "part_training": parts[0],
            "part_waiting": parts[1],
            "part_judging": parts[2],
            "in_words": " ".join(self.in_words()),
        }

    def report(self) -> dict[str, Any]:
        """Return everything, for `report.json`."""
        return {
            **self.summary(),
            "options": dataclasses.asdict(self.options) | {"report": str(self.options.report)},
            "participants": [dataclasses.asdict(each) for each in self.told],
            "mean_scores": self.mean_scores,
            "alone": [dataclasses.asdict(each) for each in self.alone],
        }

    @property
    def has_reached(self) -> bool:
        """Whether every participant that was not killed has found the threshold reached."""
        return self.seconds is not None


def _compared(speed_up: float) -> str:
    """Say how many times faster or slower."""
    if speed_up >= 1:
        return f"{speed_up:.2g} times as fast"
    return f"slower by a factor of {1 / speed_up:.2g}"
