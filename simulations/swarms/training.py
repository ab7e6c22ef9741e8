"""One swarm from its beginning to its end: who takes part, who lies, who leaves and who comes."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from p2pnode.swarm.gossip.reputation import PeerBlacklisted
from p2pnode.swarm.rounds.events import ClaimChecked, RoundEnded, RoundsEnded, Verdict
from p2pnode.swarm.weights.local import StateAdopted
from p2pnode.wire.uids import Uid
from simulations.learning.data import Images
from simulations.learning.stragglers import Worker
from simulations.node import Node
from simulations.simulation import Simulation
from simulations.swarms.learner import Share, ShareLearner, accuracy
from simulations.swarms.liars import KINDS, SwarmLiar
from simulations.swarms.participant import RUN, Participant

if TYPE_CHECKING:
    from p2pnode.wire.peer_id import PeerId


_LAYER: Final = Uid(RUN.run_id, "classifier.0")
_SETTLE: Final = 60.0  # seconds, for hosts to find each other
_FORGET: Final = 120.0  # seconds, in which all that was announced of a swarm has expired


@dataclass(slots=True)
class Place:
    """One share of the data, and who trains on it now."""

    number: int
    share: Share
    participant: Participant
    holders: int = 1  # that it has had so far
    history: list[RoundEnded] = field(default_factory=list)
    ended: RoundsEnded | None = None


@dataclass(frozen=True, slots=True)
class LateJoin:
    """How a participant came to the swarm's weights that took another one's place.

    Attributes:
        round: that the swarm was in when it started.
        took: rounds that the swarm went on until it served the swarm's weights.
        seconds: likewise, in virtual seconds.
        behind: its accuracy when it began to serve, below the mean of the others', in points.
    """

    round: int
    took: int
    seconds: float
    behind: float


@dataclass(slots=True)
class Outcome:
    """What came of one swarm.

    Attributes:
        name: of the swarm.
        accuracies: of each honest participant in the end, on images nobody has trained on or
            chosen by, in per cent.
        scores: for each round, of each one that was in it, on its own hold-out, in per cent.
        verdicts: on claims that were checked: of honest participants, and of liars.
        lies: how many were told.
        blacklisted: how often an honest participant put a liar on its blacklist.
        adopted_lies: states of liars that were adopted.
        joins: of participants that came late.
        waited: the part of the rounds' time that was waiting, in per cent.
        seconds: virtual ones, from the first round's beginning to the last one's end.
    """

    name: str
    accuracies: list[float] = field(default_factory=list)
    scores: dict[int, list[float]] = field(default_factory=dict)
    verdicts: tuple[Counter[Verdict], Counter[Verdict]] = field(
        default_factory=lambda: (Counter(), Counter())
    )
    lies: int = 0
    blacklisted: int = 0
    adopted_lies: int = 0
    joins: list[LateJoin] = field(default_factory=list)
    waited: float = 0.0
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """Mean of the participants, in per cent."""
        return statistics.fmean(self.accuracies)


class SwarmStory:
    """One swarm of a simulation.

    Swarms of a simulation follow each other, and host the same layer. So they begin with the same
    weights, which go by the same names; whoever has a share draws its images in the same order; and
    swarms that nothing disturbs learn the very same.

    Args:
        sim: the simulation, whose parameters have the group `SWARM`.
        name: of the swarm, which no other one of the simulation has.
        shares: what the honest participants train on, one each.
        test: images that decide nothing, and judge.
        directory: where states are kept.
    """

    def __init__(
        self,
        sim: Simulation,
        name: str,
        shares: Sequence[Share],
        test: Images,
        directory: Path,
    ) -> None:
        self.outcome = Outcome(name)
        self._sim = sim
        self._uid = _LAYER
        self._shares = shares
        self._test = test
        self._directory = directory
        self._places: list[Place] = []
        self._liars: dict[PeerId, SwarmLiar] = {}
        self._by_node: dict[str, Place] = {}
        self._own: set[str] = set()  # all nodes that have been honest participants
        self._changed = trio.Event()
        sim.world.on(RoundEnded, self._receive_round)
        sim.world.on(ClaimChecked, self._receive_checked)
        sim.world.on(StateAdopted, self._receive_adopted)
        sim.world.on(PeerBlacklisted, self._receive_blacklisted)

    # --- the story ------------------------------------------------------------------------------

    async def run(self, *, liars: int = 0, replaced: Sequence[int] = ()) -> Outcome:
        """Train to the end.

        Args:
            liars: how many there are, beside the honest participants.
            replaced: in which rounds a participant goes and another one takes its share.

        Returns:
            What has come of it; all its nodes are gone then.
        """
        nodes = await self._sim.world.add_nodes(len(self._shares) + liars)
        honest, lying = nodes[: len(self._shares)], nodes[len(self._shares) :]
        began = self._sim.now
        async with trio.open_nursery() as nursery:
            for node in lying:
                nursery.start_soon(self._add_liar, node)
            for number, node in enumerate(honest):
                nursery.start_soon(self._add, number, node)
        self._places.sort(key=lambda each: each.number)
        for place in self._places:
            await self._wait_for_others(place.participant, len(nodes) - 1)
        for place in self._places:
            self._train(place)
        mortal = self._sim.rng_for(f"{self.outcome.name}/churn").sample(
            range(len(self._places)), len(replaced)
        )
        for number, at in zip(mortal, replaced, strict=True):
            await self._wait_until(partial(self._is_in, at))
            await self._replace(self._places[number], crashes=number % 2 == 0)
        await self._wait_until(lambda: all(each.ended for each in self._places))
        self.outcome.seconds = self._sim.now - began
        await self._judge()
        for place in self._places:
            await self._sim.world.leave(place.participant.node)
        for node in lying:
            await self._sim.world.leave(node)
        await trio.sleep(_FORGET)
        return self.outcome

    async def _add(self, number: int, node: Node) -> None:
        place = Place(number, self._shares[number], await self._host(node))
        self._places.append(place)

    async def _wait_for_others(self, participant: Participant, count: int) -> None:
        """Wait until a participant knows the others, so that all begin at once."""
        swarm = participant.swarm
        with trio.move_on_after(_SETTLE):
            await swarm.wait_until(lambda: len(swarm.members) >= count)

    def _train(self, place: Place) -> None:
        """Let a participant begin its rounds."""
        chosen, node = self._sim.parameters, place.participant.node
        learner = ShareLearner(
            place.participant.experts,
            self._uid,
            node.peer_id,
            place.share,
            batch=chosen["batch"],
            seconds=chosen["compute"],
            rng=self._sim.rng_for(f"order/{place.number}/{place.holders}"),
        )

        def end(ended: RoundsEnded) -> None:
            place.ended = ended
            self._changed.set()

        self._by_node[node.name] = place
        self._own.add(node.name)
        place.participant.train(learner, end)

    async def _add_liar(self, node: Node) -> None:
        chosen = self._sim.parameters
        number = len(self._liars)
        kind = chosen["lies.kind"]
        kind = KINDS[number % len(KINDS)] if kind == "mixed" else kind
        participant = Participant(node, self._uid, self._states(node), self._worker())
        liar = self._liars[node.peer_id] = SwarmLiar(
            participant,
            kind,
            is_liar=self._liars.__contains__,
            scored_on=chosen["lies.scored_on"],
            rng=self._sim.rng_for(f"{self.outcome.name}/{node.name}/lies"),
        )
        self._sim.log.record("swarm-liar", node=node.name, how=kind)
        await participant.start()
        node.start_soon(liar.run)

    async def _host(self, node: Node) -> Participant:
        participant = Participant(node, self._uid, self._states(node), self._worker())
        await participant.start()
        return participant

    def _states(self, node: Node) -> Path:
        return self._directory / f"{self.outcome.name}-{node.number}"

    def _worker(self) -> Worker:
        seconds = float(self._sim.parameters["compute"])
        return Worker(lambda: seconds)

    async def _replace(self, place: Place, *, crashes: bool) -> None:
        """Let a participant go, and another one take its place."""
        world, gone = self._sim.world, place.participant.node
        del self._by_node[gone.name]
        if crashes:
            world.crash(gone)
        else:
            await world.leave(gone)
        round_before, started = self._round(), self._sim.now
        node = await world.add_node()
        place.participant = await self._host(node)
        place.holders += 1
        self._train(place)
        join = LateJoin(
            round=round_before,
            took=self._round() - round_before,
            seconds=self._sim.now - started,
            behind=await self._behind(place),
        )
        self.outcome.joins.append(join)
        self._sim.log.record(
            "replaced",
            gone=gone.name,
            by=node.name,
            crashed=crashes,
            round=join.round,
            took=join.took,
            behind=round(join.behind, 6),
        )

    async def _behind(self, place: Place) -> float:
        others = [await self._accuracy_of(each) for each in self._places if each is not place]
        return statistics.fmean(others) - await self._accuracy_of(place)

    # --- how far it is --------------------------------------------------------------------------

    def _round(self) -> int:
        """Return the round that most have come to."""
        ended = [each.history[-1].round if each.history else 0 for each in self._by_node.values()]
        return statistics.median_low(ended)

    def _is_in(self, number: int) -> bool:
        return self._round() >= number

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed = trio.Event()
            await self._changed.wait()

    async def _accuracy_of(self, place: Place) -> float:
        experts = place.participant.experts
        return 100 * accuracy(await experts.snapshot(self._uid, complete=False), self._test)

    async def _judge(self) -> None:
        for place in self._places:
            self.outcome.accuracies.append(await self._accuracy_of(place))
        rounds = [each for place in self._places for each in place.history]
        self.outcome.waited = 100 * (
            sum(each.waited for each in rounds) / max(1e-9, sum(each.seconds for each in rounds))
        )
        self.outcome.lies = sum(each.lies for each in self._liars.values())
        self._sim.log.record(
            "judged",
            swarm=self.outcome.name,
            accuracies=[round(each, 6) for each in self.outcome.accuracies],
        )

    # --- what is told ---------------------------------------------------------------------------

    def _receive_round(self, node: Node, event: RoundEnded) -> None:
        place = self._by_node.get(node.name)
        if place is None:
            return
        place.history.append(event)
        self._changed.set()
        self.outcome.scores.setdefault(event.round, []).append(100 * event.score)
        self._sim.log.record(
            "round",
            node=node.name,
            round=event.round,
            trained=round(event.trained, 6),
            score=round(event.score, 6),
            heard=event.heard,
            fetched=event.fetched,
            lies=event.lies,
            source=None if event.source is None else self._sim.world.name_of(event.source),
        )

    def _receive_checked(self, node: Node, event: ClaimChecked) -> None:
        if node.name not in self._own:
            return
        self.outcome.verdicts[event.peer_id in self._liars][event.verdict] += 1
        self._sim.log.record(
            "checked",
            node=node.name,
            peer=self._sim.world.name_of(event.peer_id),
            claimed=round(event.claimed, 6),
            found=None if event.found is None else round(event.found, 6),
            verdict=str(event.verdict),
        )

    def _receive_adopted(self, node: Node, event: StateAdopted) -> None:
        if node.name in self._own and event.source in self._liars:
            self.outcome.adopted_lies += 1

    def _receive_blacklisted(self, node: Node, event: PeerBlacklisted) -> None:
        if node.name in self._by_node and event.peer_id in self._liars:
            self.outcome.blacklisted += 1
