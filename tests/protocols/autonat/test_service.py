"""What nodes find out about themselves, behind every kind of router."""

import pytest
import trio

from p2pnode.testing.network import Nat

SOON = 10


async def test_a_public_node_learns_that_it_is_public(autojump_clock, world):
    await world.add_servers(4)
    node = await world.newcomer()
    await trio.sleep(SOON)
    assert node.state == "public"


@pytest.mark.parametrize("nat", [Nat.PORT_RESTRICTED, Nat.SYMMETRIC], ids=lambda nat: nat.value)
async def test_a_node_that_no_stranger_reaches_learns_that_it_is_private(
    autojump_clock, world, nat
):
    await world.add_servers(4)
    node = await world.newcomer(nat)
    await trio.sleep(SOON)
    assert node.state == "private"
