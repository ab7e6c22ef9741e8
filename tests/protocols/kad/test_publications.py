import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ResourceLimitError
from p2pnode.protocols.kad.publications import Publication, Publications


def _publications(limit=99):
    return Publications(100.0, limit, random.Random(1))


def test_each_is_due_again_within_the_interval_and_not_all_at_once():
    kept = _publications()
    for number in range(50):
        kept.add(b"%d" % number, b"v", 0.0)
    assert 80.0 <= kept.next_due() <= 100.0
    first = kept.take_due(90.0)
    assert 10 < len(first) < 40
    rest = kept.take_due(100.0)
    assert sorted(each.key for each in (*first, *rest)) == sorted(b"%d" % n for n in range(50))
    assert kept.next_due() > 160.0


def test_a_value_that_is_published_anew_replaces_the_old_one():
    kept = _publications()
    kept.add(b"k", b"old", 0.0)
    kept.add(b"k", b"new", 50.0)
    assert kept.take_due(120.0) == []
    assert kept.take_due(150.0) == [Publication(b"k", b"new")]
    assert len(kept) == 1


def test_what_was_removed_is_never_due():
    kept = _publications()
    kept.add(b"k", None, 0.0)
    assert kept.remove(b"k")
    assert not kept.remove(b"k")
    assert kept.take_due(1e9) == []
    assert kept.next_due() == float("inf")


def test_the_number_is_bounded_but_renewing_is_always_possible():
    kept = _publications(limit=2)
    kept.add(b"a", b"v", 0.0)
    kept.add(b"b", b"v", 0.0)
    with pytest.raises(ResourceLimitError):
        kept.add(b"c", b"v", 0.0)
    kept.add(b"a", b"w", 0.0)
    assert len(kept) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 60)), max_size=300))
def test_nothing_waits_longer_than_the_interval(steps):
    kept, now, last = _publications(), 0.0, {}
    for number, add, passed in steps:
        key = b"%d" % number
        now += passed
        for each in kept.take_due(now):
            last[each.key] = now
        if add:
            kept.add(key, b"v", now)
            last[key] = now
        else:
            kept.remove(key)
            last.pop(key, None)
        assert len(kept) == len(last)
        assert all(now - since <= 100.0 for since in last.values())
        assert len(kept._due) <= 2 * len(kept) + 65


def test_what_could_not_be_published_is_due_again_when_it_is_said():
    kept = _publications()
    kept.add(b"k", b"v", 0.0)
    kept.retry(b"k", 10.0)
    kept.retry(b"k", 60.0)
    kept.retry(b"unknown", 5.0)
    assert kept.next_due() == 10.0
    assert kept.take_due(10.0) == [Publication(b"k", b"v")]
    assert kept.next_due() >= 90.0
