"""The virtual network: machines, the ways between them, and who reaches whom. Pure.

Everything the network does depends on its seed and on what it is asked to do when: the clock is
an argument too. Two shells carry real nodes over it: `p2pnode.testing.hosts`, with Noise and
Yamux, and `p2pnode.testing.light`, without.
"""

import math
import random
from collections.abc import Callable, Iterable
from typing import Final

import trio

from p2pnode.testing.network.dialling import Arrival, Knock
from p2pnode.testing.network.grades import IDEAL, LinkGrade
from p2pnode.testing.network.latency import Fixed, Latency
from p2pnode.testing.network.machines import Machine, private_ips, public_ips
from p2pnode.testing.network.nat import Endpoint, Nat, Router
from p2pnode.testing.network.wires import Flow

_SAMPLES: Final = 8  # draws that a typical delay is the median of


class VirtualNetwork:
    """A world of machines.

    Args:
        rng: where its chance comes from; seed 0 by default.
        latency: what lies between the machines' links; nothing by default.
        loss: the share of packets lost between the links, besides what the grades lose.
        loss_resets: the share of losses that breaks the connection instead of delaying it.
        grain: arrivals may be late by this share of their way, so that many coincide: a crowded
            simulation is the faster the fewer moments it has.
        clock: gives the time in seconds; trio's, virtual or real, by default.
    """

    def __init__(
        self,
        rng: random.Random | None = None,
        *,
        latency: Latency | None = None,
        loss: float = 0.0,
        loss_resets: float = 0.0,
        grain: float = 0.0,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.rng = rng or random.Random(0)
        self.latency = latency or Fixed(0.0)
        self.loss = loss
        self.loss_resets = loss_resets
        self.grain = grain
        self.clock = clock
        self.machines: list[Machine] = []
        self._public_ips = public_ips()
        self._by_ip: dict[str, Machine | Router] = {}
        self._behind: dict[Router, dict[str, Machine]] = {}

    # --- building -------------------------------------------------------------------------------

    def add_machine(
        self,
        *,
        grade: LinkGrade = IDEAL,
        region: str = "",
        nat: Nat | Router = Nat.NONE,
        ip: str | None = None,
    ) -> Machine:
        """Put a machine on the network.

        Args:
            grade: its link.
            region: where it is; a `RegionMatrix` must know it.
            nat: what it is behind: a kind, for a router of its own, or a router of `add_router`.
            ip: its own address; by default one of the internet, or of the router's network.

        Raises:
            ValueError: the address is taken.
        """
        router = nat if isinstance(nat, Router) else None
        if isinstance(nat, Nat) and nat is not Nat.NONE:
            router = self.add_router(nat)
        inside = self._by_ip if router is None else self._behind[router]
        if ip is None:
            candidates = self._public_ips if router is None else private_ips()
            ip = next(each for each in candidates if each not in inside)
        if ip in inside:
            raise ValueError(f"the address {ip} is taken")
        machine = Machine(len(self.machines) + 1, ip, region=region, grade=grade, router=router)
        self.machines.append(machine)
        if router is None:
            self._by_ip[ip] = machine
        else:
            self._behind[router][ip] = machine
        return machine

    def add_router(
        self, kind: Nat, *, timeout: float = 240.0, hairpin: bool = True, ip: str | None = None
    ) -> Router:
        """Put a router on the network, behind which several machines may be.

        Args:
            kind: how it translates.
            timeout: see `Router`.
            hairpin: see `Router`.
            ip: its public address; by default one of the internet.

        Raises:
            ValueError: the address is taken, or the kind is `NONE`.
        """
        ip = ip or next(each for each in self._public_ips if each not in self._by_ip)
        if ip in self._by_ip:
            raise ValueError(f"the address {ip} is taken")
        router = Router(kind, ip, self.rng, timeout=timeout, hairpin=hairpin)
        self._by_ip[ip] = router
        self._behind[router] = {}
        return router

    # --- faults ---------------------------------------------------------------------------------

    def partition(self, *groups: Iterable[Machine]) -> None:
        """Cut the network: nothing gets from one group into another.

        What an earlier call cut is joined again. Machines in no group reach all of them, so name
        all machines, those added later too, unless some are to stand in both halves.
        """
        sides = {machine: number for number, group in enumerate(groups) for machine in group}
        for machine in self.machines:
            machine.group = sides.get(machine)
        self._review_all()

    def heal(self) -> None:
        """Join all parts again."""
        self.partition()

    def take_down(self, machine: Machine) -> None:
        """Cut a machine's power, or its cable: it falls silent, and nobody is told."""
        machine.up = False
        self._review(machine)

    def bring_up(self, machine: Machine) -> None:
        """Give a machine its power, or its cable, back."""
        machine.up = True
        self._review(machine)

    def reboot(self, router: Router, *, moves: bool = False) -> None:
        """Switch a router off and on: it forgets its mappings, and what they carried breaks.

        Args:
            router: which.
            moves: whether its provider gives it another address then.
        """
        now = self.clock()
        for machine in self._behind[router].values():
            for wire in tuple(machine.wires):
                if any(each.ip == router.ip for each in wire.endpoints):
                    wire.reset_both(now)
        router.forget_all()
        if moves:
            fresh = next(each for each in self._public_ips if each not in self._by_ip)
            self._by_ip[fresh] = self._by_ip.pop(router.ip)
            router.ip = fresh

    def carries(self, one: Machine, other: Machine) -> bool:
        """Whether packets get from one machine to the other now."""
        if not (one.up and other.up):
            return False
        return one.group is None or other.group is None or one.group == other.group

    def _review_all(self) -> None:
        for machine in self.machines:
            self._review(machine)

    def _review(self, machine: Machine) -> None:
        now = self.clock()
        for wire in tuple(machine.wires):
            wire.review(now)

    # --- ways -----------------------------------------------------------------------------------

    def draw_delay(self, source: Machine, target: Machine) -> float:
        """Draw the seconds from one machine to another, links included, bandwidth not."""
        delay = self.latency.one_way(source, target, self.rng)
        for grade in (source.grade, target.grade):
            if grade is not IDEAL:
                delay += grade.delay
                if grade.jitter:
                    delay += self.rng.expovariate(1.0 / grade.jitter)
        return delay

    def arrival(self, due: float, now: float) -> float:
        """Return when what is sent now and due then arrives: at a moment that many share."""
        way = due - now
        if not self.grain or not 0.0 < way < math.inf:
            return due
        # A power of two: the moments of short ways are among those of long ones.
        step = math.ldexp(0.5, math.frexp(way * self.grain)[1])
        return math.ceil(due / step) * step

    def typical_delay(self, flow: Flow) -> float:
        """Return about what a piece of data takes from one end of a flow to the other."""
        draws = sorted(self.draw_delay(flow.source, flow.target) for _ in range(_SAMPLES))
        return draws[_SAMPLES // 2]

    def loss_between(self, source: Machine, target: Machine) -> float:
        """Return the share of packets that is lost on the way."""
        one, other = source.grade.loss, target.grade.loss
        if not (one or other or self.loss):
            return 0.0
        return 1.0 - (1.0 - one) * (1.0 - other) * (1.0 - self.loss)

    def is_lost(self, source: Machine, target: Machine) -> bool:
        """Draw whether one packet is lost on the way."""
        loss = self.loss_between(source, target)
        return bool(loss) and self.rng.random() < loss

    # --- packets that open connections ----------------------------------------------------------

    def dial(self, source: Machine, port: int, target: Endpoint) -> Knock:
        """Begin to open a connection from a port of `source`."""
        return Knock(self, source, port, target, self.clock())

    def depart(self, source: Machine, own: Endpoint, target: Endpoint, now: float) -> Endpoint:
        """Send a packet out; returns the endpoint that its receiver sees."""
        router = source.router
        if router is None or target.ip in self._behind[router]:
            return own
        return router.send(own, target, now)

    def whereabouts(self, source: Machine, target: Endpoint) -> Machine | None:
        """Return a machine where `target` is, seen from `source`, if only to know how far it is."""
        if source.router is not None and target.ip in self._behind[source.router]:
            return self._behind[source.router][target.ip]
        found = self._by_ip.get(target.ip)
        if isinstance(found, Router):
            return next(iter(self._behind[found].values()), None)
        return found

    def arrive(
        self, source: Machine, seen: Endpoint, target: Endpoint, now: float
    ) -> Arrival | None:
        """Let a packet in; returns where it came to, or None if it was dropped."""
        if source.router is not None and target.ip in self._behind[source.router]:
            machine = self._behind[source.router][target.ip]
            return Arrival(machine=machine, port=target.port, remote=seen)
        found = self._by_ip.get(target.ip)
        if found is None:
            return None
        if isinstance(found, Machine):
            return Arrival(machine=found, port=target.port, remote=seen)
        if found is source.router and not found.hairpin:
            return None
        private = found.receive(seen, target.port, now)
        if private is None:
            return None
        return Arrival(machine=self._behind[found][private.ip], port=private.port, remote=seen)

    def find_knock(self, arrival: Arrival) -> Knock | None:
        """Return what the machine itself sent to the endpoint a packet has come from."""
        return arrival.machine.knocks.get((arrival.port, arrival.remote))

    def public_endpoint(self, machine: Machine, port: int) -> Endpoint | None:
        """Return where all others find a port of a machine now, as far as NATs let them at all."""
        own = Endpoint(machine.ip, port)
        if machine.router is None:
            return own
        return machine.router.public_endpoint(own, self.clock())
