import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.swarm.weights.core import LATE, Download


def chunks(count):
    return [bytes([each]) * 32 for each in range(count)]


def everything(count):
    return (1 << count) - 1


VERBS = ("have", "ask", "send", "lose")


def start(count, *, have=0, seed=0, hashes=None):
    return Download(hashes or chunks(count), have, random.Random(seed).random)


def test_each_chunk_is_asked_of_one_holder_only():
    download = start(10)
    for holder in ("a", "b"):
        download.receive_have(holder, everything(10))
    asked = [download.next_chunk(holder, 0.0) for holder in "ababababab"]
    assert sorted(asked) == list(range(10))
    assert download.next_chunk("a", 0.0) is None


def test_the_rarest_chunks_are_asked_for_first():
    download = start(6)
    download.receive_have("all", everything(6))
    download.receive_have("some", 0b001111)
    download.receive_have("few", 0b000011)
    order = [download.next_chunk("all", 0.0) for _ in range(6)]
    assert [set(order[:2]), set(order[2:4]), set(order[4:])] == [{4, 5}, {2, 3}, {0, 1}]


def test_downloads_of_one_state_differ_in_their_order():
    orders = set()
    for seed in range(5):
        download = start(20, seed=seed)
        download.receive_have("a", everything(20))
        orders.add(tuple(download.next_chunk("a", 0.0) for _ in range(20)))
    assert len(orders) == 5


def test_what_is_there_is_not_asked_for():
    download = start(4, have=0b0101)
    download.receive_have("a", everything(4))
    assert {download.next_chunk("a", 0.0), download.next_chunk("a", 0.0)} == {1, 3}
    assert not download.is_complete
    for index in (1, 3):
        download.receive_chunk("a", index, 1.0)
    assert download.is_complete
    assert download.have == 0b1111


def test_equal_chunks_come_once_and_go_to_all_their_places():
    download = start(0, hashes=[b"x", b"y", b"x", b"x"], have=0b1000)
    download.receive_have("a", everything(4))
    asked = {download.next_chunk("a", 0.0), download.next_chunk("a", 0.0)}
    assert asked == {0, 1}
    assert download.next_chunk("a", 0.0) is None
    assert download.places(0) == [0, 2]
    download.receive_chunk("a", 0, 0.0)
    assert download.have == 0b1101


def test_what_a_lost_holder_did_not_send_is_asked_of_the_others():
    download = start(3)
    for holder in ("a", "b"):
        download.receive_have(holder, everything(3))
    asked = {download.next_chunk("a", 0.0) for _ in range(3)}
    assert asked == {0, 1, 2}
    assert download.next_chunk("b", 0.0) is None
    download.receive_loss("a")
    assert {download.next_chunk("b", 0.0) for _ in range(3)} == asked


def test_a_holder_is_asked_only_for_what_it_has_as_far_as_it_has_said():
    download = start(3)
    download.receive_have("a", 0b010)
    assert download.next_chunk("a", 0.0) == 1
    assert download.next_chunk("a", 0.0) is None
    download.receive_have("a", 0b011)
    assert download.next_chunk("a", 0.0) == 0


def test_in_the_end_an_overdue_chunk_is_asked_of_an_idle_holder_too_once():
    download = start(2)
    for holder in ("slow", "fast", "other"):
        download.receive_have(holder, everything(2))
    late = download.next_chunk("slow", 0.0)
    index = download.next_chunk("fast", 0.0)
    download.receive_chunk("fast", index, 1.0)
    assert download.next_chunk("fast", 1.0) is None
    assert download.next_chunk("fast", LATE) is None
    assert download.next_chunk("fast", LATE + 0.1) == late
    assert download.next_chunk("other", 100.0) is None  # it has not shown what it takes
    download.receive_chunk("fast", late, 4.0)
    assert download.is_complete
    assert download.places(late) == []
    download.receive_chunk("slow", late, 5.0)
    assert download.duplicates == 1


@pytest.mark.parametrize(("count", "twice"), [(40, 4), (320, 10)])
def test_little_is_asked_for_twice_even_where_many_are_late(count, twice):
    download = start(count, hashes=[number.to_bytes(32, "big") for number in range(count)])
    for holder in ("quick", "slow"):
        download.receive_have(holder, everything(count))
    half = [download.next_chunk("slow", 0.0) for _ in range(count // 2)]  # never come
    for _ in range(count - count // 2):
        download.receive_chunk("quick", download.next_chunk("quick", 1.0), 2.0)
    again = []
    while (index := download.next_chunk("quick", 100.0)) is not None:
        again.append(index)
        download.receive_chunk("quick", index, 101.0)
    assert len(again) == len(set(again) & set(half)) == twice
    download.receive_loss("slow")
    rest = [download.next_chunk("quick", 200.0) for _ in range(len(half) - twice)]
    assert sorted(again + rest) == sorted(half)


def test_a_chunk_of_a_holder_that_was_lost_right_behind_it_is_not_asked_for_again():
    download = start(3)
    download.receive_have("a", 0b100)
    index = download.next_chunk("a", 0.0)
    for holder, chunks in (("b", everything(3)), ("c", 0b100)):  # so it comes last
        download.receive_have(holder, chunks)
    download.receive_loss("a")
    asked = {download.next_chunk("b", 1.0)}
    download.receive_chunk("a", index, 1.0)
    asked.add(download.next_chunk("b", 1.0))
    assert asked == {0, 1}
    assert download.next_chunk("c", 1.0) is None


def test_what_others_have_come_to_have_counts_for_what_is_rare():
    download = start(4)
    download.receive_have("all", everything(4))
    download.receive_have("other", 0)
    download.next_chunk("all", 0.0)
    download.receive_have("other", 0b0111)
    assert download.has_all("all")
    assert not download.has_all("other")
    assert download.chunks_of("other") == 0b0111
    left = [download.next_chunk("all", 0.0) for _ in range(3)]
    assert 3 not in left[1:]


@given(
    count=st.integers(1, 40),
    have=st.integers(0, 2**40),
    seed=st.integers(0, 9),
    script=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(VERBS),
                              st.integers(0, 2**40))),
)  # fmt: skip
def test_whatever_holders_do_nothing_is_lost_and_a_good_one_ends_it(count, have, seed, script):
    have &= everything(count)
    download = start(count, have=have, seed=seed)
    asked = {}
    now = 0.0
    for holder, what, chunk_set in script:
        now += 1.0
        if what == "have":
            asked.setdefault(holder, [])
            download.receive_have(holder, chunk_set & everything(count))
        elif holder not in asked:
            continue
        elif what == "ask":
            index = download.next_chunk(holder, now)
            if index is not None:
                assert not download.have >> index & 1
                asked[holder].append(index)
        elif what == "send" and asked[holder]:
            download.receive_chunk(holder, asked[holder].pop(0), now)
        elif what == "lose":
            download.receive_loss(holder)
            del asked[holder]
    assert download.have & have == have
    for holder in asked:
        download.receive_loss(holder)
    download.receive_have("good", everything(count))
    while (index := download.next_chunk("good", now)) is not None:
        download.receive_chunk("good", index, now)
    assert download.is_complete
    assert download.have == everything(count)


@pytest.mark.parametrize("count", [16_384])
def test_choosing_stays_cheap_for_large_states(count):
    hashes = [each.to_bytes(32, "big") for each in range(count)]
    download = start(count, hashes=hashes)
    download.receive_have("a", everything(count))
    for _ in range(count):
        download.receive_chunk("a", download.next_chunk("a", 0.0), 0.0)
    assert download.is_complete
