"""What a daemon has found out about a peer, over its own restart."""

from functools import partial

import pytest
import trio

from p2pnode.config import Settings
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.node import Node
from p2pnode.swarm.gossip.announcement import Claim
from p2pnode.testing.daemons import LOOPBACK
from p2pnode.wire.uids import Uid

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
LAYER = "work/layers.0"
QUICK = ("--experts", LAYER, "--hidden-dim", "8", "--set", "gossip.survey_interval=0.5")
RATE = 40.0  # announcements a second, where 4 are let pass
WITHIN = 30.0  # seconds; it takes about two


async def offenders_of(daemon):
    socket = daemon.data_dir / "control.sock"
    status = await trio.to_thread.run_sync(partial(call_daemon, socket, "status"))
    return {each["peer_id"]: each for each in status["swarms"]["offenders"]}


async def flood(swarm):
    """Announce more than one's share, for ever."""
    number = 0
    while True:
        await swarm.announce(Claim(round=number, score=0.5, scored_on=300, weights=b"w" * 32))
        number += 1


async def test_what_is_held_against_a_peer_is_kept_when_the_daemon_is_restarted(
    start, tmp_path, nursery
):
    daemon = await trio.to_thread.run_sync(partial(start, "daemon", *QUICK))
    settings = Settings().replace(
        node={"listen": (LOOPBACK,), "bootstrap": (daemon.address,), "experts": (LAYER,)},
        gossip={"announcement_rate": RATE},
        hosting={"hidden_dim": 8, "threads": 1},
    )
    hasty = Node(DataDir(tmp_path / "hasty"), settings)
    await nursery.start(hasty.run)
    hasty_id = str(hasty.network.peer_id)
    with trio.fail_after(WITHIN):
        async with trio.open_nursery() as flooding:
            flooding.start_soon(flood, hasty.swarms.swarm(Uid.parse(LAYER)))
            while not (before := await offenders_of(daemon)):  # noqa: ASYNC110  # another process
                await trio.sleep(0.1)
            flooding.cancel_scope.cancel()
    hasty.request_stop()
    assert before[hasty_id]["offences"]["flood"] > 0
    assert await trio.to_thread.run_sync(daemon.terminate) == 0
    daemon = await trio.to_thread.run_sync(partial(start, "daemon", *QUICK))
    after = (await offenders_of(daemon))[hasty_id]
    assert after["offences"]["flood"] >= before[hasty_id]["offences"]["flood"]
    assert after["last_reason"] == before[hasty_id]["last_reason"]
    assert after["points"] == pytest.approx(2 * after["offences"]["flood"], rel=0.1)  # they fade
