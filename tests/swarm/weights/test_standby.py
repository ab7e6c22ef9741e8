import math

import pytest

from p2pnode.swarm.weights.standby import Standby, distance
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.uids import Uid

UID = Uid("open:digits", "ffn.0")
PEERS = [PrivateKey.from_seed(bytes([each]) * 32).peer_id for each in range(1, 6)]
HOST, *REPLICAS = PEERS
ORDER = sorted(REPLICAS, key=lambda each: distance(each, UID))
GRACE = 2.0
LIFETIME = 10.0


def standby(own=ORDER[0], *, has_state=True):
    found = unmet(own, has_state=has_state)
    found.receive_hosts([HOST])
    return found


def unmet(own=ORDER[0], *, has_state=True):
    """A replica that has just started."""
    return Standby(own, UID, grace=GRACE, lifetime=LIFETIME, has_state=has_state)


def test_as_long_as_there_is_a_host_it_stands_by():
    assert standby().take_over_at == math.inf


def test_it_takes_over_a_grace_after_the_last_host_has_gone():
    found = standby()
    found.receive_absence(10.0)
    found.receive_absence(11.0)
    assert found.take_over_at == 10.0 + GRACE


def test_a_host_that_is_seen_again_puts_it_off():
    found = standby()
    found.receive_absence(10.0)
    found.receive_hosts([HOST])
    assert found.take_over_at == math.inf
    found.receive_absence(20.0)
    assert found.take_over_at == 20.0 + GRACE


@pytest.mark.parametrize("place", range(4))
def test_replicas_take_over_one_after_the_other_the_closest_first(place):
    found = standby(ORDER[place])
    found.receive_replicas(HOST, REPLICAS)
    found.receive_absence(10.0)
    assert found.take_over_at == 10.0 + GRACE * (1 + place)


def test_only_replicas_that_the_last_hosts_knew_of_count():
    found = standby(ORDER[3])
    found.receive_replicas(HOST, REPLICAS)
    found.receive_hosts([ORDER[0]])  # it took over
    found.receive_replicas(ORDER[0], ORDER[1:])
    assert set(found.replicas) == {ORDER[1], ORDER[2]}
    found.receive_absence(0.0)
    assert found.take_over_at == GRACE * 3


def test_without_a_state_it_never_takes_over():
    found = standby(has_state=False)
    found.receive_absence(10.0)
    assert found.take_over_at == math.inf
    found.has_state = True
    assert found.take_over_at == 10.0 + GRACE


def test_the_closest_replica_depends_on_the_expert():
    first = {
        min(REPLICAS, key=lambda each: distance(each, Uid("open:digits", f"ffn.{number}")))
        for number in range(64)
    }
    assert first == set(REPLICAS)


def test_one_that_has_just_started_waits_until_hosts_would_have_been_found():
    found = unmet()
    found.receive_absence(5.0)
    assert found.take_over_at == 5.0 + LIFETIME + GRACE
    found.receive_hosts([HOST])
    found.receive_absence(50.0)
    assert found.take_over_at == 50.0 + GRACE
