import pytest

from p2pnode.rpc.age import Age


@pytest.mark.parametrize(
    ("since", "steps", "staleness"),
    [
        ((), (), 0),
        ((), (5,), 0),  # nobody asks
        ((5,), (), 0),  # the host does not tell
        ((5,), (5,), 0),
        ((5,), (9,), 4),
        ((9,), (5,), 4),  # of another host, which is behind
        ((5, 5, 5), (6, 8, 5), 3),
    ],
)
def test_staleness_is_the_distance_of_the_layer_furthest_away(since, steps, staleness):
    age = Age(since=since)
    age.receive(steps)
    assert age.staleness == staleness


@pytest.mark.parametrize(("bound", "stale"), [(None, False), (4, False), (3, True), (0, True)])
def test_an_update_is_stale_beyond_its_bound(bound, stale):
    assert Age(since=(5,), bound=bound, steps=(9,)).is_stale is stale
