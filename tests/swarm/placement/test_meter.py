import math

import pytest

from p2pnode.experts.events import BatchComputed
from p2pnode.swarm.placement.meter import Meter
from p2pnode.wire.uids import Uid


def _batch(**changes):
    usual = {"uid": Uid("lm", "blocks.0")}
    usual |= {"span": 1, "kind": "forward", "calls": 1, "rows": 64, "failed": 0, "seconds": 0.5}
    return BatchComputed(**(usual | changes))


UID = Uid("lm", "blocks.3")


def _speed(*batches):
    meter = Meter()
    for batch in batches:
        meter.receive(batch)
    return 1 / meter.seconds(UID, 1) if batches else meter.seconds(UID, 1)


def test_nothing_is_known_before_the_first_batch():
    assert _speed() == 0.0


def test_rows_through_all_layers_of_a_span_count():
    assert _speed(_batch()) == 128.0
    assert _speed(_batch(span=4)) == 512.0


def test_a_backward_pass_counts_as_three_forward_passes():
    assert _speed(_batch(kind="backward", seconds=1.5)) == 128.0


def test_batches_count_by_the_time_they_took():
    assert _speed(_batch(rows=100, seconds=1.0), _batch(rows=2, seconds=0.02)) == 100.0


def test_failed_batches_and_those_that_took_no_time_do_not_count():
    assert _speed(_batch(), _batch(rows=9999, failed=1), _batch(rows=9999, seconds=0.0)) == 128.0


def test_a_line_carries_what_its_slower_direction_does():
    meter = Meter()
    assert meter.carried(1000, 1000) == math.inf
    meter.receive(_batch(rows=10, bytes_taken=400, bytes_given=100))
    assert meter.carried(0, 0) == math.inf
    assert meter.carried(1000, 0) == 25.0
    assert meter.carried(1000, 50) == 5.0
    # A backward call counts as three forward ones, here as for the speed.
    meter.receive(_batch(rows=10, kind="backward", span=4, bytes_taken=800, bytes_given=400))
    assert meter.carried(1200, 0) == 40.0


def test_what_is_long_past_counts_less_and_less():
    old = [_batch(rows=1, seconds=1.0)] * 300
    new = [_batch(rows=10, seconds=1.0)] * 300
    assert _speed(*old, *new) == pytest.approx(10.0, rel=0.15)


def test_each_block_is_measured_for_itself_and_others_by_their_weights():
    meter = Meter()
    assert meter.seconds(UID, 1000) == 0.0
    meter.receive(_batch(rows=10, seconds=1.0, weights=50))
    wide = Uid("lm", "wide.0")
    assert meter.seconds(wide, 500) == pytest.approx(1.0)  # ten times the weights: ten times 0.1 s
    meter.receive(_batch(uid=wide, rows=10, seconds=4.0, weights=500))
    assert meter.seconds(wide, 500) == pytest.approx(0.4)  # as it turned out
    assert meter.seconds(UID, 50) == pytest.approx(0.1)
    assert meter.seconds(Uid("other", "wide.0"), 110) == pytest.approx(0.1)


def test_a_batch_without_rows_says_nothing():
    assert _speed(_batch(), _batch(rows=0)) == 128.0
