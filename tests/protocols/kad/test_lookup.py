import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.lookup import MAX_CANDIDATES, Lookup
from p2pnode.protocols.kad.messages import Contact
from p2pnode.protocols.kad.table import RoutingTable
from p2pnode.wire.peer_id import PeerId

TARGET = point(b"target")


def _by_distance(target, peers):
    return sorted(peers, key=lambda peer: point(peer) ^ target)


def _peer(number: int) -> PeerId:
    return PeerId(b"\x12\x20" + number.to_bytes(32, "big"))


PEERS = _by_distance(TARGET, map(_peer, range(60)))  # the closest first


def _named(peers, group=None):
    return [(Contact(peer), group) for peer in peers]


def _lookup(seeds, *, k=20, alpha=10, beta=3, patience=1.0, **more):
    return Lookup(TARGET, _named(seeds), k=k, alpha=alpha, beta=beta, patience=patience, **more)


def test_without_seeds_it_is_finished_at_once():
    lookup = _lookup([])
    assert lookup.is_finished(0.0)
    assert lookup.closest == []


def test_the_closest_are_asked_first_and_alpha_at_once():
    lookup = _lookup(PEERS, alpha=3)
    assert lookup.next_queries(0.0) == PEERS[:3]
    assert lookup.next_queries(0.0) == []
    lookup.receive_answer(PEERS[1], _named([]), 0.1)
    assert lookup.next_queries(0.1) == [PEERS[3]]


def test_no_more_are_asked_at_once_than_are_wanted():
    lookup = _lookup(PEERS, alpha=5)
    assert lookup.next_queries(0.0, 2) == PEERS[:2]
    assert lookup.next_queries(0.0, 2) == []
    assert lookup.next_queries(0.0, -1) == []
    assert lookup.next_queries(0.0) == PEERS[2:5]


def test_nobody_farther_than_the_k_closest_is_asked():
    lookup = _lookup(PEERS, k=4)
    assert lookup.next_queries(0.0) == PEERS[:4]
    for peer in PEERS[:4]:
        assert not lookup.is_finished(0.0)
        lookup.receive_answer(peer, _named([]), 0.0)
    assert lookup.is_finished(0.0)
    assert lookup.closest == PEERS[:4]


def test_a_failed_peer_makes_room_for_the_next_closest():
    lookup = _lookup(PEERS[:5], k=4)
    lookup.next_queries(0.0)
    lookup.receive_failure(PEERS[0])
    assert lookup.next_queries(0.0) == [PEERS[4]]
    for peer in PEERS[1:5]:
        lookup.receive_answer(peer, _named([PEERS[0]]), 0.0)
    assert lookup.next_queries(0.0) == []  # who failed is not asked again
    assert lookup.is_finished(0.0)
    assert lookup.closest == PEERS[1:5]
    assert lookup.asked == 5


def test_an_answer_after_the_failure_still_counts():
    lookup = _lookup(PEERS[:2])
    lookup.next_queries(0.0)
    lookup.receive_failure(PEERS[0])
    lookup.receive_answer(PEERS[0], _named([]), 9.0)
    lookup.receive_answer(PEERS[1], _named([]), 9.0)
    assert lookup.closest == PEERS[:2]


def test_slow_peers_free_their_slots():
    lookup = _lookup(PEERS, alpha=2)
    assert lookup.next_queries(0.0) == PEERS[:2]
    assert lookup.next_deadline(0.0) == 1.0
    assert lookup.next_queries(0.9) == []
    assert lookup.next_queries(1.0) == PEERS[2:4]


def test_slow_peers_are_left_out_once_beta_have_answered():
    lookup = _lookup(PEERS[:8], beta=3)
    lookup.next_queries(0.0)
    for peer in PEERS[4:7]:
        lookup.receive_answer(peer, _named([]), 0.1)
    assert not lookup.is_finished(0.9)
    assert lookup.is_finished(1.0)
    assert lookup.closest == PEERS[4:7]


def test_on_a_slow_link_everybody_is_waited_for():
    lookup = _lookup(PEERS[:8], beta=3)
    lookup.next_queries(0.0)
    for peer in PEERS[:3]:
        lookup.receive_answer(peer, [], 1.5)  # late, and so are the others likely to be
    assert not lookup.is_finished(5.9)
    assert lookup.is_finished(6.0)


def test_fewer_answers_than_beta_do_not_end_it_while_more_are_open():
    lookup = _lookup(PEERS[:8], beta=3)
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[0], _named([]), 0.1)
    assert not lookup.is_finished(100.0)


def test_of_two_peers_one_that_answers_is_enough():
    lookup = _lookup(PEERS[:2])
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[1], _named([]), 0.1)
    assert not lookup.is_finished(0.5)
    assert lookup.is_finished(1.0)


def test_liars_cannot_make_it_grow_without_bound():
    lookup = _lookup(PEERS[:1])
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[0], _named(map(_peer, range(100, 3000))), 0.0)
    everybody = _by_distance(TARGET, [PEERS[0], *map(_peer, range(100, 3000))])
    assert len(lookup._order) == MAX_CANDIDATES
    order = [each.contact.peer_id for _, each in lookup._order]
    assert order == everybody[:MAX_CANDIDATES]


@pytest.mark.parametrize("size", [2, 5, 30, 300])
def test_it_finds_the_true_closest_of_a_whole_network(size):
    rng = random.Random(size)
    peers = [_peer(number) for number in range(size)]
    tables = {}
    for peer in peers:
        tables[peer] = RoutingTable(peer, bucket_size=8, trust=60.0)
        for other in rng.sample(peers, size):
            tables[peer].receive_alive(other, 0.0)
    lookup = _lookup(tables[peers[0]].closest(TARGET, 8), k=8, alpha=3)
    rounds = 0
    while not lookup.is_finished(float(rounds) / 100):
        rounds += 1
        queries = lookup.next_queries(rounds / 100)
        rng.shuffle(queries)
        for peer in queries:
            answer = [each for each in tables[peer].closest(TARGET, 9) if each != peers[0]][:8]
            lookup.receive_answer(peer, _named(answer), rounds / 100)
    assert lookup.closest == _by_distance(TARGET, peers[1:])[:8]
    assert lookup.asked <= 40


@given(st.data())
def test_it_always_ends_and_finds_only_those_that_answered(data):
    k, alpha = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    lookup = _lookup(PEERS[:4], k=k, alpha=alpha)
    now, open_ones, answered = 0.0, [], set()
    for _ in range(500):
        if lookup.is_finished(now):
            break
        open_ones += lookup.next_queries(now)
        assert open_ones
        peer = open_ones.pop(data.draw(st.integers(0, len(open_ones) - 1)))
        now += data.draw(st.sampled_from([0.0, 0.1, 2.0]))
        if data.draw(st.booleans()):
            answered.add(peer)
            closer = data.draw(st.lists(st.sampled_from(PEERS), max_size=5))
            lookup.receive_answer(peer, _named(closer), now)
        else:
            lookup.receive_failure(peer)
    assert lookup.is_finished(now)
    assert lookup.closest == [peer for peer in PEERS if peer in answered][:k]


def test_each_path_asks_only_whom_it_heard_of_itself():
    lookup = _lookup(PEERS[40:43], alpha=3, paths=3)
    assert lookup.next_queries(0.0) == PEERS[40:43]
    lookup.receive_answer(PEERS[40], _named(PEERS[:6]), 0.1)  # names many, all the closest
    lookup.receive_answer(PEERS[41], _named([*PEERS[:6], PEERS[20]]), 0.1)
    lookup.receive_answer(PEERS[42], _named([*PEERS[:6], PEERS[21]]), 0.1)
    # One of each path, though the first path knows three that are closer.
    assert lookup.next_queries(0.1) == [PEERS[0], PEERS[20], PEERS[21]]


def test_a_path_without_anybody_to_ask_leaves_its_slots_to_the_others():
    lookup = _lookup(PEERS[40:42], alpha=4, paths=2)
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[40], _named(PEERS[:9]), 0.1)
    lookup.receive_answer(PEERS[41], [], 0.1)
    assert lookup.next_queries(0.1) == PEERS[:4]


def test_a_path_goes_on_though_others_know_k_that_are_closer():
    lookup = _lookup(PEERS[40:42], k=2, alpha=4, paths=2)
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[40], _named(PEERS[:2]), 0.1)
    lookup.receive_answer(PEERS[41], _named(PEERS[20:24]), 0.1)
    assert lookup.next_queries(0.1) == [*PEERS[:2], *PEERS[20:22]]
    for peer in PEERS[:2]:
        lookup.receive_answer(peer, [], 0.2)
    assert not lookup.is_finished(0.2)
    for peer in PEERS[20:22]:
        lookup.receive_answer(peer, [], 0.2)
    assert lookup.is_finished(0.2)
    assert lookup.closest == PEERS[:2]
    assert lookup.hops == 2


def test_who_names_the_dead_is_not_believed_any_longer():
    lookup = _lookup(PEERS[40:42], k=8, alpha=3)
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[40], _named(PEERS[:20]), 0.1)  # a liar
    lookup.receive_answer(PEERS[41], _named(PEERS[30:40]), 0.1)
    for peer in lookup.next_queries(0.1):
        lookup.receive_failure(peer)
    assert lookup.next_queries(0.2) == PEERS[30:33]
    asked = []
    for peer in PEERS[30:38]:
        asked += lookup.next_queries(0.2)
        lookup.receive_answer(peer, _named([PEERS[5]] if peer == PEERS[30] else []), 0.2)
    assert PEERS[5] in asked  # for that one an honest peer vouches
    assert not {*PEERS[3:5], *PEERS[6:20]} & set(asked)


def test_slow_answers_count_against_who_named_them_until_they_come():
    lookup = _lookup(PEERS[40:42], k=8, alpha=3, patience=1.0)
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[40], _named(PEERS[:20]), 0.1)
    lookup.receive_answer(PEERS[41], _named(PEERS[30:40]), 0.1)
    slow = lookup.next_queries(0.1)
    assert lookup.next_queries(1.2) == PEERS[30:33]
    for peer in slow:
        lookup.receive_answer(peer, [], 1.3)
    for peer in PEERS[30:33]:
        lookup.receive_answer(peer, [], 1.3)
    assert lookup.next_queries(1.3) == PEERS[3:6]


def test_one_network_gets_few_of_the_closest_places_while_there_are_others():
    lookup = _lookup([], k=6, max_per_group=2)
    seeds = [*_named(PEERS[:20], b"one"), *_named(PEERS[20:30])]
    lookup = Lookup(TARGET, seeds, k=6, alpha=9, beta=3, patience=1.0, paths=1, max_per_group=2)
    assert lookup.next_queries(0.0) == [*PEERS[:2], *PEERS[20:24]]
    for peer in (*PEERS[:2], *PEERS[20:24]):
        lookup.receive_answer(peer, [], 0.1)
    assert lookup.is_finished(0.1)
    assert lookup.closest == [*PEERS[:2], *PEERS[20:24]]
    alone = Lookup(TARGET, _named(PEERS[:9], b"one"), k=6, alpha=9, beta=3, patience=1.0)
    assert alone.next_queries(0.0) == PEERS[:6]


def test_the_closest_that_lacks_something_is_named():
    lookup = _lookup(PEERS[:8], k=4, alpha=4)
    for peer in lookup.next_queries(0.0):
        lookup.receive_answer(peer, [], 0.0)
    assert lookup.lacking(PEERS[:2]) == PEERS[2]
    assert lookup.lacking(PEERS[:4]) is None
    assert lookup.is_among_closest(PEERS[3])
    assert not lookup.is_among_closest(PEERS[4])


@pytest.mark.parametrize("paths", [1, 3])
@pytest.mark.parametrize("lie", ["the dead", "other liars"])
def test_with_a_fifth_of_liars_the_true_closest_are_found(paths, lie):
    rng = random.Random(9)
    peers = [_peer(number) for number in range(500)]
    liars = set(rng.sample(peers, 100))
    tables = {peer: RoutingTable(peer, bucket_size=20, trust=60.0) for peer in peers}
    for table in tables.values():
        for other in rng.sample(peers, 300):
            table.receive_alive(other, 0.0)
    dead = _by_distance(TARGET, (_peer(number) for number in range(10_000, 20_000)))[:200]
    colluding = _by_distance(TARGET, liars)[:20]
    asker = next(peer for peer in peers if peer not in liars)
    lookup = _lookup(tables[asker].closest(TARGET, 20), paths=paths, patience=1.5)
    now, waiting = 0.0, []
    while not lookup.is_finished(now) and now < 30.0:
        waiting += [(now + (0.05 if p in tables else 5.0), p) for p in lookup.next_queries(now)]
        waiting.sort()
        if waiting and waiting[0][0] <= lookup.next_deadline(now):
            now, peer = waiting.pop(0)
            if peer not in tables:
                lookup.receive_failure(peer)
            elif peer in liars:
                told = rng.sample(dead, 20) if lie == "the dead" else colluding
                lookup.receive_answer(peer, _named(told), now)
            else:
                found = [each for each in tables[peer].closest(TARGET, 21) if each != asker][:20]
                lookup.receive_answer(peer, _named(found), now)
        else:
            now = lookup.next_deadline(now)
    honest = [peer for peer in _by_distance(TARGET, set(peers) - {asker})[:20] if peer not in liars]
    assert len(set(honest) & set(lookup.closest)) >= len(honest) - 2
    assert now < 8.0


def _at(peer, *ports):
    return Contact(peer, tuple(Multiaddr(f"/ip4/10.0.0.1/tcp/{port}") for port in ports)), None


def test_addresses_that_several_tell_of_a_peer_add_up():
    lookup = _lookup(PEERS[10:13], k=4, alpha=2)
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[10], [_at(PEERS[0], 666)], 0.1)
    told = [_at(PEERS[0], 1)[0]]
    assert lookup.unknown(told) == told
    lookup.receive_answer(PEERS[11], [_at(PEERS[0], 1)], 0.1)
    assert lookup.contact_of(PEERS[0]) == _at(PEERS[0], 1, 666)[0]
    assert lookup.unknown(told) == []


def test_a_peer_of_which_a_liar_told_a_wrong_address_is_asked_at_the_right_one():
    lookup = _lookup(PEERS[10:12], k=4, alpha=2)
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[10], [_at(PEERS[0], 666)], 0.1)
    assert lookup.next_queries(0.1) == [PEERS[0]]
    lookup.receive_failure(PEERS[0])
    assert lookup.unknown([_at(PEERS[0], 666)[0]]) == []
    lookup.receive_answer(PEERS[11], [_at(PEERS[0], 1)], 0.2)
    assert lookup.next_queries(0.2) == [PEERS[0]]
    lookup.receive_answer(PEERS[0], [], 0.3)
    assert lookup.closest == [PEERS[0], PEERS[10], PEERS[11]]


def test_liars_cannot_have_a_peer_asked_again_and_again():
    lookup = _lookup(PEERS[10:30], k=20, alpha=20)
    asked = 0
    lookup.next_queries(0.0)
    for number in range(10, 30):
        lookup.receive_answer(PEERS[number], [_at(PEERS[0], number)], 0.1)
        if PEERS[0] in lookup.next_queries(0.1):
            asked += 1
            lookup.receive_failure(PEERS[0])
    assert asked == 3


def test_an_address_told_while_a_peer_is_asked_elsewhere_is_tried_when_that_fails():
    lookup = _lookup(PEERS[10:12], k=4, alpha=4)
    lookup.next_queries(0.0)
    lookup.receive_answer(PEERS[10], [_at(PEERS[0], 666)], 0.1)
    assert lookup.next_queries(0.1) == [PEERS[0]]
    lookup.receive_answer(PEERS[11], [_at(PEERS[0], 1)], 0.2)
    assert lookup.next_queries(0.2) == []
    lookup.receive_failure(PEERS[0])
    assert lookup.next_queries(0.3) == [PEERS[0]]
    lookup.receive_failure(PEERS[0])
    assert lookup.next_queries(0.4) == []
    assert lookup.is_finished(0.4)


def test_peers_count_for_the_network_where_they_are_reached_whatever_was_said_of_them():
    crowd, others = PEERS[:8], PEERS[10:14]
    lookup = _lookup(PEERS[20:21], k=4, max_per_group=1)
    lookup.next_queries(0.0)
    named = [(Contact(peer), b"said %d" % number) for number, peer in enumerate(crowd)]
    lookup.receive_answer(PEERS[20], [*named, *_named(others)], 0.0)
    while asked := lookup.next_queries(0.0):
        for peer in asked:
            lookup.receive_answer(peer, [], 0.0, b"true" if peer in crowd else None)
    assert lookup.closest == [crowd[0], *others[:3]]
