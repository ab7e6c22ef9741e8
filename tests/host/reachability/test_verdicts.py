import ipaddress
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.config import ReachabilitySettings
from p2pnode.host import Reachability
from p2pnode.host.reachability.verdicts import ReachabilityTracker, Result, is_probeable
from p2pnode.host.reachability.votes import network_of
from p2pnode.wire.addresses import parse_address
from p2pnode.wire.keys import PrivateKey

SETTINGS = ReachabilitySettings()
HOME = parse_address("/ip4/192.168.1.2/tcp/4001")
OURS = parse_address("/ip4/8.8.8.8/tcp/4001")
OURS_WS = parse_address("/ip4/8.8.8.8/tcp/4002/ws")
OURS_6 = parse_address("/ip6/2606:4700::1/tcp/4001")
MOVED = parse_address("/ip4/9.9.9.9/tcp/4001")
PEERS = [PrivateKey.from_seed(bytes([number]) * 32).peer_id for number in range(40)]
NUMBERS = range(len(PEERS))
UNKNOWN, PUBLIC, PRIVATE = Reachability.UNKNOWN, Reachability.PUBLIC, Reachability.PRIVATE


class Story:
    """A tracker, servers numbered from 0, and what each of them says."""

    def __init__(self, settings=SETTINGS, seed=1):
        self.now = 1000.0
        self.tracker = ReachabilityTracker(settings, random.Random(seed))
        self.settings = settings
        self.says = {}  # by server; REACHED by default
        self.tries = lambda probe: probe.addresses[:1]
        self.asked = []

    def listen(self, *addresses):
        self.tracker.receive_addresses(addresses, self.now)

    def meet(self, *numbers, network=None, version=4, guesses=(), **abilities):
        for number in numbers:
            ip = f"50.{number if network is None else network}.0.{number + 1}"
            if version == 6:
                ip = f"2606:{number + 0x100:x}::1"
            self.tracker.receive_server(
                PEERS[number],
                ipaddress.ip_address(ip),
                guesses=guesses,
                now=self.now,
                **({"takes_others": True, "takes_none": True} | abilities),
            )

    def answer(self, probe):
        number = PEERS.index(probe.peer_id)
        self.asked.append(number)
        result = self.says.get(number, Result.REACHED)
        if callable(result):
            result = result(probe)
        about = self.tries(probe)
        self.tracker.receive_result(probe, result, "", self.now, about=about)

    def run(self, seconds):
        """Let time pass, and every probe be answered at once."""
        end = self.now + seconds
        while (due := self.tracker.next_probe_at(self.now)) <= end:
            self.now = due
            probes = self.tracker.next_probes(self.now)
            assert probes, "it was told to ask, and has nobody to ask"
            for probe in probes:
                self.answer(probe)
        self.now = end

    @property
    def state(self):
        return self.tracker.state

    def all_say(self, result, numbers=NUMBERS):
        self.says |= dict.fromkeys(numbers, result)


@pytest.fixture
def story():
    return Story()


def test_nothing_is_asked_before_there_is_somebody_to_ask(story):
    story.listen(OURS)
    assert story.tracker.next_probe_at(story.now) == math.inf
    assert (story.state, story.tracker.next_probes(story.now)) == (UNKNOWN, [])


def test_a_node_that_does_not_listen_asks_nobody(story):
    story.meet(0, 1, 2, guesses=[OURS])
    assert story.tracker.next_probe_at(story.now) == math.inf


def test_three_networks_that_reach_us_make_us_public(story):
    story.listen(HOME, OURS)
    story.meet(0, 1, 2, 3)
    story.run(5)
    assert (story.state, story.tracker.state_of(4)) == (PUBLIC, PUBLIC)
    assert story.tracker.state_of(6) is UNKNOWN
    assert story.tracker.addresses_that_are(PUBLIC) == [OURS]
    assert len(set(story.asked)) == 3


def test_three_networks_that_do_not_make_us_private(story):
    story.all_say(Result.FAILED)
    story.listen(OURS)
    story.meet(0, 1, 2, 3)
    story.run(5)
    assert story.state is PRIVATE
    assert story.tracker.addresses_that_are(PRIVATE) == [OURS]


def test_two_against_one_is_no_verdict(story):
    story.says[0] = Result.FAILED
    story.listen(OURS)
    story.meet(0, 1, 2)
    story.run(5)
    assert story.state is UNKNOWN
    story.meet(3, 4)
    story.run(60)
    assert story.state is PUBLIC


def test_even_a_bare_majority_cannot_turn_a_verdict_around(story):
    story.listen(OURS)
    story.meet(*range(9))
    story.run(3600)
    story.all_say(Result.FAILED, range(5))
    story.run(6 * 3600)
    assert (story.state, story.tracker.finding_of(4).failed) == (PUBLIC, 5)
    story.all_say(Result.FAILED, range(6))
    story.run(6 * 3600)
    assert story.state is PRIVATE


def test_a_single_server_is_believed_while_there_is_no_other(story):
    story.listen(OURS)
    story.meet(0)
    story.run(5)
    assert story.state is PUBLIC


def test_many_peers_in_one_network_are_one_voice(story):
    story.listen(OURS)
    story.meet(0, 1, 2)
    story.run(5)
    story.all_say(Result.FAILED, range(3, 30))
    story.meet(*range(3, 30), network=99)
    story.run(24 * 3600)
    assert story.state is PUBLIC
    assert story.tracker.finding_of(4).failed == 1


def test_a_crowd_from_one_network_drives_no_other_server_out():
    story = Story(ReachabilitySettings(max_servers=5))
    story.meet(0, 1, 2)
    story.meet(*range(3, 30), network=99)
    story.listen(OURS)
    story.all_say(Result.USELESS)
    story.run(5)
    assert story.tracker.servers == 5
    assert {0, 1, 2} <= set(story.asked)


def test_what_is_known_of_a_server_is_no_news(story):
    server = {"takes_others": True, "takes_none": True, "guesses": [OURS], "now": story.now}
    ip = ipaddress.ip_address("50.0.0.1")
    assert story.tracker.receive_server(PEERS[0], ip, **server)
    assert not story.tracker.receive_server(PEERS[0], ip, **server)
    assert story.tracker.receive_server(PEERS[0], ip, **(server | {"guesses": [MOVED]}))


def test_a_server_that_does_not_help_says_nothing_and_is_left_alone_ever_longer(story):
    story.all_say(Result.USELESS)
    story.listen(OURS)
    story.meet(0)
    story.run(SETTINGS.max_shun_time)
    assert story.state is UNKNOWN
    times = [each.at for each in story.tracker.evidence]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses == [SETTINGS.shun_time * 2**number for number in range(len(pauses))]
    assert len(pauses) >= 3


def test_the_addresses_of_the_home_network_are_not_asked_about(story):
    story.listen(HOME)
    story.meet(0, 1, 2, takes_none=False)
    assert story.tracker.next_probe_at(story.now) == math.inf
    story.meet(0, 1, 2)
    assert story.tracker.next_probe_at(story.now) < math.inf
    assert {each.addresses for each in story.tracker.next_probes(story.now + 5)} == {()}


def test_servers_try_where_they_see_us_when_we_know_no_address(story):
    story.listen(HOME)
    seen = [parse_address(f"/ip4/8.8.8.8/tcp/{port}") for port in (1001, 1002, 1003)]
    for number, address in enumerate(seen):
        story.meet(number, guesses=[address], takes_none=False)
    story.all_say(Result.FAILED)
    story.run(5)
    assert story.state is PRIVATE
    assert {each.addresses for each in story.tracker.evidence} == {(each,) for each in seen}


def test_an_address_that_servers_guessed_is_kept_when_it_leads_here(story):
    story.listen(HOME)
    story.meet(0, 1, 2, 3, guesses=[OURS])
    story.run(60)
    assert story.tracker.addresses_that_are(PUBLIC) == [OURS]
    story.all_say(Result.FAILED)
    story.run(7200)
    assert (story.state, story.tracker.findings()) == (PRIVATE, {})


def test_an_address_at_a_place_where_we_are_not_is_not_taken_from_a_server(story):
    story.listen(HOME)
    story.meet(0, guesses=[OURS])
    (probe,) = story.tracker.next_probes(story.now + 5)
    story.tracker.receive_result(probe, Result.REACHED, "", story.now, about=[MOVED])
    assert MOVED not in story.tracker.findings()


def test_each_address_has_its_own_verdict(story):
    story.all_say(lambda probe: Result.FAILED if probe.addresses[0] == OURS_WS else Result.REACHED)
    story.listen(OURS, OURS_WS)
    story.meet(*range(6))
    story.run(60)
    assert story.tracker.addresses_that_are(PUBLIC) == [OURS]
    assert story.tracker.addresses_that_are(PRIVATE) == [OURS_WS]
    assert story.state is PUBLIC


def test_an_address_that_no_server_can_dial_is_asked_about_ever_more_seldom(story):
    quic = parse_address("/ip4/8.8.8.8/udp/4001/quic-v1")
    story.tries = lambda probe: [each for each in probe.addresses if each != quic][:1]
    story.listen(quic, OURS)
    story.meet(*range(4))
    story.run(60)
    assert story.tracker.addresses_that_are(PUBLIC) == [OURS]
    story.run(3600)
    del story.asked[:]
    story.run(6 * SETTINGS.refresh_interval)
    assert len(story.asked) <= 6 * (4 + 1)  # the pause has grown to the refresh interval


def test_families_are_judged_apart(story):
    story.all_say(Result.FAILED, range(3))
    story.listen(OURS, OURS_6)
    story.meet(0, 1, 2)
    story.meet(3, 4, 5, version=6)
    story.run(5)
    assert (story.tracker.state_of(4), story.tracker.state_of(6)) == (PRIVATE, PUBLIC)
    assert story.state is PUBLIC


def test_servers_of_another_family_are_asked_if_they_dial_others_and_there_are_no_better(story):
    story.listen(OURS_6)
    story.meet(0, 1, 2, takes_others=False)
    assert story.tracker.next_probe_at(story.now) == math.inf
    story.meet(0, 1, 2)
    story.run(5)
    assert story.tracker.state_of(6) is PUBLIC


def test_what_is_settled_is_probed_by_one_server_at_a_time_and_seldom(story):
    story.listen(OURS)
    story.meet(*range(8))
    story.run(60)
    del story.asked[:]
    story.run(4 * SETTINGS.refresh_interval)
    assert len(story.asked) == 4


def test_one_word_against_the_verdict_has_others_asked_at_once(story):
    story.listen(OURS)
    story.meet(*range(8))
    story.run(60)
    del story.asked[:]
    story.all_say(Result.FAILED)
    story.run(SETTINGS.refresh_interval + 300)
    assert story.state is PRIVATE
    at = [each.at for each in story.tracker.evidence if each.result is Result.FAILED]
    assert at[1] == at[0]


def test_it_recovers_as_fast_as_it_fell(story):
    story.listen(OURS)
    story.meet(*range(8))
    story.run(60)
    for result, state in ((Result.FAILED, PRIVATE), (Result.REACHED, PUBLIC)):
        story.all_say(result)
        story.run(SETTINGS.refresh_interval + 300)
        assert story.state is state


def test_moving_to_another_address_makes_everything_unknown_until_it_is_asked_anew(story):
    story.listen(OURS)
    story.meet(*range(4))
    story.run(60)
    story.listen(MOVED)
    assert story.state is UNKNOWN
    assert story.tracker.next_probes(story.now) == []  # not before it has settled
    story.all_say(Result.FAILED)
    story.run(120)
    assert story.state is PRIVATE


def test_being_seen_somewhere_new_is_reason_to_check(story):
    story.listen(OURS)
    story.meet(*range(4))
    story.run(60)
    del story.asked[:]
    story.meet(5, guesses=[MOVED])
    story.run(60)
    assert story.asked


def test_an_address_more_does_not_shake_what_is_known_of_the_others(story):
    story.listen(OURS)
    story.meet(*range(4))
    story.run(60)
    story.listen(OURS, OURS_WS)
    assert story.state is PUBLIC
    assert story.tracker.addresses_that_are(PUBLIC) == [OURS]


def test_votes_expire(story):
    story.listen(OURS)
    story.meet(*range(4))
    story.run(60)
    for number in range(4):
        story.tracker.forget_server(PEERS[number])
    story.now += SETTINGS.verdict_ttl
    assert story.tracker.next_probes(story.now) == []
    assert story.state is UNKNOWN


def test_a_server_is_not_asked_twice_at_once(story):
    story.listen(OURS, OURS_WS)
    story.meet(0, 1)
    probes = story.tracker.next_probes(story.now + 5)
    assert sorted(PEERS.index(each.peer_id) for each in probes) == [0, 1]
    assert story.tracker.next_probe_at(story.now + 5) == math.inf


def test_the_evidence_says_who_was_asked_what_and_what_came_of_it(story):
    story.says[1] = Result.FAILED
    story.listen(OURS)
    story.meet(0, 1, 2, 3)
    story.run(60)
    told = {(PEERS.index(each.peer_id), each.result) for each in story.tracker.evidence}
    assert (1, Result.FAILED) in told or 1 not in story.asked
    assert all(each.addresses == (OURS,) for each in story.tracker.evidence)
    for number in range(4, 40):
        story.meet(number)
    story.run(10 * 24 * 3600)
    assert len(story.tracker.evidence) == SETTINGS.evidence_kept


@given(
    honest=st.sampled_from([Result.REACHED, Result.FAILED]),
    liars=st.sets(st.integers(0, 8), max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_a_minority_of_liars_cannot_turn_a_verdict_around(honest, liars, seed):
    story = Story(seed=seed)
    story.all_say(honest)
    story.listen(OURS)
    story.meet(*range(9))
    story.run(3600)
    before = story.state
    assert before is (PUBLIC if honest is Result.REACHED else PRIVATE)
    lie = Result.FAILED if honest is Result.REACHED else Result.REACHED
    story.all_say(lie, liars)
    story.run(12 * 3600)
    assert story.state is before


@given(
    votes=st.lists(
        st.tuples(
            st.integers(0, 12),
            st.sampled_from(Result),
            st.sampled_from([1.0, 60.0, 900.0, 4000.0]),
        ),
        max_size=60,
    ),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_said_the_verdict_follows_from_a_lead(votes, seed):
    story = Story(seed=seed)
    story.listen(OURS, OURS_6)
    story.meet(*range(8))
    story.meet(*range(8, 13), version=6)
    for number, result, pause in votes:
        story.says[number] = result
        before = story.state
        story.run(pause)
        for address, finding in story.tracker.findings().items():
            lead = finding.reached - finding.failed
            if lead >= SETTINGS.confidence:
                assert finding.state is PUBLIC, address
            if lead <= -SETTINGS.confidence:
                assert finding.state is PRIVATE, address
            assert finding.reached + finding.failed <= SETTINGS.window
        assert story.state in {before, UNKNOWN, PUBLIC, PRIVATE}


@pytest.mark.parametrize(
    ("address", "public_only", "expected"),
    [
        ("/ip4/8.8.8.8/tcp/1", True, True),
        ("/ip4/10.0.0.1/tcp/1", True, False),
        ("/ip4/10.0.0.1/tcp/1", False, True),
        ("/ip4/0.0.0.0/tcp/1", False, False),
        ("/ip4/224.0.0.1/tcp/1", False, False),
        ("/dns4/example.org/tcp/1", False, False),
        ("/ip6/2606:4700::1/tcp/1", True, True),
        ("/ip6/fe80::1/tcp/1", True, False),
    ],
)
def test_only_addresses_that_strangers_could_reach_are_probed(address, public_only, expected):
    settings = ReachabilitySettings(public_only=public_only)
    assert is_probeable(parse_address(address), settings) is expected


def test_a_network_is_a_24_or_a_48():
    assert str(network_of(ipaddress.ip_address("8.8.8.8"))) == "8.8.8.0/24"
    assert str(network_of(ipaddress.ip_address("2606:4700:1:2::3"))) == "2606:4700:1::/48"
