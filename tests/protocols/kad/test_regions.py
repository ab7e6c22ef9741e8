import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.protocols.kad.keys import point
from p2pnode.protocols.kad.regions import MAX_REGIONS, Regions
from p2pnode.wire.peer_id import PeerId

PEERS = [PeerId(b"\x12\x20" + number.to_bytes(32, "big")) for number in range(400)]
K = 8


def _closest(target, peers=PEERS, count=K):
    return sorted(peers, key=lambda peer: point(peer) ^ target)[:count]


@given(st.integers(0, 2**256 - 1), st.integers(0, 256), st.integers(0, 2**256 - 1))
def test_those_said_to_be_sure_are_the_closest_of_all(centre, shared, noise):
    target = centre ^ (noise >> shared)
    regions = Regions(K, 10.0)
    regions.remember(centre, _closest(centre), 0.0)
    found = regions.recall(target, 0.0)
    if found is not None:
        assert K // 2 <= found.sure <= K
        assert found.peers[: found.sure] == _closest(target, count=found.sure)
        assert sorted(found.peers) == sorted(_closest(centre))


def test_one_look_up_serves_many_keys_nearby_and_none_far_away():
    regions = Regions(K, 10.0)
    keys = sorted(point(b"%d" % number) for number in range(5000))
    looked_up = 0
    for target in keys:
        if regions.recall(target, 0.0) is None:
            regions.remember(target, _closest(target), 0.0)
            looked_up += 1
    assert looked_up < 2 * len(PEERS) / (K / 2)
    assert regions.recall(keys[0] ^ 1 << 255, 0.0) is not None
    regions = Regions(K, 10.0)
    regions.remember(keys[0], _closest(keys[0]), 0.0)
    assert regions.recall(keys[0] ^ 1 << 255, 0.0) is None


def test_of_a_small_network_one_look_up_tells_all():
    regions = Regions(K, 10.0)
    regions.remember(0, _closest(0, PEERS[:5]), 0.0)
    for target in (point(b"a"), point(b"b"), 2**256 - 1):
        found = regions.recall(target, 0.0)
        assert found.peers == _closest(target, PEERS[:5])
        assert found.sure == 5


def test_what_was_found_is_remembered_for_its_lifetime_or_until_forgotten():
    regions = Regions(K, 10.0)
    regions.remember(5, _closest(5), 0.0)
    assert regions.recall(5, 9.9).sure == K
    assert regions.recall(5, 10.0) is None
    regions.remember(5, _closest(5), 20.0)
    regions.forget(5)
    assert regions.recall(5, 20.0) is None
    assert len(regions) == 0


@pytest.mark.parametrize("now", [0.0, 1000.0])
def test_regions_are_bounded_and_the_latest_kept(now):
    regions = Regions(K, 10.0)
    for number in range(MAX_REGIONS + 10):
        regions.remember(number << 200, PEERS[:K], now * (number >= MAX_REGIONS))
    assert len(regions) == (10 if now else MAX_REGIONS)
    assert regions.recall((MAX_REGIONS + 9) << 200, now)
