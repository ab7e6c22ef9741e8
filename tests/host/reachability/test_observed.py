import ipaddress
import itertools
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import NetworkSettings
from p2pnode.host.reachability.observed import ObservedAddresses, group_of
from p2pnode.wire.addresses import parse_address, tcp_address

RELAY = "/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit"
LOCAL = tcp_address("192.168.1.5", 4001)
PUBLIC = tcp_address("8.8.8.8", 20_000)
SETTINGS = NetworkSettings(
    observed_votes=3,
    observed_max_per_family=2,
    observed_address_ttl=100.0,
    observed_max_votes=30,
    observed_max_votes_per_group=2,
)


class Votes:
    """A node that listens on one address, and the peers that tell it where they see it."""

    def __init__(self, *listening, settings=SETTINGS):
        self.listening = [parse_address(each) for each in listening] or [LOCAL]
        self.votes = ObservedAddresses(settings)
        self.now = 0.0
        self._numbers = itertools.count()

    def hear(self, observer, observed=PUBLIC, *, local=None, connection=None):
        connection = next(self._numbers) if connection is None else connection
        remote = observer if "/" in observer else str(tcp_address(observer, 1))
        return self.votes.observe(
            connection,
            observed=parse_address(str(observed)),
            local=parse_address(str(local or self.listening[0])),
            remote=parse_address(remote),
            listening=self.listening,
            now=self.now,
        )

    def hear_all(self, count, observed=PUBLIC, **options):
        for number in range(count):
            assert self.hear(f"9.0.0.{number}", observed, **options)

    @property
    def believed(self):
        return [str(each) for each in self.votes.believed(self.listening, self.now)]


def test_an_address_is_believed_once_enough_observers_agree():
    it = Votes()
    it.hear_all(2)
    assert it.believed == []
    it.hear("9.0.0.3", tcp_address("8.8.4.4", 1))
    assert it.believed == []
    it.hear("9.0.0.4")
    assert it.believed == [str(PUBLIC)]
    assert it.votes.believed(it.listening, 0) == {PUBLIC: 3}


def test_however_often_one_observer_says_it_that_is_one_voice():
    it = Votes()
    for _ in range(20):
        it.hear("9.0.0.1")
        it.hear("9.0.0.2")
    assert it.believed == []


def test_a_whole_ip6_site_is_one_observer():
    it = Votes("/ip6/fd00::5/tcp/4001")
    seen = "/ip6/2600::9/tcp/4001"
    for number in range(20):
        assert it.hear(f"2a00:1:2:3{number:02}::1", seen)
    assert it.believed == []
    it.hear("2a00:1:3::1", seen)
    it.hear("2a00:1:4::1", seen)
    assert it.believed == [seen]


def test_a_peer_that_changes_its_mind_takes_its_vote_back():
    it = Votes()
    for number in range(3):
        it.hear(f"9.0.0.{number}", connection=number)
    assert it.believed
    it.hear("9.0.0.0", tcp_address("8.8.4.4", 1), connection=0)
    assert it.believed == []
    it.hear("9.0.0.0", connection=0)
    assert it.believed
    assert not it.hear("9.0.0.0", tcp_address("127.0.0.1", 1), connection=0)
    assert it.believed == []


def test_votes_outlive_their_connections_for_a_while():
    it = Votes()
    for number in range(3):
        it.hear(f"9.0.0.{number}", connection=number)
    it.now = 1e6
    assert it.believed  # still connected
    it.votes.end(0, it.now)
    it.votes.end("another", it.now)
    it.now += 99
    assert it.believed
    it.now += 1
    assert it.believed == []
    assert len(it.votes) == 2


def test_only_connections_at_a_listening_port_count():
    it = Votes()
    assert not it.hear("9.0.0.1", local=tcp_address("192.168.1.5", 50_000))
    assert not it.hear("9.0.0.1", local=tcp_address("192.168.1.6", 4001))
    assert not it.hear("9.0.0.1", local="/dns4/us.example/tcp/4001")
    assert len(it.votes) == 0


@pytest.mark.parametrize(
    ("observed", "observer", "counts"),
    [
        ("/ip4/8.8.8.8/tcp/20000", "9.0.0.1", True),
        ("/ip4/8.8.8.8/tcp/20000/ws", "9.0.0.1", True),  # what is spoken there does not matter
        ("/ip4/8.8.8.8/tcp/0", "9.0.0.1", False),
        ("/ip4/8.8.8.8/udp/20000", "9.0.0.1", False),
        ("/ip4/8.8.8.8", "9.0.0.1", False),
        ("/ip4/127.0.0.1/tcp/1", "9.0.0.1", False),
        ("/ip4/127.0.0.1/tcp/1", "127.0.0.1", False),
        ("/ip4/0.0.0.0/tcp/1", "9.0.0.1", False),
        ("/ip4/169.254.1.1/tcp/1", "169.254.1.2", False),
        ("/ip4/224.0.0.1/tcp/1", "9.0.0.1", False),
        ("/ip4/240.0.0.1/tcp/1", "10.0.0.1", False),
        ("/ip4/10.0.0.1/tcp/1", "9.0.0.1", False),
        ("/ip4/10.0.0.1/tcp/1", "10.0.0.9", True),  # an observer in a private network
        ("/ip4/8.8.8.8/tcp/1", "10.0.0.9", True),
        ("/ip6/2600::1/tcp/1", "2a00::1", False),  # our end of the connection is IPv4
        ("/ip4/192.168.1.5/tcp/4001", "192.168.1.9", False),  # which we know
        ("/dns4/us.example/tcp/1", "9.0.0.1", False),
        (f"/ip4/8.8.8.8/tcp/1{RELAY}", "9.0.0.1", False),
        ("/ip4/8.8.8.8/tcp/1", f"/ip4/9.0.0.1/tcp/1{RELAY}", False),
        ("/ip4/8.8.8.8/tcp/1", "/dns4/peer.example/tcp/1", False),
    ],
)
def test_what_can_be_an_address_of_ours(observed, observer, counts):
    it = Votes()
    assert it.hear(observer, observed) is counts
    assert len(it.votes) == counts


def test_an_observers_own_translation_of_ip4_is_not_ours():
    it = Votes("/ip6/2600::5/tcp/4001")
    assert not it.hear("2a00::1", "/ip6/64:ff9b::808:808/tcp/1")
    assert it.hear("2a00::1", "/ip6/2600::9/tcp/1")


def test_one_vote_holds_for_all_listeners_that_share_the_port():
    it = Votes(
        "/ip4/192.168.1.5/tcp/4001", "/ip4/192.168.1.5/tcp/4001/ws", "/ip4/10.0.0.1/tcp/4001"
    )
    it.hear_all(3)
    assert it.believed == [str(PUBLIC), f"{PUBLIC}/ws"]


def test_each_listening_port_needs_votes_of_its_own():
    it = Votes("/ip4/192.168.1.5/tcp/4001", "/ip4/192.168.1.5/tcp/4002/ws")
    it.hear_all(2)
    it.hear("9.0.0.9", local=it.listening[1])
    assert it.believed == []


def test_a_port_no_longer_listened_on_is_no_longer_announced():
    it = Votes()
    it.hear_all(3)
    it.listening = [tcp_address("192.168.1.5", 4002)]
    assert it.believed == []


def test_an_address_that_is_now_listened_on_is_no_longer_an_observed_one():
    it = Votes()
    it.hear_all(3)
    it.listening.append(PUBLIC)
    assert it.believed == []


def test_the_most_seen_addresses_of_a_family_win():
    it = Votes()
    for port, count in [(1, 3), (2, 5), (3, 4)]:
        for number in range(count):
            it.hear(f"9.0.{port}.{number}", tcp_address("8.8.8.8", port))
    assert it.believed == ["/ip4/8.8.8.8/tcp/2", "/ip4/8.8.8.8/tcp/3"]


def test_families_do_not_compete():
    it = Votes("/ip4/192.168.1.5/tcp/4001", "/ip6/fd00::5/tcp/4001")
    for port in (1, 2, 3):
        for number in range(3):
            it.hear(f"9.0.{port}.{number}", tcp_address("8.8.8.8", port))
            six = tcp_address("2600::1", port)
            it.hear(f"2a00:{number}:{port}::1", six, local=it.listening[1])
    assert sorted(each[:4] for each in it.believed) == ["/ip4", "/ip4", "/ip6", "/ip6"]


def test_one_group_cannot_fill_the_table():
    it = Votes()
    for port in range(1, 1000):
        it.hear("9.0.0.1", tcp_address("8.8.8.8", port))
    assert len(it.votes) == 2
    it.hear_all(3)
    assert str(PUBLIC) in it.believed


def test_a_full_table_forgets_ended_connections_first_and_takes_no_more_than_fit():
    it = Votes()
    for number in range(30):
        assert it.hear(f"9.0.1.{number}", connection=number)
    assert not it.hear("9.0.2.1", connection="late")
    it.votes.end(5, it.now)
    assert it.hear("9.0.2.1", connection="late")
    assert len(it.votes) == 30


observers = st.integers(0, 9).map(lambda number: f"9.0.0.{number}")
places = st.integers(1, 4).map(lambda port: tcp_address("8.8.8.8", port))
steps = st.lists(
    st.tuples(st.just("hear"), observers, places, st.integers(0, 12))
    | st.tuples(st.just("end"), st.integers(0, 12))
    | st.tuples(st.just("wait"), st.floats(0, 150)),
    max_size=60,
)


@given(steps)
def test_nothing_is_believed_on_fewer_voices_than_needed(script):
    it = Votes()
    heard = {}  # connection -> observer, place, until
    for what, *arguments in script:
        if what == "hear":
            observer, place, connection = arguments
            heard.pop(connection, None)
            if it.hear(observer, place, connection=connection):
                heard[connection] = (observer, place, float("inf"))
        elif what == "end":
            it.votes.end(arguments[0], it.now)
            if arguments[0] in heard:
                heard[arguments[0]] = (*heard[arguments[0]][:2], it.now + 100)
        else:
            it.now += arguments[0]
        voices = defaultdict(set)
        for observer, place, until in heard.values():
            if until > it.now:
                voices[str(place)].add(observer)
        believed = it.believed
        assert all(len(voices[place]) >= 3 for place in believed)
        assert len(believed) <= 2
        assert len(it.votes) <= 30


@given(st.ip_addresses())
def test_every_address_belongs_to_one_group(ip):
    group = group_of(ip)
    assert ip in group
    assert group.prefixlen == {4: 32, 6: 56}[ip.version]


def test_groups_are_networks_of_the_observers_version():
    assert group_of(ipaddress.ip_address("9.0.0.1")) != group_of(ipaddress.ip_address("9.0.0.2"))
