"""An expert at fault, as a whole node deals with it; its layer is the user's own class."""

import random

import pytest
import torch
import trio

from p2pnode.config import Settings
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.node import Node
from p2pnode.errors import ExpertFailedError
from p2pnode.experts.events import ExpertRestarted, ExpertStopped
from p2pnode.swarm.entries import open_entry
from p2pnode.swarm.index import decode_index
from p2pnode.swarm.places import Kind, Place, bits_of
from p2pnode.testing.memory import MemoryTransport
from p2pnode.testing.network import Fixed, VirtualNetwork
from p2pnode.wire.addresses import tcp_address
from p2pnode.wire.uids import Uid

RUN = "open:digits"
PLACE = Place(RUN, Kind.HOSTS, "ffn", 0)
LAYER = """
import torch

class Fragile(torch.nn.Module):
    def __init__(self, hidden_dim):
        super().__init__()
        self.linear = torch.nn.Linear(hidden_dim, hidden_dim)
        self.crashed = False

    def forward(self, x):
        if self.crashed:
            raise RuntimeError("crashed")
        return self.linear(x)
"""


def node_on(network, data_dir, bootstrap=(), experts=(), **hosting):
    machine = MemoryTransport(network)
    listen = (str(tcp_address(machine.ip, 4001)),)
    settings = Settings().replace(
        node={"listen": listen, "bootstrap": bootstrap, "experts": experts},
        hosting={"hidden_dim": 4, "update_period": 60.0, "restart_delay": 0.5, **hosting},
    )
    return Node(DataDir(data_dir), settings, transports=[machine], rng=random.Random(0))


@pytest.mark.real
async def test_an_expert_at_fault_is_announced_again_when_it_serves_again(tmp_path, nursery):
    file = tmp_path / "mine.py"
    file.write_text(LAYER)
    network = VirtualNetwork(latency=Fixed(0.01))
    first = node_on(network, tmp_path / "first")
    await nursery.start(first.run)
    host = node_on(
        network,
        tmp_path / "host",
        bootstrap=tuple(first.network.full_addresses()),
        experts=("digits/ffn.[0:2]",),
        layer=f"{file}:Fragile",
        schedule="linear",
        warmup_steps=1,
        total_steps=4,
        max_failures_in_row=2,
        device="cpu,cpu",
    )
    await nursery.start(host.run)
    told = []
    for kind in (ExpertStopped, ExpertRestarted):
        host.network.host.events.on(kind, told.append)
    experts, uid = host._hosting._experts, Uid(RUN, "ffn.0")

    async def announced():
        value = await first.network.dht.get_value(PLACE.key)
        (entry,) = decode_index(PLACE, value)
        return list(bits_of(open_entry(PLACE, entry).served))

    async def until(served):
        with trio.fail_after(20):
            while first.network.dht.record_count == 0 or await announced() != served:
                await trio.testing.wait_all_tasks_blocked(0.01)

    async def backward(number):
        x = torch.ones(1, 4)
        return await experts.backward(
            uid,
            [x],
            [x],
            caller=first.network.host.peer_id,
            call_id=number.to_bytes(16, "big"),
            deadline=trio.current_time() + 10,
        )

    await until([0, 1])
    for number in range(3):
        await backward(number)
    await host._hosting.save()
    experts._experts[uid].backend.module.crashed = True
    for number in (3, 4):
        with pytest.raises(ExpertFailedError, match="crashed"):
            await backward(number)
    await until([1])
    shown = {each["uid"]: each["stopped"] for each in host._hosting.describe()}
    assert "crashed" in shown["digits/ffn.0"]
    assert shown["digits/ffn.1"] is None
    await until([0, 1])
    assert [type(event) for event in told] == [ExpertStopped, ExpertRestarted]
    await backward(5)
    assert experts.steps(uid) == 4
    (group,) = experts._experts[uid].backend._optimizer.param_groups
    assert group["lr"] == pytest.approx(1e-3 / 3)  # the fourth step of the schedule
