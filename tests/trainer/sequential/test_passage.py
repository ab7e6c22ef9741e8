"""What is kept for replay stays within its bound."""

import torch

from p2pnode.trainer.sequential.passage import Keeper, Stage
from p2pnode.trainer.sequential.routing import Hop
from p2pnode.wire.keys import PrivateKey

HOP = Hop(start=0, stop=1, peer_id=PrivateKey.from_seed(bytes(32)).peer_id)


def stage(count):
    return Stage(HOP, torch.zeros(count, dtype=torch.uint8))


def test_the_oldest_are_let_go_first():
    keeper = Keeper(100)
    stages = [stage(40) for _ in range(4)]
    for each in stages:
        keeper.keep(each)
    assert [each.inputs is None for each in stages] == [True, True, False, False]
    assert keeper.kept_bytes == 80


def test_what_is_larger_than_the_bound_is_not_kept():
    keeper = Keeper(100)
    small, large = stage(50), stage(101)
    keeper.keep(small)
    keeper.keep(large)
    assert small.inputs is None
    assert large.inputs is None


def test_what_nobody_holds_any_more_does_not_count():
    keeper = Keeper(100)
    released, kept = stage(60), stage(60)
    keeper.keep(released)
    keeper.keep(stage(30))
    released.release()
    keeper.keep(kept)
    assert kept.inputs is not None
    assert keeper.kept_bytes == 60
