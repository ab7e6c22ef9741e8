"""The scenario `stragglers`: the real trainer and experts, some of whose hosts are slow."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import torch
import trio
from torch import nn
from torch.nn import functional

from p2pnode.config import Settings
from p2pnode.errors import ConfigError, NoLiveExpertError
from p2pnode.experts.runtime import compute_inline
from p2pnode.experts.service import ExpertHost
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.server import TensorServer
from p2pnode.security.tokens import Membership
from p2pnode.trainer.calls import ExpertCaller
from p2pnode.trainer.mixture import RemoteMixtureOfExperts
from p2pnode.trainer.sources import Scores
from p2pnode.wire.uids import Uid
from simulations.learning.data import CLASSES, Batches, Images, load
from simulations.learning.determinism import generator, one_thread
from simulations.learning.lockstep import LockstepExperts
from simulations.node import Node
from simulations.report import Axis, Report, at_least, at_most
from simulations.simulation import Simulation

T = TypeVar("T")

_RUN: Final = Membership.open("stragglers")
_FEATURES: Final = 32
_LEARNING_RATE: Final = 1e-3
_TIMEOUT: Final = 60.0  # of the calls of one pass, in seconds: no slow host is that slow
_UPDATE_PERIOD: Final = 30.0  # seconds; nobody leaves, so that announcing more often shows nothing
_FOUND_WITHIN: Final = 60.0  # seconds for all experts to be seen in the DHT
_LOOK_EVERY: Final = 0.5  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a trainer deals with slow hosts, and whether there are any."""

    name: str
    block: str
    slow: bool
    k_min: int
    timeout_after_k_min: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One training step.

    Attributes:
        forward: virtual seconds of this pass.
        backward: of that one.
        loss: of its batch.
        held_up: whether fewer than k_min experts of some sample were on prompt hosts, so that
            there was nothing to cut off: a slow one had to be waited for.
    """

    forward: float
    backward: float
    loss: float
    held_up: bool

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.forward + self.backward


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What came of one policy.

    Attributes:
        policy: the policy.
        steps: in order.
        calls: how many were made of experts.
        cut_off: how many of them nobody waited for to the end.
    """

    policy: Policy
    steps: list[Step]
    calls: int
    cut_off: int

    @property
    def median(self) -> float:
        """Half of the steps took less, in seconds."""
        return statistics.median(each.seconds for each in self.steps)

    @property
    def longest(self) -> float:
        """The longest step, in seconds."""
        return max(each.seconds for each in self.steps)


class Worker:
    """A host's device: computes inline, and takes a modelled time.

    Args:
        seconds: of one batch, asked anew each time.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds

    async def __call__(self, work: Callable[[], T]) -> T:
        """See `p2pnode.experts.runtime.Compute`; work that was begun is always finished."""
        await trio.sleep(self._seconds())
        return work()


async def compare(sim: Simulation) -> None:
    """Train by each policy, and report.

    Raises:
        ConfigError: k_min or k_best does not fit.
        LocalError: the images are not installed.
    """
    chosen = sim.parameters
    if not chosen["k_min"] <= chosen["k_best"] <= chosen["grid"] ** 2:
        raise ConfigError(
            f"k_min, {chosen['k_min']}, must not exceed k_best, {chosen['k_best']}, and that not"
            f" the {chosen['grid'] ** 2} experts of the grid"
        )
    every = chosen["k_best"]
    cut = {"k_min": chosen["k_min"], "timeout_after_k_min": chosen["timeout_after_k_min"]}
    wait = {"k_min": every, "timeout_after_k_min": 0.0}
    policies = [
        Policy(name="no slow host", block="even", slow=False, **wait),
        Policy(name="waits for all", block="patient", slow=True, **wait),
        Policy(name="cuts off", block="brisk", slow=True, **cut),
    ]
    data = load("digits")
    with one_thread():
        cluster = await _Cluster.start(sim, [each.block for each in policies])
        trainings = []
        for policy in policies:
            sim.begin(f"training: {policy.name}")
            cluster.slow = policy.slow
            trainings.append(await _train(sim, policy, data.train, cluster.slow_experts))
    _report(sim, trainings)


class _Watched(LockstepExperts):
    """Keeps whom the last choice fell on: the names of each sample's experts."""

    def __init__(self, caller: ExpertCaller) -> None:
        super().__init__(caller)
        self.chosen: list[list[str]] = []

    def choose(self, block: str, scores: Sequence[Scores], k: int) -> list[list[tuple[str, float]]]:
        """See `ExpertSource`."""
        found = super().choose(block, scores, k)
        self.chosen = [[name for name, _ in sample] for sample in found]
        return found


class _Cluster:
    """The hosts of all layers' experts."""

    def __init__(self, sim: Simulation) -> None:
        self.slow = False  # whether slow hosts are slow, for now
        self.slow_experts: frozenset[str] = frozenset()
        self._sim = sim

    @classmethod
    async def start(cls, sim: Simulation, blocks: list[str]) -> "_Cluster":
        """Start the hosts, each with an equal part of every layer."""
        cluster = cls(sim)
        chosen = sim.parameters
        grid = range(chosen["grid"])
        sim.world.settings = Settings().replace(
            hosting={"hidden_dim": _FEATURES, "threads": 1, "update_period": _UPDATE_PERIOD}
        )
        sim.begin("hosts join")
        nodes = await sim.world.add_nodes(chosen["hosts"])
        slow = set(
            sim.rng.sample(range(len(nodes)), round(len(nodes) * chosen["slow.share"] / 100))
        )
        places = [(block, row, column) for block in blocks for row in grid for column in grid]
        sim.rng.shuffle(places)
        for number, node in enumerate(nodes):
            uids = [
                Uid(_RUN.run_id, f"{block}.{row}.{column}")
                for block, row, column in places[number :: len(nodes)]
            ]
            await cluster.host(node, uids, is_slow=number in slow)
        return cluster

    async def host(self, node: Node, uids: list[Uid], *, is_slow: bool) -> None:
        """Serve experts on a node."""
        chosen = self._sim.parameters

        def seconds() -> float:
            factor = chosen["slow.factor"] if is_slow and self.slow else 1.0
            return float(chosen["compute"] * factor)

        if is_slow:
            self.slow_experts |= {uid.name for uid in uids}
        settings = node.settings
        experts = ExpertHost(
            settings.hosting,
            None,
            node.host.events,
            rpc=settings.rpc,
            compute=Worker(seconds),
            disk=compute_inline,
        )
        authority = Authority({_RUN.name: _RUN}, settings.rpc.token_cache_size)
        TensorServer(node.host, settings.rpc, experts, authority)
        await self._sim.nursery.start(experts.run)
        await experts.add(uids)
        node.announce(uids)
        self._sim.log.record("hosting", node=node.name, experts=len(uids), slow=is_slow)


async def _train(sim: Simulation, policy: Policy, images: Images, slow: frozenset[str]) -> Training:
    """Train a classifier of one layer of experts, by a trainer that is new to the network."""
    chosen = sim.parameters
    caller = await _connect(sim)
    grid = (chosen["grid"], chosen["grid"])
    await _wait_until_found(caller, policy.block, grid)
    experts = _Watched(caller)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sim.rng_for("weights").getrandbits(63))
        mixture = RemoteMixtureOfExperts(
            experts,
            policy.block,
            grid=grid,
            in_features=_FEATURES,
            k_best=chosen["k_best"],
            k_min=policy.k_min,
            backward_k_min=policy.k_min,
            forward_timeout=_TIMEOUT,
            backward_timeout=_TIMEOUT,
            timeout_after_k_min=policy.timeout_after_k_min,
        )
        pixels = images.pixels.shape[1]
        model = nn.Sequential(
            nn.Linear(pixels, _FEATURES),
            mixture,
            nn.LayerNorm(_FEATURES),
            nn.Linear(_FEATURES, CLASSES),
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    batches = Batches(images, chosen["batch"], generator(sim, "order"))

    steps: list[Step] = []
    for number in range(chosen["steps"]):
        batch = batches.draw()
        began = trio.current_time()
        loss = await experts.run(partial(_loss, model, batch))
        turned = trio.current_time()
        optimizer.zero_grad()
        await experts.run(loss.backward)
        optimizer.step()
        ended = trio.current_time()
        held_up = policy.slow and any(
            sum(name not in slow for name in names) < policy.k_min for names in experts.chosen
        )
        steps.append(
            Step(
                forward=turned - began,
                backward=ended - turned,
                loss=float(loss.detach()),
                held_up=held_up,
            )
        )
        sim.log.record(
            "step",
            policy=policy.name,
            number=number,
            seconds=round(ended - began, 9),
            loss=round(steps[-1].loss, 6),
            held_up=held_up,
        )
    stats = caller.book.recorder.snapshot()
    return Training(policy=policy, steps=steps, calls=stats.calls, cut_off=stats.stragglers)


def _loss(model: nn.Module, batch: Images) -> torch.Tensor:
    return functional.cross_entropy(model(batch.pixels), batch.digits)


async def _connect(sim: Simulation) -> ExpertCaller:
    """Start a trainer's node: a client of the DHT, as `p2pnode.connect` makes it."""
    settings = sim.world.settings
    client = dataclasses.replace(settings.dht, mode="client")
    node = await sim.world.add_node(settings=dataclasses.replace(settings, dht=client))
    return ExpertCaller(
        node.host,
        node.directory,
        _RUN,
        settings=settings,
        rng=node.rng,
    )


async def _wait_until_found(caller: ExpertCaller, block: str, grid: tuple[int, int]) -> None:
    """Wait until all experts of a layer are seen.

    Raises:
        NoLiveExpertError: they are not, after a minute.
    """
    until = trio.current_time() + _FOUND_WITHIN
    experts = math.prod(grid)
    while len(found := await caller.live_experts(block, grid)) < experts:
        if trio.current_time() > until:
            raise NoLiveExpertError(
                f"only {len(found)} of {experts} experts of {block} were found within"
                f" {_FOUND_WITHIN:g} s"
            )
        await trio.sleep(_LOOK_EVERY)


# --- the report ---------------------------------------------------------------------------------


def _report(sim: Simulation, trainings: list[Training]) -> None:
    report, chosen = sim.report, sim.parameters
    even, patient, brisk = trainings
    bound = even.longest + 2 * chosen["timeout_after_k_min"]
    free = [each.seconds for each in brisk.steps if not each.held_up]
    report.figure(
        "longest step, cut off",
        max(free, default=None),
        "s",
        goal=at_most(bound),
        detail=f"of the {len(free)} of {len(brisk.steps)} steps in which each sample had"
        f" {chosen['k_min']} of its experts on prompt hosts. The goal: the longest without slow"
        f" hosts, {even.longest:.3g} s, and {chosen['timeout_after_k_min']:g} s more for each pass",
    )
    held_up = [each.seconds for each in brisk.steps if each.held_up]
    report.figure(
        "steps held up",
        100 * len(held_up) / len(brisk.steps),
        "%",
        detail="in which a sample had too few experts on prompt hosts, so that a slow one had to be"
        " waited for" + (f", {max(held_up):.3g} s at most" if held_up else ""),
    )
    report.figure(
        "median step, cut off",
        brisk.median,
        "s",
        detail=f"without slow hosts {even.median:.3g} s, waiting for all {patient.median:.3g} s",
    )
    whole = [sum(step.seconds for step in each.steps) for each in trainings]
    report.figure(
        "faster for cutting off",
        whole[1] / whole[2],
        "times",
        goal=at_least(1.0),
        detail=f"{len(brisk.steps)} steps take {whole[2]:.3g} s instead of {whole[1]:.3g} s",
    )
    report.figure(
        "calls cut off",
        100 * brisk.cut_off / max(1, brisk.calls),
        "%",
        detail=f"{brisk.cut_off} of {brisk.calls}; a host that is cut off again and again is"
        " shunned for a while",
    )
    report.figure(
        "loss at the end, cut off",
        _last_loss(brisk),
        "nats",
        detail=f"of the last tenth of the steps; waiting {_last_loss(patient):.3g}, without slow"
        f" hosts {_last_loss(even):.3g}",
    )
    _plots(report, trainings)
    report.table(
        "step times",
        [
            "trainer",
            Axis("median", "s"),
            Axis("longest", "s"),
            Axis("forward, mean", "s"),
            Axis("backward, mean", "s"),
            "calls",
            "cut off",
        ],
        [
            (
                each.policy.name,
                each.median,
                each.longest,
                statistics.fmean(step.forward for step in each.steps),
                statistics.fmean(step.backward for step in each.steps),
                each.calls,
                each.cut_off,
            )
            for each in trainings
        ],
    )
    report.note(
        "Trainer, experts, calls and DHT are the real code on a virtual network and clock; tensors"
        " are really computed, and a host's computing takes the modelled duration. Each training"
        " has a layer of fresh experts on the same hosts."
    )


def _plots(report: Report, trainings: list[Training]) -> None:
    for each in trainings:
        numbers = range(1, len(each.steps) + 1)
        report.series(
            f"{each.policy.name}: time",
            numbers,
            [step.seconds for step in each.steps],
            label=each.policy.name,
            x_label="step",
            y_label="step time",
            y_unit="s",
        )
        report.series(
            f"{each.policy.name}: loss",
            numbers,
            [step.loss for step in each.steps],
            label=each.policy.name,
            x_label="step",
            y_label="training loss",
            y_unit="nats",
        )
    names = [each.policy.name for each in trainings]
    report.plot("time of each step", [f"{name}: time" for name in names], log_y=True)
    report.plot("loss of each step", [f"{name}: loss" for name in names], y_from=0)


def _last_loss(training: Training) -> float:
    last = training.steps[-max(1, len(training.steps) // 10) :]
    return statistics.fmean(each.loss for each in last)
