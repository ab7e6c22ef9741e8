import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.trainer.splitting.shares import Rows, Speeds, assign, cut, share_out
from p2pnode.wire.keys import PrivateKey

PEERS = [PrivateKey.generate().peer_id for _ in range(5)]
SPEEDS = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=len(PEERS))


@given(st.integers(0, 5000), SPEEDS)
def test_all_rows_are_shared_out_in_proportion(rows, speeds):
    counts = share_out(rows, speeds)
    assert sum(counts) == rows
    least = int(rows >= len(speeds))
    left = rows - least * len(speeds)
    for count, speed in zip(counts, speeds, strict=True):
        assert count >= least
        assert abs(count - least - left * speed / sum(speeds)) <= 1


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), min_size=1, max_size=4),
    SPEEDS,
    st.integers(1, 40),
)
def test_each_row_goes_to_one_peer_in_parts_that_it_takes(gaps, speeds, most):
    spans, start = [], 0
    for gap, length in gaps:
        spans.append(Rows(start + gap, start + gap + length))
        start = spans[-1].stop
    peers = PEERS[: len(speeds)]
    parts = assign(spans, dict(zip(peers, speeds, strict=True)), dict.fromkeys(peers, most))
    rows = [row for _, part in parts for row in range(part.start, part.stop)]
    assert rows == [row for span in spans for row in range(span.start, span.stop)]
    assert all(0 < len(part) <= most for _, part in parts)


def test_rows_are_cut_without_a_gap():
    assert cut(Rows(3, 10), 3) == [Rows(3, 6), Rows(6, 9), Rows(9, 10)]
    assert cut(Rows(3, 5), 8) == [Rows(3, 5)]


def test_what_is_not_known_of_a_peer_is_as_with_the_others():
    speeds = Speeds(3)
    one, two, new = PEERS[:3]
    assert speeds.of([one, two]) == {one: 1.0, two: 1.0}
    speeds.receive(one, 100, 1.0, backward=False)
    speeds.receive(two, 300, 1.0, backward=False)
    found = speeds.of([one, two, new])
    assert found == {one: pytest.approx(100), two: pytest.approx(300), new: pytest.approx(200)}
    speeds.receive(one, 100, 3.0, backward=True)  # a row takes 10 + 30 ms, and 3 + 30
    found = speeds.of([one, two])
    assert found == {one: pytest.approx(25), two: pytest.approx(30)}


def test_a_speed_follows_what_parts_show_and_does_not_count_the_way():
    speeds = Speeds(3)
    peer = PEERS[0]

    def show(rows, seconds):
        speeds.receive(peer, rows, seconds, backward=True)
        return speeds.of([peer])[peer]

    speeds.receive_latency(peer, 0.5)  # what the way takes
    speeds.receive_latency(peer, 0.7)
    assert show(10, 1.5) == pytest.approx(10.0)
    show(30, 1.5)
    assert show(30, 100.0) == pytest.approx(10.0)  # once, for another reason
    assert show(30, 1.5) == pytest.approx(30.0)
    show(1, 0.5)
    assert show(1, 0.5) == pytest.approx(20.0)  # as fast as the way: a tenth counts as work


def test_few_rows_do_not_make_a_peer_seem_slow_for_ever():
    speeds = Speeds(5)
    fast, slow = PEERS[:2]
    for each in (fast, slow):
        speeds.receive_latency(each, 0.02)
    speeds.receive(fast, 100, 0.12, backward=False)
    speeds.receive(slow, 100, 10.0, backward=False)  # once, for another reason
    for _ in range(30):
        parts = assign([Rows(0, 200)], speeds.of([fast, slow]), dict.fromkeys((fast, slow), 999))
        for peer, part in parts:
            speeds.receive(peer, len(part), 0.02 + len(part) / 1000, backward=False)
    assert [len(part) for _, part in parts] == [pytest.approx(100, abs=5)] * 2
