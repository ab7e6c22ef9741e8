import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import p2pnode.experts.pool
from p2pnode.config import HostingSettings
from p2pnode.errors import OverloadedError
from p2pnode.experts.pool import Batch, BatchPool, Call
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

PEERS = [PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in range(40)]
ALICE, BOB, CAROL = PEERS[:3]
A, B = Uid("open:r", "ffn.0"), Uid("open:r", "ffn.1")


def call(uid=A, kind="forward", rows=1, *, arrived=0.0, deadline=100.0, caller=ALICE):
    return Call(
        uids=(uid,),
        kind=kind,
        caller=caller,
        rows=rows,
        inputs=(),
        arrived=arrived,
        deadline=deadline,
    )


def pool(max_rows=10, max_calls=100, window=0.0, **more):
    return BatchPool(
        HostingSettings(
            max_batch_rows=max_rows, max_queued_calls=max_calls, batch_window=window, **more
        )
    )


def filled(*calls, **options):
    it = pool(**options)
    for each in calls:
        it.push(each)
    return it


@pytest.mark.parametrize("name", ["pool", "replay", "row_limits", "shares"])
def test_queues_have_no_clock_and_no_tensors(name):
    path = Path(p2pnode.experts.pool.__file__).with_name(f"{name}.py")
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    }
    assert not imported & {"torch", "trio", "time", "random", "socket", "threading"}


def test_steps_join_fewer_rows_than_other_batches_but_take_a_larger_call_whole():
    backward = [call(kind="backward", rows=rows, caller=PEERS[rows]) for rows in (3, 2, 9)]
    forward = [call(rows=rows, caller=PEERS[rows]) for rows in (3, 4)]
    it = filled(*backward, *forward, max_step_rows=5)
    sizes = []
    while (batch := it.next_batch(0.0)) is not None:
        sizes.append((batch.kind, [each.rows for each in batch.calls]))
        for each in batch.calls:
            it.discard(each)
    assert sorted(sizes) == [("backward", [3, 2]), ("backward", [9]), ("forward", [3, 4])]


def test_an_empty_pool_has_no_batch_and_is_never_ready():
    assert pool().next_batch(5.0) is None
    assert pool().next_time() == math.inf


def test_concurrent_calls_of_an_expert_are_one_batch_in_order_of_arrival():
    calls = [call(arrived=0.1 * number) for number in range(4)]
    it = filled(*calls)
    batch = it.next_batch(1.0)
    assert (batch.uids, batch.kind, batch.calls) == ((A,), "forward", calls)
    assert len(it) == 0


def test_forward_and_backward_calls_are_never_joined():
    it = filled(call(arrived=1), call(kind="backward", arrived=2), call(arrived=3))
    assert [it.next_batch(9.0).kind for _ in range(2)] == ["forward", "backward"]
    assert it.next_batch(9.0) is None


def test_the_queue_whose_oldest_call_is_oldest_goes_first():
    first, second, third = call(B, arrived=1), call(A, arrived=2), call(B, arrived=3)
    it = filled(first, second, third)
    assert it.next_batch(9.0).calls == [first, third]
    assert it.next_batch(9.0).calls == [second]


def test_a_batch_ends_before_it_has_too_many_rows():
    calls = [call(rows=rows) for rows in (4, 6, 1, 20, 1)]
    it = filled(*calls)
    batches = [it.next_batch(9.0).calls for _ in range(4)]
    assert batches == [calls[:2], calls[2:3], calls[3:4], calls[4:]]


def test_a_late_call_is_taken_out_without_being_computed():
    late, good, also_late = call(deadline=5), call(), call(deadline=4)
    it = filled(late, good, also_late)
    assert it.take_late(3.0) == []
    assert it.take_late(5.0) == [also_late, late]
    assert it.next_batch(5.0).calls == [good]


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
    it.check([A], ALICE, 0.0)
    with pytest.raises(OverloadedError, match=r"ffn\.1"):
        it.check([A, B], ALICE, 0.0)


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


# --- between callers ------------------------------------------------------------------------------


def numbered(number):
    return Uid("open:r", f"ffn.{number}")


def test_one_call_is_in_the_next_batch_whatever_the_number_of_anothers():
    it = filled(*(call() for _ in range(90)), max_rows=10, max_calls=999)
    mine = call(arrived=1.0, caller=BOB)
    it.push(mine)
    batch = it.next_batch(2.0)
    assert mine in batch.calls
    assert batch.amount == 10


def test_a_batch_is_shared_by_rows_and_not_by_calls():
    large = [call(rows=5, caller=BOB) for _ in range(20)]
    it = filled(*(call(rows=1) for _ in range(60)), *large, max_rows=40)
    batch = it.next_batch(1.0)
    rows = {peer: sum(c.rows for c in batch.calls if c.caller == peer) for peer in (ALICE, BOB)}
    assert rows == {ALICE: 20, BOB: 20}


def test_one_call_of_another_expert_waits_for_one_of_a_thousand_at_most():
    it = filled(
        *(call(numbered(number % 50), arrived=number / 1e3) for number in range(1000)),
        max_rows=1,
        max_queued_calls_per_peer=1000,
    )
    it.charge(it.next_batch(2.0), 1.0, 3.0)
    mine = call(numbered(99), arrived=3.0, caller=BOB)
    it.push(mine)
    it.charge(it.next_batch(3.0), 1.0, 4.0)  # both are level, and the other was here before
    assert it.next_batch(4.0).calls == [mine]


def test_a_call_that_would_be_late_goes_ahead_and_then_its_caller_has_had_its_turn():
    it = filled(call(numbered(0), caller=BOB), max_rows=1, urgent_lead=1.0)
    it.charge(it.next_batch(0.0), 5.0, 5.0)  # so long is a usual batch: a fifth of it for now
    early = call(numbered(1), arrived=5.0, deadline=100.0)
    urgent = [call(numbered(n), arrived=5.0 + n, deadline=9.0, caller=BOB) for n in (2, 3)]
    relaxed = call(numbered(4), arrived=5.1, deadline=50.0, caller=BOB)
    for each in (early, relaxed, *urgent):
        it.push(each)
    assert it.next_batch(7.5).calls == urgent[:1]
    it.charge(Batch(uids=(A,), kind="forward", calls=urgent[:1]), 1.5, 8.0)
    assert it.next_batch(8.0).calls == [early]  # Bob is further ahead than urgency is worth
    assert it.next_batch(8.0).calls == urgent[1:]
    assert it.next_batch(8.0).calls == [relaxed]


def test_more_time_for_a_call_makes_it_less_urgent():
    it = filled(call(numbered(0)), max_rows=1)
    it.charge(it.next_batch(0.0), 50.0, 0.0)
    one, two = (call(numbered(n), deadline=12.0 + n) for n in (1, 2))
    it.push(call(numbered(3), deadline=99.0))
    it.push(one)
    it.push(two)
    one.deadline = 99.0
    assert it.next_batch(0.0).calls == [two]


def test_a_peer_has_its_share_of_the_queues_only_once_others_have_waited():
    it = filled(
        *(call(numbered(n), deadline=999.0) for n in range(5)),
        max_queued_calls_per_peer=5,
        tolerated_wait=1.0,
    )
    it.check([B], ALICE, 50.0)  # alone, it may fill the queues
    it.push(call(B, arrived=50.0, caller=BOB))
    it.check([B], ALICE, 50.9)
    with pytest.raises(OverloadedError, match="5 calls of yours"):
        it.check([B], ALICE, 51.0)
    it.check([B], BOB, 51.0)


def test_whoever_fills_a_queue_leaves_the_last_places_to_others():
    it = filled(*(call() for _ in range(14)), max_calls=16, max_queued_calls_per_peer=100)
    with pytest.raises(OverloadedError, match="most of them yours"):
        it.check([B, A], ALICE, 0.0)
    with pytest.raises(OverloadedError, match="most of them yours"):
        it.push(call())
    it.check([B], ALICE, 0.0)
    for _ in range(2):
        it.push(call(caller=BOB))
    with pytest.raises(OverloadedError, match=r"16 calls of ffn\.0"):
        it.push(call(caller=BOB))
    while it.take_late(1e9):
        pass
    it.check([A], ALICE, 0.0)


def test_a_peer_has_its_share_of_the_device_only_once_others_have_waited():
    it = filled(call(), device_seconds_per_peer=10.0, device_window=100.0, tolerated_wait=1.0)
    it.charge(it.next_batch(0.0), 12.0, 12.0)
    it.check([B], ALICE, 12.0)
    it.push(call(B, arrived=12.0, caller=BOB))
    it.check([B], ALICE, 12.9)
    with pytest.raises(OverloadedError, match="your share of this device"):
        it.check([B], ALICE, 13.0)
    it.push(call(B, arrived=13.0))  # its tensors are here already
    it.check([B], BOB, 13.0)
    it.check([B], ALICE, 33.0)  # it has come back


def test_what_a_heap_keeps_of_calls_that_are_gone_is_bounded():
    it = pool(max_calls=10_000)
    staying = call(deadline=1e9)
    it.push(staying)
    for number in range(2000):
        each = call(arrived=number, deadline=1e6 + number)
        it.push(each)
        it.discard(each)
        assert len(it._callers[ALICE].deadlines) <= 70
    assert it.take_late(1e6) == []
    assert it.take_late(1e9) == [staying]


# --- for any calls --------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "take", "discard"]),
        st.integers(0, 3),  # expert
        st.integers(0, 2),  # caller
        st.integers(1, 12),  # rows
        st.integers(1, 9),  # patience
    ),
    max_size=60,
)


def check_batch(batch, waiting, *, in_order):
    taken = [one for one in waiting if one in batch.calls]
    assert len(taken) == len(batch.calls)
    assert batch.amount <= 10 or len(batch.calls) == 1
    assert {(one.uids, one.kind) for one in taken} == {(batch.uids, batch.kind)}
    for peer in PEERS[:3]:
        of_peer = [one for one in batch.calls if one.caller == peer]
        rest = of_peer if in_order else of_peer[1:]  # the first may have been urgent
        assert rest == [one for one in taken if one in rest]


@given(steps, st.sampled_from([0.0, 1.5]), st.booleans())
def test_every_call_comes_out_once_and_each_callers_in_order(steps, window, charged):
    it = pool(max_calls=8, window=window, urgent_lead=2.0)
    waiting, now = [], 0.0
    for action, expert, caller, rows, patience in steps:
        now += 1
        if action == "push":
            each = call(
                numbered(expert),
                "backward" if rows % 2 else "forward",
                rows,
                arrived=now,
                deadline=now + patience,
                caller=PEERS[caller],
            )
            try:
                it.push(each)
            except OverloadedError:
                assert sum(one.uids == each.uids for one in waiting) == 8
            else:
                waiting.append(each)
        elif action == "discard" and waiting:
            assert it.discard(waiting.pop(rows % len(waiting)))
        elif action == "take":
            late = it.take_late(now)
            assert sorted(map(id, late)) == sorted(id(o) for o in waiting if o.deadline <= now)
            waiting = [one for one in waiting if one.deadline > now]
            ready_at = it.next_time()
            batch = it.next_batch(now)
            assert (batch is not None) == (ready_at <= now)
            assert window or (batch is not None) == bool(waiting)
            if batch is not None:
                check_batch(batch, waiting, in_order=not charged)
                waiting = [one for one in waiting if one not in batch.calls]
                if charged:
                    it.charge(batch, rows / 4, now)
        assert len(it) == len(waiting)
        assert {uid: it.queued(uid) for uid in map(numbered, range(4))} == {
            uid: sum(uid in one.uids for one in waiting) for uid in map(numbered, range(4))
        }


@given(st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(0, 39))), max_size=40))
def test_no_call_starves_whatever_others_send_later(arrivals):
    """Those who wait already may have the turns they lack; those who come later none at all."""
    it = pool(max_rows=1, max_calls=10_000, max_queued_calls_per_peer=10_000, urgent_lead=0.0)
    expert, now, batches, bound, mine = 0, 0.0, 0, math.inf, None
    for seconds, callers in arrivals:
        for caller in callers:
            if caller:  # the first is the one who must not starve
                it.push(call(numbered(expert), arrived=now, deadline=1e9, caller=PEERS[caller]))
                expert += 1
        if mine is None and now >= 5:
            mine = call(numbered(expert), arrived=now, deadline=1e9)
            expert += 1
            it.push(mine)
            times = {peer: it._shares.time_of(peer) for peer in it._callers}
            bound = sum(max(0.0, times[ALICE] - time) + 1 for time in times.values())
        batch = it.next_batch(now)
        now += seconds
        if batch is None:
            continue
        it.charge(batch, seconds, now)
        if mine in batch.calls:
            return
        batches += mine is not None
        assert batches <= bound


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0.1, 3.0)), min_size=5, max_size=120),
    st.booleans(),
)
def test_two_callers_who_always_want_more_get_equal_times(steps, urgent):
    """Also where one has a hundred times as many calls, and says that all of them are urgent."""
    it = pool(max_rows=4, max_calls=10_000, max_queued_calls_per_peer=10_000, urgent_lead=2.0)
    used, now = dict.fromkeys((ALICE, BOB), 0.0), 0.0
    for expert, seconds in steps:
        for number in range(20 if now else 200):
            deadline = now + 0.1 if urgent and number % 2 else now + 1e6
            uid = numbered(number % 7)
            it.push(call(uid, arrived=now, deadline=deadline, caller=ALICE))
        for number in range(4):
            it.push(call(numbered(7 + expert + number), arrived=now, deadline=1e6, caller=BOB))
        it.take_late(now)
        batch = it.next_batch(now)
        now += seconds
        it.charge(batch, seconds, now)
        for each in batch.calls:
            used[each.caller] += seconds / len(batch.calls)
        assert abs(used[ALICE] - used[BOB]) <= 2.0 + 3.0
