from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.host.reachability.nat_behaviour import (
    Endpoint,
    Filtering,
    Mapping,
    Sighting,
    Stranger,
    Trial,
    classify_filtering,
    classify_mapping,
)

HERE = Endpoint(ip_address("192.168.1.10"), 4001)
REMOTES = {
    name: Endpoint(ip_address(f"52.0.0.{ip}"), port)
    for name, ip, port in [("a1", 1, 1), ("a2", 1, 2), ("b1", 2, 1), ("b2", 2, 2), ("c1", 3, 1)]
}


def sightings(local=HERE, **ports):
    """By remote, the port of our public address that it sees."""
    return [
        Sighting(local=local, remote=REMOTES[name], seen=Endpoint(ip_address("11.0.0.9"), port))
        for name, port in ports.items()
    ]


@pytest.mark.parametrize(
    ("seen", "mapping"),
    [
        ({}, Mapping.UNKNOWN),
        ({"a1": 5}, Mapping.UNKNOWN),
        ({"a1": 5, "a2": 5}, Mapping.UNKNOWN),  # another address may see another one
        ({"a1": 5, "b1": 5}, Mapping.ENDPOINT_INDEPENDENT),
        ({"a1": 5, "a2": 5, "b1": 6}, Mapping.ADDRESS_DEPENDENT),
        ({"a1": 5, "a2": 5, "b1": 6, "b2": 6}, Mapping.ADDRESS_DEPENDENT),
        ({"a1": 5, "a2": 6}, Mapping.ADDRESS_AND_PORT_DEPENDENT),
        ({"a1": 5, "b1": 5, "b2": 6}, Mapping.ADDRESS_AND_PORT_DEPENDENT),
        ({"a1": 5, "b1": 6}, Mapping.DEPENDENT),
        ({"a1": 5, "b1": 5, "c1": 6}, Mapping.DEPENDENT),
    ],
)
def test_a_mapping_is_known_as_far_as_it_was_seen(seen, mapping):
    assert classify_mapping(sightings(**seen)) is mapping


def test_who_is_seen_where_it_is_has_no_nat():
    seen = [Sighting(local=HERE, remote=remote, seen=HERE) for remote in REMOTES.values()]
    assert classify_mapping(seen) is Mapping.NONE


def test_the_ports_of_different_local_endpoints_are_not_compared():
    other = HERE._replace(port=4002)
    seen = sightings(a1=5, b1=5) + sightings(other, a1=6, b1=6)
    assert classify_mapping(seen) is Mapping.ENDPOINT_INDEPENDENT
    assert classify_mapping(seen + sightings(other, c1=7)) is Mapping.DEPENDENT


def test_the_newest_sighting_of_a_remote_endpoint_counts():
    assert classify_mapping(sightings(a1=5) + sightings(b1=6) + sightings(a1=6)) is (
        Mapping.ENDPOINT_INDEPENDENT
    )


def test_dependent_mappings_are_those_that_differ_by_who_looks():
    assert [each.name for each in Mapping if each.is_dependent] == [
        "ADDRESS_DEPENDENT",
        "ADDRESS_AND_PORT_DEPENDENT",
        "DEPENDENT",
    ]


PLACES = st.sampled_from(sorted(REMOTES))


@given(st.dictionaries(PLACES, st.integers(1, 3)), st.randoms())
def test_the_order_of_sightings_of_different_remotes_does_not_matter(seen, rng):
    given_order = sightings(**seen)
    shuffled = list(given_order)
    rng.shuffle(shuffled)
    assert classify_mapping(given_order) is classify_mapping(shuffled)


@pytest.mark.parametrize(
    ("port_of", "mapping"),
    [
        (lambda remote: 5, Mapping.ENDPOINT_INDEPENDENT),
        (lambda remote: int(remote.ip) % 256, Mapping.ADDRESS_DEPENDENT),
        (lambda remote: int(remote.ip) % 256 + 9 * remote.port, Mapping.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
def test_a_nat_that_all_have_seen_is_classified_by_what_it_does(port_of, mapping):
    seen = sightings(**{name: port_of(remote) for name, remote in REMOTES.items()})
    assert classify_mapping(seen) is mapping


def trial(stranger, arrived):
    return Trial(stranger=stranger, arrived=arrived)


PORT, ADDRESS = Stranger.OTHER_PORT, Stranger.OTHER_ADDRESS


@pytest.mark.parametrize(
    ("trials", "filtering"),
    [
        ([], Filtering.UNKNOWN),
        ([trial(PORT, True)], Filtering.UNKNOWN),
        ([trial(ADDRESS, False)], Filtering.UNKNOWN),
        ([trial(ADDRESS, True)], Filtering.ENDPOINT_INDEPENDENT),
        ([trial(PORT, True), trial(ADDRESS, False)], Filtering.ADDRESS_DEPENDENT),
        ([trial(PORT, False), trial(ADDRESS, False)], Filtering.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
def test_a_filter_is_known_by_who_came_through(trials, filtering):
    assert classify_filtering(trials) is filtering


@given(st.integers(0, 5), st.integers(0, 5))
def test_one_packet_that_arrives_outweighs_all_that_were_lost(before, after):
    lost = trial(ADDRESS, False)
    trials = [lost] * before + [trial(ADDRESS, True)] + [lost] * after
    assert classify_filtering(trials) is Filtering.ENDPOINT_INDEPENDENT
