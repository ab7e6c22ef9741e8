"""Finds out whether others can dial this node, and tells the rest of it.

`p2pnode.host.reachability.verdicts` says what to ask whom and when; this shell asks, and turns
verdicts into `ReachabilityChanged` and into what the host tells others about its addresses.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import trio
from multiaddr import Multiaddr

from p2pnode.config import ReachabilitySettings
from p2pnode.errors import DialError, P2PNodeError
from p2pnode.events import Event
from p2pnode.host import (
    ConnectionEnded,
    Host,
    LocalPeerChanged,
    PeerIdentified,
    Reachability,
    ReachabilityChanged,
)
from p2pnode.host.budgets.rates import plain_ip
from p2pnode.host.reachability.verdicts import (
    FAMILIES,
    Evidence,
    Probe,
    ReachabilityTracker,
    Result,
    is_probeable,
)
from p2pnode.host.reachability.votes import Finding
from p2pnode.protocols.autonat.client import Answer, AutonatClient
from p2pnode.protocols.autonat.messages import DIAL_REQUEST, PROTOCOL_V1
from p2pnode.protocols.autonat.server import AutonatServer
from p2pnode.wire.addresses import is_loopback
from p2pnode.wire.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachabilityProbed(Event):
    """A peer was asked whether it reaches this node.

    Attributes:
        peer_id: who was asked.
        family: 4 or 6.
        addresses: what it was asked to dial, or the one that the answer is about.
        result: what came of it.
        text: more about that.
    """

    peer_id: PeerId
    family: int
    addresses: tuple[Multiaddr, ...]
    result: Result
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachabilityInfo:
    """What is known of the ways to this node, for status pages and the doctor.

    Attributes:
        state: the verdict on the node.
        is_forced: whether the settings say so, and nobody was asked.
        families: the verdict on IPv4 and IPv6, and the votes behind it.
        addresses: the same of each address.
        evidence: the last probes, the newest last; their times are trio's clock.
        servers: how many peers can be asked.
    """

    state: Reachability
    is_forced: bool
    families: dict[int, Finding]
    addresses: dict[Multiaddr, Finding]
    evidence: tuple[Evidence, ...]
    servers: int


class ReachabilityService:
    """Watches this node's reachability, and serves others that want to know theirs, in `run`.

    Args:
        host: the node's network side.
        settings: how.
        rng: whom to ask, and the chance in serving others.
    """

    def __init__(
        self,
        host: Host,
        settings: ReachabilitySettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._host = host
        self._settings = settings or ReachabilitySettings()
        rng = rng or random.Random()
        self._tracker = ReachabilityTracker(self._settings, rng)
        self._client = AutonatClient(host, self._settings)
        self._server = AutonatServer(host, self._settings, rng)
        self._told = (Reachability.UNKNOWN,) * 3
        self._judged: tuple[list[Multiaddr], list[Multiaddr]] = [], []
        self._changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch and serve until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._client.run)
            if self._settings.serve:
                await nursery.start(self._server.run)
            if self._settings.mode == "auto":
                await self._watch(nursery, task_status)
            else:
                forced = Reachability(self._settings.mode)
                self._tell(forced, forced, forced)
                task_status.started()
                await trio.sleep_forever()

    @property
    def state(self) -> Reachability:
        """Whether others can dial this node, as far as is known."""
        return self._told[0]

    def info(self) -> ReachabilityInfo:
        """Describe what is known, and why."""
        return ReachabilityInfo(
            state=self.state,
            is_forced=self._settings.mode != "auto",
            families={each: self._tracker.finding_of(each) for each in FAMILIES},
            addresses=self._tracker.findings(),
            evidence=tuple(self._tracker.evidence),
            servers=self._tracker.servers,
        )

    # --- inputs ---------------------------------------------------------------------------------

    async def _watch(self, nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        events = self._host.events
        undo = [
            events.on(PeerIdentified, self._receive_identified),
            events.on(ConnectionEnded, self._receive_ended),
            events.on(LocalPeerChanged, self._receive_local_change),
        ]
        try:
            self._take_in_addresses()
            task_status.started()
            await self._ask_when_due(nursery)
        finally:
            for each in undo:
                each()

    def _receive_local_change(self, _event: LocalPeerChanged) -> None:
        self._take_in_addresses()

    def _take_in_addresses(self) -> None:
        self._tracker.receive_addresses(self._reachable_from_elsewhere(), trio.current_time())
        self._draw_conclusions()
        self._changed.set()

    def _reachable_from_elsewhere(self) -> list[Multiaddr]:
        found = self._host.candidate_addresses
        if self._settings.public_only:
            found = [each for each in found if not is_loopback(each)]
        return found

    def _receive_identified(self, event: PeerIdentified) -> None:
        peer_id, protocols = event.peer_id, event.protocols
        connection = self._host.connection_to(peer_id)
        if connection is None or connection.is_relayed:
            return
        ip = plain_ip(connection.remote_address)
        serves = DIAL_REQUEST in protocols or PROTOCOL_V1 in protocols
        if ip is None or not serves or not is_probeable(connection.remote_address, self._settings):
            self._tracker.forget_server(peer_id)
            return
        guesses: Sequence[Multiaddr] = ()
        if event.observed_address is not None:
            guesses = self._guess(connection.local_address, event.observed_address)
        is_news = self._tracker.receive_server(
            peer_id,
            ip,
            takes_others=DIAL_REQUEST in protocols,
            takes_none=PROTOCOL_V1 in protocols,
            guesses=guesses,
            now=trio.current_time(),
        )
        if is_news:
            self._take_in_addresses()  # a first connection may have made a NAT let others in

    def _guess(self, local: Multiaddr, observed: Multiaddr) -> list[Multiaddr]:
        """Return where we might be dialled, given where a peer sees a connection come from.

        If that comes from a port we listen on, it is that very place. If not, its port means
        nothing, but somebody may have forwarded the ports that we listen on.
        """
        listening = self._host.candidate_addresses
        if local in listening:
            return [observed]
        first = observed.split()[0].to_bytes()
        behind = [b"".join(part.to_bytes() for part in each.split()[1:]) for each in listening]
        return [Multiaddr(first + each) for each in dict.fromkeys(behind) if each]

    def _receive_ended(self, event: ConnectionEnded) -> None:
        peer_id = event.connection.peer_id
        if self._host.connection_to(peer_id) is None:
            self._tracker.receive_disconnected(peer_id)

    # --- asking ---------------------------------------------------------------------------------

    async def _ask_when_due(self, nursery: trio.Nursery) -> None:
        while True:
            self._changed = trio.Event()
            for probe in self._tracker.next_probes(trio.current_time()):
                nursery.start_soon(self._ask, probe)
            self._draw_conclusions()  # votes may have expired
            with trio.move_on_at(self._tracker.next_probe_at(trio.current_time())):
                await self._changed.wait()

    async def _ask(self, probe: Probe) -> None:
        """Carry out a probe: whatever goes wrong is one of its outcomes."""
        answer = Answer(result=Result.USELESS, text="it took too long")
        is_lost = False
        with trio.move_on_after(self._settings.request_timeout):
            try:
                answer = await self._client.ask(probe)
            except P2PNodeError as error:
                answer = Answer(result=Result.USELESS, text=str(error))
                is_lost = isinstance(error, DialError)
        self._tracker.receive_result(
            probe, answer.result, answer.text, trio.current_time(), about=answer.about
        )
        if is_lost:  # until it comes back by itself
            self._tracker.forget_server(probe.peer_id)
        self._host.events.emit(
            ReachabilityProbed(
                peer_id=probe.peer_id,
                family=probe.family,
                addresses=answer.about or probe.addresses,
                result=answer.result,
                text=answer.text,
            )
        )
        self._draw_conclusions()
        self._changed.set()

    # --- conclusions ----------------------------------------------------------------------------

    def _draw_conclusions(self) -> None:
        tracker = self._tracker
        self._tell(tracker.state, tracker.state_of(4), tracker.state_of(6))
        judged = (
            tracker.addresses_that_are(Reachability.PUBLIC),
            tracker.addresses_that_are(Reachability.PRIVATE),
        )
        if judged != self._judged:
            self._judged = judged
            self._host.judge_addresses(*judged)

    def _tell(self, state: Reachability, ip4: Reachability, ip6: Reachability) -> None:
        if (state, ip4, ip6) != self._told:
            self._told = state, ip4, ip6
            self._host.events.emit(ReachabilityChanged(reachability=state, ip4=ip4, ip6=ip6))
