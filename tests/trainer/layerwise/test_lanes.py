from collections import Counter

import pytest

from p2pnode.trainer.layerwise.lanes import partners
from p2pnode.wire.keys import PrivateKey

PEERS = [PrivateKey.from_seed(bytes([n] * 32)).peer_id for n in range(12)]


@pytest.mark.parametrize(("mates", "hosts"), [(3, 3), (6, 2), (2, 6), (5, 3), (3, 5), (1, 4)])
def test_lanes_share_out_the_hosts_evenly(mates, hosts):
    swarm, others = PEERS[:mates], PEERS[mates : mates + hosts]
    lanes = [partners(each, swarm, others) for each in swarm]
    load = Counter(host for lane in lanes for host in lane)
    assert set(load) == set(others)
    assert max(load.values()) - min(load.values()) <= 1
    assert max(map(len, lanes)) - min(map(len, lanes)) <= 1
    assert min(map(len, lanes)) >= 1


def test_in_swarms_of_one_size_two_work_with_each_other():
    swarm, others = PEERS[:4], PEERS[4:8]
    for each in swarm:
        (other,) = partners(each, swarm, others)
        assert partners(other, others, swarm) == (each,)


def test_who_is_not_announced_yet_counts_as_one_of_its_swarm():
    assert set(partners(PEERS[0], PEERS[1:3], PEERS[3:6])) < set(PEERS[3:6])


def test_nobody_works_with_an_empty_swarm():
    assert partners(PEERS[0], PEERS[:1], []) == ()


def test_the_order_in_which_peers_are_known_does_not_matter():
    swarm, others = PEERS[:4], PEERS[4:7]
    for each in swarm:
        assert partners(each, swarm[::-1], others[::-1]) == partners(each, swarm, others)
