import time

import trio

from p2pnode.clock import bind_wall_time_to_trio, wall_time


def test_outside_trio_it_is_the_machine_clock():
    assert abs(wall_time() - time.time()) < 5


async def test_bound_time_passes_on_the_virtual_clock(autojump_clock):
    bind_wall_time_to_trio(1_000_000.0)
    assert wall_time() == 1_000_000.0
    await trio.sleep(3600)
    assert wall_time() == 1_003_600.0


async def test_a_binding_ends_with_its_run():
    assert abs(wall_time() - time.time()) < 5
