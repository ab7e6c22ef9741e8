"""The scenario `learning-convergence`: every combination of variant, delay and failures."""

import itertools
from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from p2pnode.errors import ConfigError
from simulations.learning.data import Data, load
from simulations.learning.determinism import generator, one_thread
from simulations.learning.mixture import AS_PUBLISHED, TRAINED_GATE, VARIANTS
from simulations.learning.model import DENSE, Classifier, Shape
from simulations.learning.training import Evaluation, History, Schedule, train
from simulations.report import Axis, Report, at_least, at_most
from simulations.simulation import Simulation

_SMOOTHED: Final = 5  # evaluations whose mean is the accuracy "at the end"
_BARS_TO_THE_MEAN: Final = 8  # of a histogram whose bars are as wide for every seed
_MOST_LOST: Final = 5.0  # points of accuracy that one failure in ten may cost
_LEAST_STALE: Final = 85.0  # % of the law: starting, and queueing for the model, cost some
_TOLD: Final = {
    DENSE: "dense",
    AS_PUBLISHED: "as published: failed experts replaced, gate frozen",
    TRAINED_GATE: "trained gate: failed experts dropped",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One combination.

    Attributes:
        variant: `DENSE`, or one of `VARIANTS`.
        delay: mean, in milliseconds.
        failures: how probable it is that an expert fails for a sample.
        trainers: how many work at once.
    """

    variant: str
    delay: float
    failures: float
    trainers: int

    @property
    def name(self) -> str:
        """How its series is called."""
        failures = "" if self.variant == DENSE else f", {self.failures:.0%} failures"
        return f"{self.variant}, {self.delay:g} ms{failures}"

    @property
    def panel(self) -> str:
        """The panel it is drawn in."""
        return f"{self.delay:g} ms, {self.trainers} trainer{'s' * (self.trainers > 1)}"

    @property
    def label(self) -> str:
        """What stands beside its line."""
        return "dense" if self.variant == DENSE else f"{self.failures:.0%} fail"


async def compare(sim: Simulation) -> None:
    """Train every combination from the same weights, one after the other, and report.

    Raises:
        ConfigError: there are more experts to choose than there are.
        LocalError: the images are not installed.
    """
    chosen = sim.parameters
    if chosen["k_best"] > chosen["experts"]:
        raise ConfigError(
            f"k_best is {chosen['k_best']}, but a block has only {chosen['experts']} experts"
        )
    data = load(chosen["data"])
    runs = plan(
        VARIANTS if chosen["variant"] == "both" else (chosen["variant"],),
        chosen["delays"],
        chosen["trainers"],
        chosen["failures"],
    )
    histories: dict[Run, History] = {}
    with one_thread():
        for number, run in enumerate(runs, 1):
            sim.begin(f"{number} of {len(runs)}: {run.name}")
            histories[run] = await _train(sim, data, run)
    _report(sim.report, histories)


def plan(
    variants: tuple[str, ...],
    delays: tuple[float, ...],
    trainers: tuple[int, ...],
    failures: tuple[float, ...],
) -> list[Run]:
    """List the combinations; where there are fewer trainers than delays, the last number holds."""
    count = dict(zip(delays, itertools.chain(trainers, itertools.repeat(trainers[-1]))))  # noqa: B905  # the second one is endless
    dense = [Run(DENSE, delay, 0.0, count[delay]) for delay in count]
    return dense + [
        Run(variant, delay, rate, count[delay])
        for variant in variants
        for delay in count
        for rate in failures
    ]


async def _train(sim: Simulation, data: Data, run: Run) -> History:
    chosen = sim.parameters
    shape = Shape(
        variant=run.variant,
        features=chosen["features"],
        blocks=chosen["blocks"],
        experts=chosen["experts"],
        k_best=chosen["k_best"],
        failure_rate=run.failures,
        learning_rate=chosen["learning_rate"],
        update_inputs=chosen["batch"],
        update_steps=chosen["update_steps"],
    )
    schedule = Schedule(
        trainers=run.trainers,
        batch=chosen["batch"],
        steps=chosen["steps"],
        evaluate_every=max(1, chosen["steps"] // chosen["evaluations"]),
        delay=run.delay / 1000,
        compute=chosen["compute"] / 1000,
    )
    # Every combination starts with the same weights and sees the images in the same order, so that
    # what differs is what they are compared in.
    model = Classifier(
        shape,
        data.pixels,
        chance=generator(sim, "weights"),
        failures=generator(sim, "failures"),
    )

    def note(evaluation: Evaluation) -> None:
        sim.log.record(
            "evaluated",
            run=run.name,
            step=evaluation.step,
            accuracy=round(evaluation.accuracy, 6),
            loss=round(evaluation.loss, 6),
        )

    return await train(
        model,
        data,
        schedule,
        delays=sim.rng_for("delays"),
        order=generator(sim, "order"),
        on_evaluated=note,
    )


# --- the report ---------------------------------------------------------------------------------


def _report(report: Report, histories: dict[Run, History]) -> None:
    for run, history in histories.items():
        report.series(
            run.name,
            [each.step for each in history.evaluations],
            [100 * each.accuracy for each in history.evaluations],
            x_label="steps of the trunk",
            y_label="accuracy",
            y_unit="%",
            label=run.label,
        )
    dense = [run for run in histories if run.variant == DENSE]
    variants = dict.fromkeys(run.variant for run in histories if run.variant != DENSE)
    for variant in variants:
        panels = {
            base.panel: [
                base.name,
                *(
                    run.name
                    for run in histories
                    if run.variant == variant and run.delay == base.delay
                ),
            ]
            for base in dense
        }
        report.plot(
            f"accuracy, {_TOLD[variant]}",
            panels,
            caption="Of held-out images. Above each panel: the mean delay of a gradient, and how"
            " many trainers work at the same time.",
            y_from=0,
            y_to=100,
        )
    for variant in variants:
        _figures(report, histories, variant)
    _staleness(report, histories)
    _table(report, histories)
    report.note(
        "Compute takes a modelled duration on a virtual clock; losses and gradients are real. The"
        " accuracy at the end is the mean of the last five evaluations."
    )
    report.note(
        "What delays do to learning they do by making gradients stale, and how stale depends on how"
        " many trainers there are, not on the delay itself: n trainers give n - 1 steps on average."
        " Hence the number of trainers grows with the delay, as it has to in order to keep a model"
        " busy. Only the trunk's gradients are late; experts gather theirs at once."
    )


def at_end(history: History) -> float:
    """Return the accuracy at the end of a training, in per cent."""
    return 100 * fmean(each.accuracy for each in history.evaluations[-_SMOOTHED:])


def _figures(report: Report, histories: dict[Run, History], variant: str) -> None:
    """Compare the mixtures of a variant with the dense network, and with themselves."""
    longest = max(run.delay for run in histories)
    of = {
        (run.variant, run.failures): at_end(history)
        for run, history in histories.items()
        if run.delay == longest
    }
    mixtures = {rate: value for (kind, rate), value in of.items() if kind == variant}
    fewest = min(mixtures)
    where = f"at {longest:g} ms, {variant}"
    report.figure(
        f"ahead of dense {where}",
        _points(mixtures[fewest], of[DENSE, 0.0]),
        "points",
        # Without delays nothing is stale, and that mixtures bear it better is all that is claimed.
        goal=at_least(0.0) if longest else None,
        detail=f"accuracy {mixtures[fewest]:.1f} % with {fewest:.0%} failures, dense"
        f" {of[DENSE, 0.0]:.1f} %",
    )
    for rate in sorted(mixtures):
        if rate > fewest:
            report.figure(
                f"lost to {rate:.0%} failures {where}",
                _points(mixtures[fewest], mixtures[rate]),
                "points",
                goal=at_most(_MOST_LOST) if rate <= 0.1 else None,
                detail=f"accuracy {mixtures[rate]:.1f} %",
            )


def _points(one: float, other: float) -> float:
    return round(one - other, 6)  # no more of it is known; 6e-15 would be told as a loss


def _staleness(report: Report, histories: dict[Run, History]) -> None:
    """Compare the staleness of the most trainers with the law."""
    run, history = max(
        ((run, history) for run, history in histories.items() if run.delay),
        key=lambda each: each[0].trainers,
        default=(None, None),
    )
    if run is None or history is None or run.trainers < 2:
        return
    # The first gradients of all trainers are from one moment, which is no steady state.
    steady = history.staleness[run.trainers :]
    mean = fmean(steady) if steady else None
    report.figure(
        f"staleness of {run.trainers} trainers",
        None if mean is None else 100 * mean / (run.trainers - 1),
        "% of n - 1",
        goal=at_least(_LEAST_STALE),
        detail="" if mean is None else f"{mean:.1f} steps on average, {max(steady)} at most",
    )
    width = max(1, run.trainers // _BARS_TO_THE_MEAN)
    counts = Counter(each // width for each in history.staleness)
    bars = range(max(counts) + 1)
    report.series(
        "staleness",
        [width * each for each in bars],
        [counts[each] for each in bars],
        x_label="steps taken since the gradient was computed",
        y_label="gradients" if width == 1 else f"gradients, each bar of {width} steps",
        style="bars",
    )
    report.plot(f"staleness, {run.panel}", ["staleness"])


def _table(report: Report, histories: dict[Run, History]) -> None:
    report.table(
        "accuracy at the end",
        [
            "variant",
            Axis("mean delay", "ms"),
            "trainers",
            Axis("failures", "%"),
            Axis("accuracy", "%"),
            Axis("mean staleness", "steps"),
            Axis("virtual time", "s"),
        ],
        [
            (
                run.variant,
                run.delay,
                run.trainers,
                100 * run.failures,
                at_end(history),
                fmean(history.staleness),
                history.evaluations[-1].time,
            )
            for run, history in histories.items()
        ],
        caption="The mean of the last five evaluations.",
    )
