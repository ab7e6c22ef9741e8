import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2pnode.experts.pool
from p2pnode.errors import OverloadedError
from p2pnode.experts.pool import BatchPool, Call
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

ALICE = PrivateKey.from_seed(b"a" * 32).peer_id
A, B = Uid("open:r", "ffn.0"), Uid("open:r", "ffn.1")


def call(uid=A, kind="forward", rows=1, arrived=0.0, deadline=100.0):
    return Call(
        uids=(uid,),
        kind=kind,
        caller=ALICE,
        rows=rows,
        inputs=(),
        arrived=arrived,
        deadline=deadline,
    )


def pool(max_rows=10, max_calls=100, window=0.0):
    return BatchPool(max_rows=max_rows, max_calls=max_calls, window=window)


def filled(*calls, **options):
    it = pool(**options)
    for each in calls:
        it.push(each)
    return it


@pytest.mark.parametrize("name", ["pool", "replay"])
def test_queues_have_no_clock_and_no_tensors(name):
    path = Path(p2pnode.experts.pool.__file__).with_name(f"{name}.py")
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    }
    assert not imported & {"torch", "trio", "time", "random", "socket", "threading"}


def test_an_empty_pool_has_no_batch_and_is_never_ready():
    assert pool().next_batch(5.0) is None
    assert pool().next_time() == math.inf


def test_concurrent_calls_of_an_expert_are_one_batch_in_order_of_arrival():
    calls = [call(arrived=0.1 * number) for number in range(4)]
    it = filled(*calls)
    batch = it.next_batch(1.0)
    assert (batch.uids, batch.kind, batch.calls, batch.late) == ((A,), "forward", calls, [])
    assert len(it) == 0


def test_forward_and_backward_calls_are_never_joined():
    it = filled(call(arrived=1), call(kind="backward", arrived=2), call(arrived=3))
    assert [it.next_batch(9.0).kind for _ in range(2)] == ["forward", "backward"]
    assert it.next_batch(9.0) is None


def test_the_queue_whose_oldest_call_is_oldest_goes_first():
    first, second, third = call(B, arrived=1), call(A, arrived=2), call(B, arrived=3)
    it = filled(second, first, third)
    assert it.next_batch(9.0).calls == [first, third]
    assert it.next_batch(9.0).calls == [second]


def test_a_batch_ends_before_it_has_too_many_rows():
    calls = [call(rows=rows) for rows in (4, 6, 1, 20, 1)]
    it = filled(*calls)
    batches = [it.next_batch(9.0).calls for _ in range(4)]
    assert batches == [calls[:2], calls[2:3], calls[3:4], calls[4:]]


def test_a_late_call_is_taken_out_without_being_computed():
    late, good, also_late = call(deadline=5), call(), call(deadline=4)
    batch = filled(late, good, also_late).next_batch(5.0)
    assert batch.late == [late, also_late]
    assert batch.calls == [good]


def test_a_dropped_call_is_never_computed():
    dropped, good = call(arrived=1), call(arrived=2)
    it = filled(dropped, good)
    assert it.discard(dropped)
    assert dropped.dropped
    assert not it.discard(dropped)
    assert it.next_time() == 2
    assert it.next_batch(9.0).calls == [good]
    assert not it.discard(good)
    assert not good.dropped


def test_a_full_queue_refuses_and_a_dropped_call_makes_room():
    first = call()
    it = filled(first, call(kind="backward"), call(B), max_calls=2)
    with pytest.raises(OverloadedError, match=r"2 calls of ffn\.0"):
        it.push(call())
    assert it.queued(A) == 2
    it.discard(first)
    it.push(call())


def test_a_batch_waits_for_company_but_not_for_more_than_it_can_take():
    it = filled(call(rows=3, arrived=1), window=0.5)
    assert it.next_time() == 1.5
    assert it.next_batch(1.4) is None
    it.push(call(rows=7, arrived=1.2))
    assert it.next_time() == 1
    assert len(it.next_batch(1.4).calls) == 2


def test_settling_lets_go_of_the_tensors():
    it = call()
    it.inputs = it.gradients = [object()]
    it.settle([1])
    assert it.settled
    assert it.inputs == it.gradients == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "take", "discard"]),
            st.sampled_from([A, B]),
            st.sampled_from(["forward", "backward"]),
            st.integers(1, 12),
            st.integers(1, 6),
        )
    )
)
def test_every_call_comes_out_once_and_in_order(steps):
    it, waiting, now = pool(max_calls=8), [], 0.0
    for action, uid, kind, rows, patience in steps:
        now += 1
        if action == "push":
            each = call(uid, kind, rows, arrived=now, deadline=now + patience)
            try:
                it.push(each)
            except OverloadedError:
                assert sum(one.uids == (uid,) for one in waiting) == 8
            else:
                waiting.append(each)
        elif action == "discard" and waiting:
            assert it.discard(waiting.pop(rows % len(waiting)))
        elif action == "take":
            batch = it.next_batch(now)
            assert (batch is None) == (not waiting)
            if batch is not None:
                taken = [one for one in waiting if one in batch.calls or one in batch.late]
                assert taken[0] is waiting[0]
                assert [one for one in taken if one in batch.calls] == batch.calls
                assert sum(one.rows for one in batch.calls) <= 10 or len(batch.calls) == 1
                assert all(one.deadline > now for one in batch.calls)
                assert {(one.uids, one.kind) for one in taken} == {(batch.uids, batch.kind)}
                waiting = [one for one in waiting if one not in taken]
        assert len(it) == len(waiting)


def test_calls_of_different_spans_are_never_joined_but_count_for_each_of_their_layers():
    whole = Call(
        uids=(A, B), kind="forward", caller=ALICE, rows=1, inputs=(), arrived=1, deadline=9
    )
    part = call(A, arrived=2)
    it = filled(whole, part)
    assert (it.queued(A), it.queued(B), len(it)) == (2, 1, 2)
    assert [it.next_batch(3.0).calls for _ in range(2)] == [[whole], [part]]
    assert (it.queued(A), it.queued(B), len(it)) == (0, 0, 0)


def test_a_span_is_refused_when_one_of_its_layers_has_no_room():
    it = filled(call(B), max_calls=1)
    it.check([A])
    with pytest.raises(OverloadedError, match=r"ffn\.1"):
        it.check([A, B])


def test_calls_of_different_forms_are_never_joined():
    short, long = call(arrived=0), call(arrived=1)
    short.form, long.form = ((3, 8),), ((4, 8),)
    it = filled(short, long)
    assert [it.next_batch(3.0).calls for _ in range(2)] == [[short], [long]]


def test_a_batch_is_bounded_by_all_positions_of_its_rows():
    calls = [call(rows=2) for _ in range(3)]
    for each in calls:
        each.positions = 3
    it = filled(*calls, max_rows=12)
    assert [it.next_batch(1.0).calls for _ in range(2)] == [calls[:2], calls[2:]]
