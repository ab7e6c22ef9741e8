"""The world of a simulation: a virtual network, and the nodes that live and die on it.

The first `BOOTSTRAP_PEERS` nodes are what a list of well-known addresses would name: reachable, on
good machines, and spared by churn. Everybody joins through some of them.
"""

import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import trio

from p2pnode.config import Settings
from p2pnode.events import Event
from p2pnode.host import Connection
from p2pnode.swarm.index import EntryCache
from p2pnode.testing.hosts import full_hosts
from p2pnode.testing.light import light_hosts
from p2pnode.testing.network import IDEAL, Machine, Nat, VirtualNetwork
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId
from simulations.conditions import draw_machine, make_network
from simulations.errors import SimulationFailedError
from simulations.liars import KINDS, Liar
from simulations.node import Node, Peers
from simulations.simulation import Simulation

E = TypeVar("E", bound=Event)

BOOTSTRAP_PEERS: Final = 4
PATIENCE: Final = 3600.0  # seconds after which a network is too bad for what still fails on it
_ENTRIES: Final = 131_072  # what 10,000 nodes announce in two update periods, and some more
ASKED_ON_JOINING: Final = 3  # of the bootstrap peers, drawn for each node


class World:
    """The nodes of a simulation; made by the runner.

    Attributes:
        network: the virtual network, for partitions and machines of one's own.
        hosts: what makes hosts on it, in the run's fidelity; for hosts without a DHT.
        settings: of nodes whose settings are not given; change it before they start.
        nodes: those that run, by name, in the order of starting.
        bootstrap: those that others join through.
    """

    def __init__(
        self,
        sim: Simulation,
        network: VirtualNetwork,
        hosts: Any,
        nursery: trio.Nursery,
        *,
        trace: bool,
    ) -> None:
        self.network = network
        self.hosts = hosts
        self.settings = Settings()
        self.nodes: dict[str, Node] = {}
        self.bootstrap: list[Node] = []
        self._sim = sim
        self._nursery = nursery
        self._names: dict[PeerId, str] = {}
        self._entries = EntryCache(_ENTRIES)  # each signature is verified once, not by every node
        self._liars: set[PeerId] = set()
        self._started = 0
        self._observers: list[tuple[type[Event], Callable[[Node, Any], None]]] = []
        self._machines = sim.rng_for("machines")
        if trace:
            self.on(Event, self._note)

    @property
    def nodes_up(self) -> int:
        """How many nodes run."""
        return len(self.nodes)

    @property
    def joined(self) -> list[Node]:
        """Those of the running nodes that have joined."""
        return [each for each in self.nodes.values() if each.joined_at is not None]

    @property
    def honest(self) -> list[Node]:
        """Those that have joined and do not lie."""
        return [each for each in self.joined if each.liar is None]

    # --- life -----------------------------------------------------------------------------------

    async def add_node(
        self,
        *,
        machine: Machine | None = None,
        settings: Settings | None = None,
        again: Node | None = None,
        peers: Peers | None = None,
        wait: bool = True,
    ) -> Node:
        """Start a node, and let it join.

        Args:
            machine: what it runs on; by default one is drawn as the `network.` parameters say.
            settings: by default those of the world.
            again: a node that is down and comes back: the same key, name and machine.
            peers: whom it joins through; by default some of the bootstrap peers.
            wait: whether to return only when it has joined; else that goes on beside the caller.

        Raises:
            SimulationFailedError: it has not joined within `PATIENCE` seconds.
        """
        self._started += 1
        number = self._started
        is_bootstrap = again is None and len(self.bootstrap) < BOOTSTRAP_PEERS and peers is None
        rng = self._sim.rng_for(f"node/{number}")
        if again is not None:
            key, name, machine = again.key, again.name, again.machine
            self.network.bring_up(machine)
        else:
            key, name = PrivateKey.from_seed(rng.randbytes(32)), f"n{number}"
            machine = machine or self.draw_machine(good=is_bootstrap)
        settings = settings or (again.settings if again else self.settings)
        if machine.nat is not Nat.NONE:  # what its own look at its reachability would tell it
            settings = settings.replace(dht={"mode": "client"})
        host = await self.hosts.add_host(
            key=key, machine=machine, settings=settings.network, limits=settings.limits
        )
        node = Node(
            host,
            machine,
            key=key,
            number=number,
            name=name,
            settings=settings,
            rng=rng,
            cache=self._entries,
        )
        self._names[key.peer_id] = name
        for kind, receive in self._observers:
            host.events.on(kind, partial(receive, node))
        await self._nursery.start(node.run)
        self.nodes[name] = node
        self._sim.log.record("node-started", node=name, again=again is not None)
        if not is_bootstrap:
            self._corrupt(node, again)
        entry = self.entry(rng) if peers is None else peers
        if is_bootstrap:
            self.bootstrap.append(node)
        if wait:
            with trio.move_on_after(PATIENCE) as waiting:
                await self._join(node, entry)
            if waiting.cancelled_caught:
                raise SimulationFailedError(
                    f"{name} could not join within {PATIENCE:g} virtual seconds; are the bootstrap"
                    " peers up?"
                )
        else:
            self._nursery.start_soon(self._join, node, entry)
        return node

    async def add_nodes(self, count: int, *, over: float = 0.0) -> list[Node]:
        """Start many nodes, and wait until all of them have joined.

        Args:
            count: how many.
            over: seconds over which their starts are spread evenly, beginning now.

        Returns:
            The nodes, in the order of starting.

        Raises:
            SimulationFailedError: not all of them have joined `PATIENCE` seconds after that.
        """
        started: list[Node] = []
        with trio.move_on_after(over + PATIENCE) as waiting:
            async with trio.open_nursery() as joining:
                for position in range(count):
                    # The first ones wait for each other: a list of addresses needs somebody
                    # behind it.
                    early = len(self.bootstrap) < BOOTSTRAP_PEERS
                    node = await self.add_node(wait=early)
                    started.append(node)
                    if not early:
                        joining.start_soon(node.wait_joined)
                    if position + 1 < count and over > 0:
                        await trio.sleep(over / count)
        if waiting.cancelled_caught:
            joined = sum(each.joined_at is not None for each in started)
            raise SimulationFailedError(
                f"only {joined} of {count} nodes could join within {over + PATIENCE:g} virtual"
                " seconds; is the network too bad for them?"
            )
        return started

    def draw_machine(self, *, good: bool = False) -> Machine:
        """Add a machine to the network, as the `network.` parameters say.

        Args:
            good: whether it must have an ideal link and be reachable.
        """
        drawn = draw_machine(self._sim.parameters, self._machines)
        if good:
            drawn |= {"grade": IDEAL, "nat": Nat.NONE}
        return self.network.add_machine(**drawn)

    def entry(self, rng: random.Random) -> Peers:
        """Draw bootstrap peers to join through, with their addresses; none at the very first."""
        count = min(ASKED_ON_JOINING, len(self.bootstrap))
        return self.addresses_of(rng.sample(self.bootstrap, count))

    def addresses_of(self, nodes: Iterable[Node]) -> Peers:
        """List nodes as a bootstrap list does."""
        return [(each.peer_id, address) for each in nodes for address in each.host.addresses]

    def crash(self, node: Node) -> None:
        """End a node as a power failure does: nobody is told."""
        if self._remove(node, "node-crashed"):
            self.hosts.crash(node.host)
            node.stop()

    async def leave(self, node: Node) -> None:
        """End a node as SIGTERM does: it withdraws, hands over what it keeps, and says goodbye."""
        if self._remove(node, "node-left"):
            await node.withdraw()
            await node.dht.leave()
            node.stop()
            await node.wait_ended()
            await self.hosts.leave(node.host)

    def _remove(self, node: Node, kind: str) -> bool:
        if self.nodes.get(node.name) is not node:
            return False
        del self.nodes[node.name]
        self._sim.log.record(kind, node=node.name)
        return True

    def _corrupt(self, node: Node, again: Node | None) -> None:
        """Make a liar of the node, if it is one."""
        parameters = self._sim.parameters
        kind = parameters.get("liars.kind", "mixed")
        lies, kind = node.rng.random() * 100, node.rng.choice(KINDS) if kind == "mixed" else kind
        if again is not None:
            kind, lies = again.liar or kind, 0.0 if again.liar else 100.0
        if lies < parameters.get("liars.share", 0.0):
            node.liar = kind
            self._liars.add(node.peer_id)
            Liar(node, kind, self._sim.rng_for(f"liar/{node.name}"), self._liars_up).start()
            self._sim.log.record("node-lies", node=node.name, how=kind)

    def _liars_up(self) -> list[Node]:
        return [each for each in self.nodes.values() if each.liar is not None]

    async def _join(self, node: Node, entry: Peers) -> None:
        if await node.join(entry):
            took = round(trio.current_time() - node.started_at, 6)
            self._sim.log.record("node-joined", node=node.name, took=took)

    def on(self, kind: type[E], receive: Callable[[Node, E], None]) -> None:
        """Call `receive` for each event of `kind` of every node, those to come included."""
        self._observers.append((kind, receive))
        for node in self.nodes.values():
            node.host.events.on(kind, partial(receive, node))

    # --- partitions ------------------------------------------------------------------------------

    def partition(self, *sides: Sequence[Machine]) -> None:
        """Cut the network between these machines; who is on no side reaches all."""
        self._sim.log.record("partition", sides=[len(side) for side in sides])
        self.network.partition(*sides)

    def heal(self) -> None:
        """End a partition."""
        self._sim.log.record("heal")
        self.network.heal()

    # --- the log --------------------------------------------------------------------------------

    def is_liar(self, peer_id: PeerId) -> bool:
        """Whether a peer lies, or did when it was up."""
        return peer_id in self._liars

    def name_of(self, peer_id: PeerId) -> str:
        """Return how the log calls a peer."""
        return self._names.get(peer_id) or str(peer_id)

    def _note(self, node: Node, event: Event) -> None:
        """Log an event of a node."""
        facts: dict[str, Any] = {}
        for field in dataclasses.fields(event):
            value = getattr(event, field.name)
            if isinstance(value, Connection):
                facts["peer"] = self.name_of(value.peer_id)
            elif isinstance(value, PeerId):
                facts["peer"] = self.name_of(value)
            elif isinstance(value, bytes):
                facts[field.name] = value.hex()
            elif isinstance(value, str | int | float | None):
                facts[field.name] = value
        self._sim.log.record("event", node=node.name, event=type(event).__name__, facts=facts)


@contextlib.asynccontextmanager
async def open_world(sim: Simulation, *, trace: bool) -> AsyncIterator[World]:
    """Run an empty world in the fidelity of `sim`, and make it the world of `sim`."""
    network = make_network(sim.parameters, sim.rng_for("network"))
    opened = light_hosts(network) if sim.fidelity == "light" else full_hosts(network)
    async with opened as hosts, trio.open_nursery() as nursery:
        sim.world = World(sim, network, hosts, nursery, trace=trace)
        yield sim.world
        for node in list(sim.world.nodes.values()):
            node.stop()
        nursery.cancel_scope.cancel()
