"""A process is killed between any two steps of fetching, adopting and saving a state.

This file is also that process: it repeats one swap again and again, each time in a child of its own
that ends itself by SIGKILL one step later than the one before. Another child then looks at what is
left on the disk, and swaps again. Steps are the calls that change the disk or the expert, half of a
write among them.
"""

import functools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trio
import trio.testing
from torch import nn

from p2pnode.clock import bind_wall_time_to_trio
from p2pnode.config import HostingSettings, RpcSettings, WeightsSettings
from p2pnode.events import EventBus
from p2pnode.experts.backend import ExpertBackend
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.security.tokens import Membership
from p2pnode.swarm.weights.client import WeightsClient, WeightsFetched
from p2pnode.swarm.weights.files import StateFile
from p2pnode.swarm.weights.publisher import Publisher
from p2pnode.swarm.weights.server import WeightsServer
from p2pnode.swarm.weights.store import StateStore
from p2pnode.testing.light import light_hosts
from p2pnode.wire.uids import Uid

RUN = Membership.open("test")
UID = Uid(RUN.run_id, "ffn.0")
HOSTING = HostingSettings(
    hidden_dim=16, learning_rate=1e-2, threads=1, optimizer_policy="adopt", checkpoints_kept=1
)
WEIGHTS = WeightsSettings(chunk_bytes=16_384)
OLD_STEPS, NEW_STEPS = 2, 5
MOST_STEPS = 300  # of one swap; it has less than a third of them


@pytest.mark.real
def test_whenever_a_process_is_killed_all_of_the_old_or_the_new_state_is_left(tmp_path):
    command = [sys.executable, "-P", __file__, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    *killed, last = found
    assert not last["killed"]
    assert all(each["killed"] for each in killed)
    assert len(killed) > 30
    wrong = [each for each in found if each["state"] not in {"old", "new"}]
    assert not wrong
    states = [each["state"] for each in found]
    assert states == sorted(states, reverse=True)  # once the new one is there, it stays
    assert {"old", "new"} == set(states)
    # What had come did not travel again, up to the chunk that was being written.
    reused = [each["reused"] for each in killed if each["state"] == "old"]
    assert reused == sorted(reused)
    assert max(reused) >= 3
    assert all(each["again"] == "new" for each in found)


# --- the process that is killed -------------------------------------------------------------------


class Steps:
    """Counts what is done, and kills the process at a given step."""

    def __init__(self, last):
        self.left = last

    def pass_one(self):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, name):
        """Make the time before and after each call of a function a step."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def stepped(*args, **options):
            self.pass_one()
            result = function(*args, **options)
            self.pass_one()
            return result

        setattr(owner, name, stepped)

    def torn(self):
        """Let half of each write be a step, too."""
        pwrite = os.pwrite

        def halved(descriptor, data, offset):
            half = len(data) // 2
            pwrite(descriptor, data[:half], offset)
            self.pass_one()
            return half + pwrite(descriptor, data[half:], offset + half)

        os.pwrite = halved


def watch(last):
    steps = Steps(last)
    for name in ("posix_fallocate", "ftruncate", "fsync"):
        steps.around(os, name)
    for name in ("rename", "unlink", "write_bytes"):
        steps.around(Path, name)
    steps.around(StateFile, "write")
    steps.around(ExpertBackend, "load")
    steps.around(nn.Module, "load_state_dict")
    steps.torn()


def take_part(host, directory, seed):
    """Assemble a host of the expert on a light host."""
    experts = ExpertHost(
        HOSTING,
        directory / "experts",
        EventBus(),
        compute=compute_inline,
        disk=compute_inline,
    )
    store = StateStore(directory / "weights", WEIGHTS, disk=compute_inline)
    publisher = Publisher(experts, store)
    budget = Budget(RpcSettings())
    WeightsServer(host, WEIGHTS, publisher, store, Authority({"test": RUN}, 8), budget=budget)
    access = Access(host, {"test": RUN})
    client = WeightsClient(access, WEIGHTS, store, host.events, random.Random(seed), budget=budget)
    return experts, store, publisher, client


async def train(experts, nursery, steps, caller):
    await experts.add([UID])
    await nursery.start(experts.run)
    for number in range(steps):
        rows = torch.randn(4, 16, generator=torch.Generator().manual_seed(steps + number))
        await experts.backward(
            UID,
            [rows],
            [rows],
            caller=caller,
            call_id=bytes([steps]) * 15 + bytes([number]),
            deadline=trio.current_time() + 10,
        )


async def prepare(directory):
    """Save the old state where the taker looks, and the new one where the giver does."""
    async with light_hosts() as world, trio.open_nursery() as nursery:
        for name, steps in (("taker", OLD_STEPS), ("giver", NEW_STEPS)):
            host = await world.add_host()
            experts, *_ = take_part(host, directory / name, 0)
            await train(experts, nursery, steps, host.peer_id)
            await experts.save_all()
        nursery.cancel_scope.cancel()


async def swap(directory, last=None):
    """Fetch the giver's state, go on from it, and save; returns what was there already."""
    bind_wall_time_to_trio(1.8e9)
    async with light_hosts() as world:
        one, two = await world.add_host(), await world.add_host()
        two.add_addresses(one.peer_id, one.addresses, 1e6)
        giver, _, publisher, _ = take_part(one, directory / "giver", 1)
        await giver.add([UID])
        manifest = await publisher.newest(UID, complete=True)
        taker, store, _, client = take_part(two, directory / "taker", 2)
        await taker.add([UID])
        await store.open()
        if last is not None:
            watch(last)
        with two.events.subscribe(WeightsFetched) as fetched:
            state = await client.fetch(UID, manifest.name, [one.peer_id])
            reused = (await fetched.get()).reused
        await taker.adopt(UID, await store.load(state))
        await taker.save_all()
    return reused


async def look(directory):
    """Tell which state is on the taker's disk."""
    found = {}
    for name in ("taker", "giver", "before"):
        experts = ExpertHost(
            HOSTING,
            directory / name / "experts",
            EventBus(),
            compute=compute_inline,
            disk=compute_inline,
        )
        await experts.add([UID])
        checkpoint = await experts.snapshot(UID)
        found[name] = (
            checkpoint.state.steps,
            checkpoint.state.rows,
            checkpoint.applied,
            {key: each.tolist() for key, each in checkpoint.state.tensors.items()},
        )
    named = {"old": found["before"], "new": found["giver"]}
    return next((name for name, each in named.items() if each == found["taker"]), "neither")


async def look_and_swap(directory):
    """Tell what is left, and what is there after another swap; the middle is what was reused."""
    state = await look(directory)
    reused = await swap(directory) if state == "old" else 0
    return state, reused, await look(directory)


def in_child(work):
    """Run some work in a child; returns what it gave, or None if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        result = trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        data = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    assert status == 0, f"the child ended with {status}"
    return json.loads(data)


def copy_tree(source, target):
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


def main(directory):
    torch.set_num_threads(1)
    start = directory / "start"
    in_child(functools.partial(prepare, start))
    for last in range(MOST_STEPS):
        place = directory / str(last)
        copy_tree(start, place)
        copy_tree(start / "taker", place / "before")
        killed = in_child(functools.partial(swap, place, last)) is None
        state, reused, again = in_child(functools.partial(look_and_swap, place))
        sys.stdout.write(
            json.dumps({"killed": killed, "state": state, "reused": reused, "again": again}) + "\n"
        )
        if not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
