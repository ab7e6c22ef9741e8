"""The parts of the demo, without its processes."""

import json
from itertools import product

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from cli.demo import plan
from cli.demo.command import demo
from cli.demo.data import Batches, load
from cli.demo.display import JsonDisplay, LineDisplay, LiveDisplay
from cli.demo.plot import draw
from cli.demo.record import Record, Row
from cli.demo.runner import wait_any_alive
from cli.demo.training import Step, build_classifier, evaluate, train
from p2pnode.config import Settings
from p2pnode.errors import DeadlineExceededError
from p2pnode.trainer.local import LocalExperts
from p2pnode.trainer.mixture import MixtureOfExperts
from p2pnode.wire.uids import expand_all

EVERY_EXPERT = [uid for number in range(plan.DAEMONS) for uid in plan.experts_of(number)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def record():
    """A run of 30 steps that went well."""
    made = Record(options=plan.Options(steps=30))
    for number in range(1, 31):
        value = number / 30
        step = Step(
            number=number,
            loss=None if number == 11 else 2 - value,
            accuracy=None if number == 11 else value,
            validation=value if number % 10 == 0 else None,
        )
        gone = 10 < number <= 24
        made.rows.append(
            Row(
                step=step,
                seconds=number * 0.5,
                calls=number * 64,
                failed_calls=4 if number > 10 else 0,
                live_experts=24 if gone else 32,
            )
        )
        local = 2 - value + (0.25 if number > 10 else 0.125)
        made.local_steps.append(
            Step(number=number, loss=local, accuracy=value, validation=step.validation)
        )
    victims = plan.experts_of(plan.VICTIM)
    made.killed_at, made.started_again_at, made.restored_at = 10, 20, 24
    made.killed_steps = dict.fromkeys(victims, 9)
    made.restored_steps = dict.fromkeys(victims, 8)
    made.final_steps = dict.fromkeys(EVERY_EXPERT, 29) | dict.fromkeys(victims, 12)
    made.test_accuracy, made.local_accuracy, made.seconds = 0.97, 0.98, 42.0
    return made


# --- the plan and the data ----------------------------------------------------------------------


def test_every_expert_is_hosted_once():
    everywhere = expand_all([f"digits/{block}.[0:4].[0:4]" for block in plan.BLOCKS])
    assert sorted(EVERY_EXPERT) == sorted(map(str, everywhere))
    assert len(EVERY_EXPERT) == plan.EXPERTS == 32


def test_each_row_and_column_of_the_grid_is_spread_over_all_daemons():
    host_of = {uid: number for number in range(plan.DAEMONS) for uid in plan.experts_of(number)}
    for block, fixed in product(plan.BLOCKS, range(4)):
        row = {host_of[f"digits/{block}.{fixed}.{other}"] for other in range(4)}
        column = {host_of[f"digits/{block}.{other}.{fixed}"] for other in range(4)}
        assert row == column == set(range(plan.DAEMONS))


def test_the_three_parts_of_the_data_are_fixed_and_share_no_image():
    first, again = load(), load()
    assert [len(part) for part in (first.train, first.validation, first.test)] == [1197, 300, 300]
    assert torch.equal(first.test.pixels, again.test.pixels)
    everything = torch.cat([first.train.pixels, first.validation.pixels, first.test.pixels])
    # scikit-learn's digits hold no image twice, so equal rows would be shared ones.
    assert len(everything.unique(dim=0)) == len(everything) == 1797


def test_batches_depend_on_the_seed_alone_and_use_every_image():
    images = load().train
    first, again, other = (Batches(images, 100, seed) for seed in (0, 0, 1))
    batches = [first.draw() for _ in range(11)]
    for batch in batches:
        assert torch.equal(batch.pixels, again.draw().pixels)
        assert not torch.equal(batch.pixels, other.draw().pixels)
    seen = torch.cat([batch.pixels for batch in batches])
    assert len(seen) == len(seen.unique(dim=0)) == 1100


# --- training -----------------------------------------------------------------------------------


def local_model(seed=0):
    hosting = Settings().replace(hosting=plan.hosting_settings(seed)).hosting
    experts = LocalExperts(expand_all(EVERY_EXPERT), hosting)

    def build(block):
        return MixtureOfExperts(
            experts,
            block,
            grid=plan.GRID,
            in_features=plan.HIDDEN_DIM,
            k_best=plan.K_BEST,
            k_min=1,
            backward_k_min=1,
            forward_timeout=1.0,
            backward_timeout=1.0,
            timeout_after_k_min=1.0,
        )

    return build_classifier(build, seed), experts


def test_training_learns_digits_and_repeats_under_a_seed():
    data = load()
    runs = []
    for _ in range(2):
        model, _ = local_model()
        steps = list(train(model, data, steps=20, seed=0))
        runs.append([step.loss for step in steps])
        assert [step.number for step in steps] == list(range(1, 21))
        assert [step.number for step in steps if step.validation is not None] == [10, 20]
        assert steps[-1].validation > 0.8
        assert evaluate(model, data.test) > 0.8
    assert runs[0] == runs[1]
    assert runs[0][-1] < runs[0][0] / 2


def test_a_step_whose_experts_are_gone_is_skipped_and_the_next_one_taken():
    data = load()
    model, experts = local_model()
    steps = train(model, data, steps=3, seed=0)
    assert next(steps).loss is not None
    kept = dict(experts._backends)
    experts._backends.clear()
    skipped = next(steps)
    assert (skipped.loss, skipped.accuracy) == (None, None)
    assert evaluate(model, data.test) is None
    experts._backends.update(kept)
    assert next(steps).loss is not None


def test_experts_that_are_all_gone_are_waited_for_within_bounds(monkeypatch):
    model, experts = local_model()
    kept = dict(experts._backends)
    experts._backends.clear()
    with monkeypatch.context() as patch:
        patch.setattr("cli.demo.runner._RETURN_TIMEOUT", 0)
        with pytest.raises(DeadlineExceededError, match="finding a live expert again"):
            wait_any_alive(model)
    monkeypatch.setattr("time.sleep", lambda _seconds: experts._backends.update(kept))
    wait_any_alive(model)
    assert all(layer.live_experts() for layer in model.layers())


def test_other_failures_than_missing_experts_end_the_training():
    model, experts = local_model()

    def fail(*_arguments):
        raise ZeroDivisionError

    experts.choose = fail
    with pytest.raises(ZeroDivisionError):
        next(train(model, load(), steps=1, seed=0))


# --- the report ---------------------------------------------------------------------------------


def test_the_report_holds_the_facts_and_the_series(record):
    report = json.loads(json.dumps(record.report()))
    assert report["passed"]
    assert report["test_accuracy"] == 0.97
    assert report["local_accuracy"] == 0.98
    assert (report["steps"], report["skipped_steps"], report["failed_calls"]) == (30, 1, 4)
    assert (report["killed_at"], report["restored_at"]) == (10, 24)
    assert report["seconds"] == 42.0
    assert report["calls_per_second"] == 128.0
    assert report["loss_difference_before_kill"] == pytest.approx(0.125)
    assert all(len(values) == 30 for values in report["series"].values())
    assert report["series"]["loss"][10] is None
    assert report["victim"]["steps_restored"]["digits/ffn0.0.2"] == 8
    assert report["victim"]["steps_at_the_end"]["digits/ffn0.0.2"] == 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"test_accuracy": 0.9}, "test accuracy is 0.9"),
        ({"test_accuracy": None}, "test accuracy is None"),
        ({"restored_steps": dict.fromkeys(plan.experts_of(plan.VICTIM), 0)}, "restored no"),
        ({"restored_at": None}, "never saw"),
        ({"final_steps": dict.fromkeys(EVERY_EXPERT, 8)}, "learnt nothing more"),
    ],
)
def test_a_run_that_falls_short_says_how(record, changes, sentence):
    for name, value in changes.items():
        setattr(record, name, value)
    assert any(sentence in each for each in record.shortcomings())
    assert not record.summary()["passed"]


@pytest.mark.parametrize("complete", [True, False])
def test_the_picture_is_drawn_even_of_a_broken_run(record, tmp_path, complete):
    if not complete:
        record.killed_at = record.restored_at = record.test_accuracy = record.local_accuracy = None
        record.local_steps.clear()
        record.rows = [
            Row(
                step=Step(number=1, loss=None, accuracy=None, validation=None),
                seconds=1.0,
                calls=0,
                failed_calls=0,
                live_experts=0,
            )
        ]
    draw(record, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


# --- displays -----------------------------------------------------------------------------------


def test_without_a_terminal_there_are_lines(record, capsys):
    display = LineDisplay(Console(width=100, no_color=True), record.options)
    display.note("starting")
    for row in record.rows:
        display.step(row)
    display.finish(record)
    printed = capsys.readouterr().out
    assert printed.startswith("starting\n")
    assert "step 30/30  loss 1.000  accuracy 1.000  128 calls/s  4 failed calls  32/32" in printed
    assert "0.9700" in printed
    assert "\x1b" not in printed


def test_for_machines_each_line_is_json_and_the_last_one_the_summary(record, capsys):
    display = JsonDisplay()
    display.note("starting")
    for row in record.rows:
        display.step(row)
    display.finish(record)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == {"event": "note", "text": "starting"}
    assert [line["event"] for line in lines] == ["note", *["step"] * 30, "report"]
    assert lines[-1]["passed"]


def test_on_a_terminal_the_picture_shows_how_it_goes(record):
    console = Console(width=120, record=True, force_terminal=True)
    display = LiveDisplay(console, record.options)
    with display.shown():
        display.note("killed daemon-2")
        for row in record.rows[:15]:
            display.step(row)
        console.print(display._draw())
    drawn = console.export_text()
    for text in ("killed daemon-2", "calls/s 128", "failed calls 4", "24/32", "15/30"):
        assert text in drawn


# --- the command --------------------------------------------------------------------------------


def test_help_says_what_will_happen():
    result = CliRunner().invoke(demo, ["--help"])
    assert result.exit_code == 0
    assert "is killed" in result.output
    assert "180" in result.output


@pytest.mark.parametrize("arguments", [["--steps", "5"], ["--seed", "-1"]])
def test_impossible_options_are_refused(arguments):
    assert CliRunner().invoke(demo, arguments).exit_code == 2
