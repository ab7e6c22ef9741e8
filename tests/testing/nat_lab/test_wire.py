import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.testing.nat_lab.wire import MAX_WAITING, DelayLine


def line(delay=0.0, loss=0.0, seed=1):
    return DelayLine(delay, loss, random.Random(seed))


def drain(wire, now):
    frames = []
    while (frame := wire.receive(now)) is not None:
        frames.append(frame)
    return frames


@given(
    st.floats(0, 10),
    st.lists(st.floats(0, 5), max_size=20),
)
def test_each_frame_arrives_once_in_order_and_not_before_its_time(delay, pauses):
    wire, now, sent, arrived = line(delay), 0.0, [], []
    for number, pause in enumerate(pauses):
        now += pause
        for frame in drain(wire, now):
            assert sent[len(arrived)] + delay <= now
            arrived.append(frame)
        wire.send(bytes([number]), now)
        sent.append(now)
    while wire.next_due is not None:
        assert wire.receive(wire.next_due - 1e-6) is None
        arrived += drain(wire, wire.next_due)
    assert arrived == [bytes([number]) for number in range(len(pauses))]


def test_the_share_that_is_lost_is_the_one_asked_for_and_the_seed_says_which():
    def survivors(seed):
        wire = line(loss=0.3, seed=seed)
        for number in range(1000):
            wire.send(number.to_bytes(2, "big"), 0.0)
        return drain(wire, 0.0)

    assert 650 < len(survivors(1)) < 750
    assert survivors(1) == survivors(1) != survivors(2)


@pytest.mark.parametrize("loss", [0.0, 1.0])
def test_a_wire_loses_nothing_or_everything(loss):
    wire = line(loss=loss)
    for _ in range(100):
        wire.send(b"x", 0.0)
    assert len(drain(wire, 0.0)) == 100 * (1 - loss)


def test_a_wire_holds_only_so_many_frames():
    wire = line(delay=1.0)
    for _ in range(MAX_WAITING + 10):
        wire.send(b"x", 0.0)
    assert len(drain(wire, 1.0)) == MAX_WAITING
