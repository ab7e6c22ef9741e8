import json

import pytest

from cli.train_layerwise.plan import Agreed, DemoOptions
from cli.train_layerwise.plot import draw
from cli.train_layerwise.record import Look, Record, Told

TRAINED = {
    "event": "samples_trained",
    "samples": 64,
    "stale": 0,
    "lost": 0,
    "updates": 4,
    "rerouted": 0,
    "staleness": 1.5,
    "max_staleness": 3,
    "seconds": 1.0,
}


@pytest.fixture
def record():
    options = DemoOptions(agreed=Agreed(threshold=0.9), layers=2, peers=1)
    return Record(
        options=options, told=[Told(name="peer-0", layer=1), Told(name="peer-1", layer=2)]
    )


def ended(record, number, time, score, round_number=1):
    event = {
        "event": "round_ended",
        "time": time,
        "round": round_number,
        "score": score,
        "seconds": 2.0,
        "waited": 0.5,
    }
    return record.receive(number, event)


def finished(record, number, time, score, reason="threshold"):
    event = {"event": "rounds_ended", "time": time, "round": 2, "reason": reason, "score": score}
    return record.receive(number, event)


def test_time_counts_from_the_first_training_anywhere(record):
    record.receive(0, TRAINED | {"time": 101.0})
    record.receive(1, TRAINED | {"time": 102.0})
    ended(record, 1, 103.0, 0.5)
    assert record.told[1].scores[0].seconds == 3.0
    assert record.told[0].staleness == 6.0


def test_the_mean_begins_when_everybody_has_a_score_and_is_reached_once(record):
    record.receive(0, TRAINED | {"time": 101.0})
    ended(record, 0, 102.0, 0.95)
    assert record.mean_scores == []
    ended(record, 1, 104.0, 0.83)
    ended(record, 1, 106.0, 0.89, 2)
    assert record.mean_scores == [(4.0, pytest.approx(0.89)), (6.0, pytest.approx(0.92))]
    assert record.seconds_to_mean == 6.0
    assert not record.has_reached


def test_all_have_reached_it_when_the_last_one_has(record):
    record.receive(0, TRAINED | {"time": 101.0})
    finished(record, 0, 102.0, 0.91)
    assert not record.has_reached
    finished(record, 1, 105.0, 0.92)
    assert record.seconds == 5.0
    assert record.mean_scores[-1] == (5.0, pytest.approx(0.915))


def test_who_has_run_out_of_rounds_has_not_reached_it(record):
    record.receive(0, TRAINED | {"time": 101.0})
    finished(record, 0, 102.0, 0.91)
    finished(record, 1, 105.0, 0.80, "rounds")
    assert not record.has_reached


def test_who_was_killed_is_not_waited_for(record):
    record.receive(0, TRAINED | {"time": 101.0})
    ended(record, 1, 102.0, 0.2)
    record.told[1].killed = True
    finished(record, 0, 104.0, 0.95)
    assert record.has_reached
    assert record.summary()["killed"] == "peer-1"
    assert record.mean_scores == [(4.0, 0.95)]


def test_the_speed_up_compares_times_at_equal_accuracy(record):
    record.receive(0, TRAINED | {"time": 101.0})
    ended(record, 0, 102.0, 0.95)
    ended(record, 1, 104.0, 0.95)
    assert record.speed_up is None
    record.alone += [
        Look(seconds=1.0, samples=64, score=0.8),
        Look(seconds=8, samples=99, score=0.9),
    ]
    assert record.speed_up == 2.0


def test_the_report_says_in_words_how_long_it_took_and_why(record):
    record.receive(0, TRAINED | {"time": 101.0})
    ended(record, 0, 102.0, 0.95)
    ended(record, 1, 104.0, 0.95)
    assert record.time_parts == (0.25, 0.25, 0.5)
    record.alone.append(Look(seconds=1.0, samples=96, score=0.9))
    first, second, third, fourth = record.in_words()
    assert "2 participants took 4.0 s and one process alone 1 s" in first
    assert "slower by a factor of 4" in first
    assert "64 examples, 16 a second, it on 96, 96 a second" in second
    assert "25% was training, calls included, 25% waiting for each other, 50% scoring" in third
    assert "--hidden-dim" in fourth
    record.alone[:] = [Look(seconds=1.0, samples=8, score=0.9)]
    assert record.in_words()[3].endswith("the others' work is lost.")
    record.alone[:] = [Look(seconds=8.0, samples=96, score=0.9)]
    assert "2 times as fast" in record.in_words()[0]
    assert len(record.in_words()) == 3  # nothing to explain


def test_times_are_not_compared_where_the_threshold_was_not_reached(record):
    record.receive(0, TRAINED | {"time": 101.0})
    ended(record, 0, 102.0, 0.95)
    assert record.in_words()[0].startswith("The swarms were not at 90%")
    ended(record, 1, 104.0, 0.95)
    assert record.in_words()[0].startswith("One process alone was not at 90%")


def test_a_report_is_json_and_a_picture_can_be_drawn(record, tmp_path):
    draw(record, tmp_path / "empty.png")
    record.receive(0, TRAINED | {"time": 101.0})
    record.receive(0, {"event": "claim_checked", "verdict": "adopted"})
    ended(record, 0, 102.0, 0.95)
    ended(record, 1, 104.0, 0.95)
    record.told[1].killed = True
    record.alone.append(Look(seconds=1.0, samples=64, score=0.95))
    read = json.loads(json.dumps(record.report()))
    assert read["weights_adopted"] == 1
    assert read["participants"][0]["scores"][0]["score"] == 0.95
    draw(record, tmp_path / "full.png")
    assert (tmp_path / "full.png").stat().st_size > (tmp_path / "empty.png").stat().st_size
