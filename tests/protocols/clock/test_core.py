import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.clock.core import (
    ANSWER_BYTES,
    QUESTION_BYTES,
    Offset,
    agreed,
    encode_answer,
    offset_of,
    read_answer,
)

QUESTION = bytes(range(QUESTION_BYTES))
seconds = st.floats(-1e6, 1e6)
errors = st.floats(0, 10)


@given(st.floats(0, 2.0**34))
def test_an_answer_tells_the_time(wall):
    answer = encode_answer(QUESTION, wall)
    assert len(answer) == ANSWER_BYTES
    assert read_answer(QUESTION, answer) == pytest.approx(wall, abs=1e-5)


@given(st.binary(max_size=2 * ANSWER_BYTES))
def test_any_other_answer_is_refused(answer):
    try:
        told = read_answer(QUESTION, answer)
    except ProtocolError:
        return
    assert answer.startswith(QUESTION)
    assert 0 <= told <= 2.0**34


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        encode_answer(QUESTION, 1.0)[:-1],
        encode_answer(QUESTION, 1.0) + b"\0",
        encode_answer(bytes(QUESTION_BYTES), 1.0),
        QUESTION + b"\xff" * 8,
    ],
)
def test_a_wrong_answer_is_an_error(answer):
    with pytest.raises(ProtocolError):
        read_answer(QUESTION, answer)


@given(seconds, st.floats(0, 5), st.floats(0, 1))
def test_the_true_offset_lies_within_the_error(ahead, round_trip, share):
    told = 1000.0 + share * round_trip + ahead  # it was read somewhere on the way
    found = offset_of(told, 1000.0, round_trip)
    assert abs(found.seconds - ahead) <= found.error + 1e-6


def test_peers_that_agree_are_believed_and_the_others_not():
    offsets = [Offset(5.0, 0.3), Offset(5.2, 0.3), Offset(4.9, 0.2), Offset(-900.0, 0.1)]
    found = agreed(offsets)
    assert (found.seconds, found.error) == pytest.approx((5.0, 0.1))


@pytest.mark.parametrize(
    "offsets", [[], [Offset(1.0, 0.1), Offset(2.0, 0.1)], [Offset(float(n), 0.4) for n in range(5)]]
)
def test_without_a_majority_nothing_is_said(offsets):
    assert agreed(offsets) is None


@given(
    seconds,
    st.lists(st.tuples(st.floats(-1, 1), errors), min_size=1, max_size=9),
    st.lists(st.builds(Offset, seconds, errors), max_size=8),
    st.randoms(use_true_random=False),
)
def test_a_minority_moves_nothing_out_of_what_an_honest_peer_says(truth, honest, liars, rng):
    assume(len(liars) < len(honest))
    true = [Offset(truth + share * error, error) for share, error in honest]
    mixed = [*true, *liars]
    rng.shuffle(mixed)
    found = agreed(mixed)
    assert found is not None
    assert any(abs(found.seconds - each.seconds) <= each.error + 1e-6 for each in true)
