from hypothesis import given
from hypothesis import strategies as st

from p2pnode.experts.row_limits import GROWS_AFTER, MAX_REMEMBERED, RowLimits
from p2pnode.wire.uids import Uid

A, B = (Uid("open:r", "ffn.0"),), (Uid("open:r", "ffn.1"),)


def test_without_a_failure_there_is_no_limit_but_the_general_one():
    limits = RowLimits(100)
    limits.worked(A, 50)
    assert limits.of(A) == 100


def test_what_did_not_fit_is_halved_for_its_own_chain_only():
    limits = RowLimits(100)
    limits.failed(A, 100)
    assert (limits.of(A), limits.of(B)) == (50, 100)
    limits.failed(A, 50)
    limits.failed(A, 25)
    assert limits.of(A) == 12
    limits.failed(A, 100)  # of a batch that was chosen before
    assert limits.of(A) == 12
    for _ in range(9):
        limits.failed(A, limits.of(A))
    assert limits.of(A) == 1


def test_a_limit_grows_again_when_full_batches_keep_fitting():
    limits = RowLimits(100)
    limits.failed(A, 60)
    for _ in range(GROWS_AFTER - 1):
        limits.worked(A, 30)
        limits.worked(A, 15)  # half a batch shows nothing
    assert limits.of(A) == 30
    limits.worked(A, 16)
    assert limits.of(A) == 60
    for _ in range(GROWS_AFTER):
        limits.worked(A, 60)
    assert limits.of(A) == 100


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.booleans(), st.integers(1, 200))))
def test_a_limit_is_at_least_one_row_and_at_most_the_general_one(steps):
    limits = RowLimits(128)
    for uids, fits, rows in steps:
        (limits.worked if fits else limits.failed)(uids, rows)
        assert 1 <= limits.of(uids) <= 128
        if not fits:
            assert limits.of(uids) <= max(1, rows // 2)


def test_a_bounded_number_of_limits_is_remembered():
    limits = RowLimits(128)
    for number in range(MAX_REMEMBERED + 5):
        limits.failed((Uid("open:r", f"ffn.{number}"),), 128)
    assert limits.of((Uid("open:r", "ffn.0"),)) == 128
    assert limits.of((Uid("open:r", "ffn.99"),)) == 64
    assert len(limits._limits) == MAX_REMEMBERED
