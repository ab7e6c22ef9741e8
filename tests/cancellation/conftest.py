import pytest
import trio

from p2pnode.testing.cancellation import Moment
from p2pnode.testing.footprint import footprint

QUIET_AFTER = 150.0  # seconds by which timeouts have ended whatever was not ended at once


@pytest.fixture(params=list(Moment), ids=lambda each: each.name.lower())
def moment(request):
    return request.param


@pytest.fixture
def leftovers():
    """Measure hosts as they are now; the function returned tells what they hold beyond that."""

    async def watch(*hosts):
        await trio.sleep(1)
        before = footprint(*hosts)
        kept = {each for host in hosts for each in host.connections()}

        async def close_new():
            """Close what was dialled: one may be through when it is cancelled, or come later."""
            for host in hosts:
                for connection in host.connections():
                    if connection not in kept:
                        await connection.aclose()

        async def left():
            await close_new()
            growth = footprint(*hosts).growth_since(before)
            with trio.move_on_after(QUIET_AFTER):
                while growth:
                    await trio.sleep(0.5)
                    await close_new()  # other nodes go on with their lives meanwhile
                    growth = footprint(*hosts).growth_since(before)
            return growth

        return left

    return watch
