from hypothesis import given
from hypothesis import strategies as st

from p2pnode.experts.replay import KEY_BYTES, ReplayLog, replay_key
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

A, B = Uid("open:r", "ffn.0"), Uid("open:r", "ffn.1")
ALICE, BOB = (PrivateKey.from_seed(seed * 32).peer_id for seed in (b"a", b"b"))


def key(number):
    return number.to_bytes(KEY_BYTES, "big")


def test_a_call_is_found_by_its_caller_only():
    assert replay_key(ALICE, key(1)) == replay_key(ALICE, key(1))
    assert len({replay_key(ALICE, key(1)), replay_key(BOB, key(1)), replay_key(ALICE, key(2))}) == 3
    assert len(replay_key(ALICE, key(1))) == KEY_BYTES


def test_a_new_call_is_not_found():
    log = ReplayLog(max_calls=2, max_bytes=10)
    assert log.find([A], key(1)) is None
    log.record([A], key(1), "answer", 1)
    assert log.find([B], key(1)) is None


def test_an_applied_call_is_answered_as_before():
    log = ReplayLog(max_calls=2, max_bytes=10)
    log.record([A], key(1), "answer", 1)
    assert log.find([A], key(1)) == log.find([A], key(1)) == "answer"


def test_a_call_whose_answer_was_pushed_out_is_not_applied_again():
    log = ReplayLog(max_calls=9, max_bytes=10)
    log.record([A], key(1), "one", 6)
    log.record([B], key(2), "two", 6)
    assert log.find([A], key(1)) is None
    assert log.applied([A, B], key(1)) == [A]
    assert log.find([B], key(2)) == "two"
    assert log.bytes == 6


def test_an_answer_too_large_to_keep_pushes_out_no_other():
    log = ReplayLog(max_calls=9, max_bytes=10)
    log.record([A], key(1), "one", 6)
    log.record([A], key(2), "two", 11)
    assert log.find([A], key(1)) == "one"
    assert log.find([A], key(2)) is None
    assert log.knows([A], key(2))


def test_a_call_repeated_with_a_longer_span_is_counted_once():
    log = ReplayLog(max_calls=2, max_bytes=100)
    for number in range(30):
        log.record([A], key(number), "short", 9)
        log.record([A, B], key(number), "long", 10)
        assert log.find([A, B], key(number)) == "long"
    assert log.bytes == 20


def test_ids_are_forgotten_in_order_with_their_answers():
    log = ReplayLog(max_calls=2, max_bytes=100)
    for number in range(3):
        log.record([A], key(number), number, 10)
    assert log.find([A], key(0)) is None
    assert log.keys(A) == [key(1), key(2)]
    assert log.bytes == 20


def test_restored_calls_are_known_but_not_answered():
    log = ReplayLog(max_calls=2, max_bytes=100)
    log.replace(A, [key(1), key(2)])
    assert log.keys(A) == [key(1), key(2)]
    assert log.find([A], key(2)) is None
    assert log.knows([A], key(2))


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 60)), max_size=60))
def test_what_is_kept_stays_within_its_bounds(records):
    log = ReplayLog(max_calls=5, max_bytes=100)
    for number, (uid, size) in enumerate(records):
        log.record([uid], key(number), number, size)
        assert log.bytes <= 100
        assert log.bytes == sum(size for _, size in log._answers.values())
        assert len(log.keys(uid)) <= 5
        assert log.find([uid], key(number)) == number


def test_a_call_of_a_span_is_applied_to_each_of_its_layers():
    log = ReplayLog(max_calls=9, max_bytes=100)
    log.record([A, B], key(1), "answer", 1)
    assert log.keys(A) == log.keys(B) == [key(1)]
    assert log.find([A, B], key(1)) == log.find([A], key(1)) == "answer"
    assert log.find([B], key(1)) is None  # the gradient of what B took was never kept
    assert log.applied([A, B], key(1)) == [A, B]


def test_a_call_applied_to_a_part_of_its_span_is_not_applied_to_the_rest():
    log = ReplayLog(max_calls=9, max_bytes=100)
    log.record([A], key(1), "answer", 1)
    log.record([B], key(2), "answer", 1)
    for number, applied in ((1, [A]), (2, [B])):
        assert log.find([A, B], key(number)) is None
        assert log.applied([A, B], key(number)) == applied


def test_a_new_state_knows_its_own_calls_only():
    log = ReplayLog(max_calls=9, max_bytes=100)
    log.record([A], key(1), "one", 10)
    log.record([A], key(2), "two", 20)
    log.replace(A, [key(3), key(1)])
    assert log.keys(A) == [key(3), key(1)]
    assert log.find([A], key(1)) == "one"
    assert log.find([A], key(2)) is None
    assert log.bytes == 10
