"""Views, driven through every order of losses and messages."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from p2pnode.swarm.averaging.core import Verdict, View

GROUP = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 0.0}


def view(own="a", quorum=2, members=None):
    return View(members or GROUP, own, quorum)


def without(*lost):
    return {each: bandwidth for each, bandwidth in GROUP.items() if each not in lost}


def test_the_contribution_for_the_same_view_counts():
    it = view()
    assert it.receive_join("b", GROUP) is Verdict.COUNTS
    assert it.attempt == 0


def test_a_smaller_view_is_taken_over():
    it = view()
    assert it.receive_join("b", without("c")) is Verdict.ANEW
    assert it.members == without("c")
    assert it.attempt == 1


def test_whoever_has_a_larger_view_has_to_come_again():
    it = view()
    it.receive_lost("c")
    assert it.receive_join("b", GROUP) is Verdict.MOVED
    assert it.attempt == 1


def test_of_two_views_what_they_have_in_common_goes_on():
    it = view()
    it.receive_lost("c")
    assert it.receive_join("b", without("d")) is Verdict.MOVED
    assert it.members == without("c", "d")


def test_members_that_are_not_known_here_are_not_taken_over():
    it = view()
    assert it.receive_join("b", GROUP | {"e": 9.0}) is Verdict.MOVED
    assert it.members == GROUP
    assert it.attempt == 0


def test_of_two_bandwidths_the_smaller_one_counts():
    it = view()
    assert it.receive_join("b", GROUP | {"c": 2.5}) is Verdict.ANEW
    assert it.receive_join("b", GROUP | {"c": 9.0}) is Verdict.MOVED
    assert it.members == GROUP | {"c": 2.5}


def test_who_was_lost_and_who_has_lost_us_hear_so_and_change_nothing():
    it = view()
    it.receive_lost("b")
    assert it.receive_join("b", GROUP) is Verdict.LOST
    assert it.receive_join("c", without("a")) is Verdict.LOST
    assert it.receive_join("c", without("c")) is Verdict.LOST
    assert it.members == without("b")


def test_who_is_not_known_here_hears_who_is():
    it = view()
    assert it.receive_join("e", GROUP | {"e": 1.0}) is Verdict.MOVED
    it.receive_result()
    assert it.receive_join("e", GROUP | {"e": 1.0}) is Verdict.MOVED


def test_who_is_left_out_fails_and_so_does_who_is_left_with_too_few():
    it = view()
    it.receive_moved(without("a"))
    assert it.is_excluded
    assert it.is_failed
    it = view(quorum=3)
    it.receive_lost("b")
    assert not it.is_failed
    it.receive_lost("c")
    assert it.is_failed
    assert not it.is_excluded


def test_a_result_is_final_and_is_for_all():
    it = view()
    it.receive_result()
    it.receive_lost("b")
    it.receive_moved(without("c"))
    assert it.members == GROUP
    assert not it.is_failed
    assert it.receive_join("b", without("c", "d")) is Verdict.WHOLE


def test_a_result_from_another_member_may_be_of_lost_ones_but_not_of_strangers_or_too_few():
    it = view()
    it.receive_lost("b")
    assert not it.receive_whole(GROUP | {"e": 1.0})
    assert not it.receive_whole({"b": 2.0})
    assert not it.is_complete
    assert it.receive_whole(without("d"))
    assert it.is_complete
    assert it.members == without("d")


names = st.sampled_from("abcdef")


def speak(views, one, other):
    """Let one member ask another, as a stream does."""
    before = dict(views[other].members)
    verdict = views[other].receive_join(one, views[one].members)
    if verdict is Verdict.MOVED:
        views[one].receive_moved(views[other].members)
    elif verdict is Verdict.LOST:
        views[one].receive_lost(other)
    after = views[other].members
    assert after.keys() <= before.keys()
    assert all(after[each] <= before[each] for each in after)
    if verdict in {Verdict.COUNTS, Verdict.ANEW}:
        assert views[one].members == after


def speak_all(views):
    for one, other in itertools.permutations(views, 2):
        if other in views[one].members:
            speak(views, one, other)


@given(
    groups=st.fixed_dictionaries(
        {own: st.dictionaries(names, st.sampled_from([0.0, 1.0, 2.0])) for own in "abcdef"}
    ),
    events=st.lists(st.tuples(names, names, st.booleans()), max_size=40),
)
def test_views_only_shrink_and_become_one_as_soon_as_all_have_spoken(groups, events):
    views = {own: View(group | {own: 1.0}, own, 1) for own, group in groups.items()}
    for one, other, is_lost in events:
        if is_lost:
            views[one].receive_lost(other)
        else:
            speak(views, one, other)
    for _ in range(40):  # each change takes out a member or lowers a bandwidth
        speak_all(views)
    live = {own: it for own, it in views.items() if not it.is_excluded}
    for own, it in live.items():
        for other in it.members:
            if other in live and own in live[other].members:
                assert live[other].members == it.members
