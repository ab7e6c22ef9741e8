"""DCUtR over a host: relayed connections are made direct ones, whenever that is possible.

Who was called over a relay (B) does it, since only B knows that it cannot be dialled. Once there is
a direct connection, new streams use it; the relayed one is closed by the host when the streams it
still carries have ended and it has been idle for `duplicate_linger`.
"""

import random
from typing import Final

import trio
from multiaddr import Multiaddr

from p2pnode.config import DcutrSettings
from p2pnode.errors import (
    DialError,
    HolePunchError,
    P2PNodeError,
    ProtocolError,
    ResourceLimitError,
    StreamResetError,
)
from p2pnode.host import ConnectionEnded, ConnectionOpened, PeerIdentified, Stream
from p2pnode.host.budgets.rates import Rates
from p2pnode.host.connections import NetworkConnection
from p2pnode.host.node import NetworkHost
from p2pnode.host.ranking import is_relayed
from p2pnode.protocols.dcutr.core import (
    PROTOCOL,
    Answerer,
    Attempts,
    HolePunchAttemptFailed,
    HolePunched,
    HolePunchFailed,
    Opener,
    Plan,
    Retries,
    dial_patience,
    worth_dialling,
)
from p2pnode.wire import varint
from p2pnode.wire.peer_id import PeerId

# Addresses offered that too few peers have seen this node at to believe, of TCP and of UDP each.
_MAX_UNSURE: Final = 3
_TAILS: Final = {"tcp": b"", "udp": Multiaddr("/quic-v1").to_bytes()}


class DcutrService:
    """Punches holes, and helps others to, while `run` runs.

    Args:
        host: whose connections are to be direct.
        settings: times and limits.
        rng: chance, for the pauses between tries.
    """

    def __init__(
        self,
        host: NetworkHost,
        settings: DcutrSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._host = host
        self._settings = settings = settings or DcutrSettings()
        self._retries = Retries(settings, (rng or random.Random()).random)
        self._attempts = Attempts(settings)
        rates = settings.tries_per_second, settings.tries_per_peer, settings.max_peers
        self._answered, self._tried = Rates(*rates), Rates(*rates)
        self._slots = trio.CapacityLimiter(settings.max_punches)
        self._under_way: dict[PeerId, trio.Event] = {}  # set when something about a peer changed

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:

            def review(peer_id: PeerId) -> None:
                if (changed := self._under_way.get(peer_id)) is not None:
                    changed.set()
                elif self._relayed(peer_id) is not None:
                    self._under_way[peer_id] = trio.Event()
                    nursery.start_soon(self._upgrade, peer_id)

            on = self._host.events.on
            undo = [
                on(ConnectionOpened, lambda event: review(event.connection.peer_id)),
                on(ConnectionEnded, lambda event: review(event.connection.peer_id)),
                on(PeerIdentified, lambda event: review(event.peer_id)),
            ]
            self._host.set_handler(PROTOCOL, self._answer)
            try:
                for connection in self._host.connections():
                    review(connection.peer_id)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._host.remove_handler(PROTOCOL)
                for each in undo:
                    each()

    # --- as B -----------------------------------------------------------------------------------

    def _relayed(self, peer_id: PeerId) -> NetworkConnection | None:
        """Return the connection that is ours to upgrade, if there is one and none is direct."""
        connection = self._host.connection_to(peer_id)
        if connection is None or not connection.is_relayed or connection.direction == "outbound":
            return None
        return connection

    async def _upgrade(self, peer_id: PeerId) -> None:
        """Try from time to time, as long as the peer is relayed.

        A peer that did not know how to punch holes, and now says that it does, is tried at once:
        go-libp2p says so only when enough others have told it where it is seen.
        """
        knew = True
        try:
            while (relayed := self._relayed(peer_id)) is not None:
                now = trio.current_time()
                has_learnt = not knew and self._knows(peer_id)
                pause = 0.0 if has_learnt else self._retries.remaining(peer_id, now)
                if not self._host.protocols_of(peer_id):  # it has not introduced itself
                    patience = relayed.opened_at + self._settings.identify_timeout - now
                    pause = max(pause, patience)
                if not self._tried.has(peer_id, now):
                    pause = max(pause, 1 / self._settings.tries_per_second)
                if pause > 0:
                    self._under_way[peer_id] = changed = trio.Event()
                    with trio.move_on_after(pause):
                        await changed.wait()
                    continue
                self._tried.take(peer_id, now)
                async with self._slots:
                    knew = self._knows(peer_id)
                    await self._try(relayed)
        finally:
            del self._under_way[peer_id]

    def _knows(self, peer_id: PeerId) -> bool:
        """Whether a peer says that it punches holes."""
        return PROTOCOL in self._host.protocols_of(peer_id)

    async def _try(self, relayed: NetworkConnection) -> None:
        """Dial the peer, and then punch, attempt after attempt."""
        peer_id = relayed.peer_id
        relayed.note = "a direct connection is being tried"
        if (direct := await self._dial(relayed)) is not None:
            self._succeed(relayed, direct, attempts=0)
            return
        own = self._own_addresses()
        opener = Opener(own, self._host.can_punch, self._settings)
        if not own:
            failure = HolePunchError("nobody has told this node yet where it can be dialled", {})
        elif not self._knows(peer_id):
            failure = HolePunchError(f"{peer_id} does not know how to punch holes", {})
        else:
            while opener.may_go_on:
                try:
                    plan = await self._exchange(relayed, opener)
                    await trio.sleep_until(plan.dial_at)
                    direct = await self._punch(peer_id, plan)
                except P2PNodeError as error:
                    if relayed.is_closed:  # which says nothing about the way between us
                        return
                    failure = _as_failure(error)
                    self._note_failure(peer_id, opener.attempt, failure)
                else:
                    self._succeed(relayed, direct, attempts=opener.attempt)
                    return
        pause = self._retries.fail(peer_id, trio.current_time())
        relayed.note = f"{failure}; tried again in {pause:.0f} s"
        self._host.events.emit(
            HolePunchFailed(
                peer_id=peer_id,
                attempts=opener.attempt,
                reason=str(failure),
                addresses=failure.reasons,
                retry_in=pause,
            )
        )

    async def _dial(self, relayed: NetworkConnection) -> NetworkConnection | None:
        """Dial the peer's public addresses: perhaps it is only we who cannot be dialled."""
        peer_id = relayed.peer_id
        known = self._host.addresses_of(peer_id)
        public = worth_dialling(known, lambda each: not is_relayed(each), self._settings)
        if not public:
            return None
        timeout = dial_patience(relayed.info().rtt, self._settings)
        try:
            return await self._host.connect(peer_id, public, direct=True, timeout=timeout)
        except (DialError, ProtocolError, ResourceLimitError):
            return None

    async def _exchange(self, relayed: NetworkConnection, opener: Opener) -> Plan:
        with trio.move_on_after(self._settings.exchange_timeout):
            stream = await relayed.open_stream([PROTOCOL], allow_limited=True)
            plan = None
            try:
                await stream.send_all(varint.prefixed(opener.begin(trio.current_time())))
                answer = await _receive(stream, self._settings.max_message)
                sync, plan = opener.receive_message(answer, trio.current_time())
                await stream.send_all(varint.prefixed(sync))
            finally:
                if plan is None:
                    stream.reset()
            await stream.aclose()
            return plan
        raise StreamResetError("the peer took too long to agree on a moment")

    # --- as A -----------------------------------------------------------------------------------

    async def _answer(self, stream: Stream) -> None:
        """Agree on a moment with a peer that we called over a relay, and dial it then."""
        relayed, peer_id = stream.connection, stream.peer_id
        if not isinstance(relayed, NetworkConnection) or not relayed.is_relayed:
            raise ProtocolError("holes are punched for relayed connections only")
        if relayed.direction != "outbound":
            raise ProtocolError("who was called over the relay is the one to punch")
        now = trio.current_time()
        if not self._answered.has(peer_id, now):
            raise ResourceLimitError(f"{peer_id} asks too often to be dialled")
        self._answered.take(peer_id, now)
        try:
            self._slots.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            raise ResourceLimitError("too many holes are being punched") from None
        try:
            plan = await self._agree(stream, self._attempts.count(peer_id, now))
            try:
                direct = await self._punch(peer_id, plan)
            except HolePunchError as failure:
                relayed.note = f"{failure}, in attempt {plan.attempt}"
                self._note_failure(peer_id, plan.attempt, failure)
            else:
                self._succeed(relayed, direct, attempts=plan.attempt)
        finally:
            self._slots.release_on_behalf_of(stream)

    async def _agree(self, stream: Stream, attempt: int) -> Plan:
        answerer = Answerer(attempt, self._own_addresses(), self._host.can_punch, self._settings)
        with trio.move_on_after(self._settings.exchange_timeout):
            while True:
                data = await _receive(stream, self._settings.max_message)
                answer = answerer.receive_message(data, trio.current_time())
                if isinstance(answer, Plan):
                    await stream.aclose()  # the dials are no business of the relay's
                    return answer
                await stream.send_all(varint.prefixed(answer))
        raise StreamResetError("the peer took too long to agree on a moment")

    # --- both -----------------------------------------------------------------------------------

    def _own_addresses(self) -> tuple[Multiaddr, ...]:
        """Choose the addresses to offer: those believed, and some that may work all the same.

        A node that has just come has been seen by its relay and few others. And behind a symmetric
        NAT nobody sees it where another one does; then the peer's own NAT needs just the IP address
        to let it in, unless it looks at ports, too.
        """
        seen = self._host.sightings()[::-1]  # the newest first,
        seen.sort(key=lambda each: -each[2])  # among those that as many agree on
        known = self._host.candidate_addresses
        unsure: list[Multiaddr] = []
        for kind, tail in _TAILS.items():
            places = [place.followed_by(tail) for _, place, _ in seen if place.kind == kind]
            fresh = [each for each in dict.fromkeys(places) if each not in known]
            unsure += fresh[:_MAX_UNSURE]
        return worth_dialling([*known, *unsure], self._host.can_punch, self._settings)

    async def _punch(self, peer_id: PeerId, plan: Plan) -> NetworkConnection:
        return await self._host.punch(
            peer_id, plan.addresses, is_client=plan.is_client, settings=self._settings
        )

    def _succeed(
        self, relayed: NetworkConnection, direct: NetworkConnection, *, attempts: int
    ) -> None:
        peer_id = relayed.peer_id
        seconds = direct.opened_at - relayed.opened_at
        how = f"by hole punching, attempt {attempts}" if attempts else "by dialling it"
        direct.is_punched = attempts > 0  # even if one side's listener took it in the end
        direct.note = f"made {how}, {seconds:.2f} s after the peer was connected over a relay"
        relayed.note = "replaced by a direct connection"
        self._retries.succeed(peer_id)
        self._attempts.forget(peer_id)
        self._host.events.emit(
            HolePunched(
                peer_id=peer_id,
                attempts=attempts,
                seconds=seconds,
                address=direct.remote_address,
            )
        )

    def _note_failure(self, peer_id: PeerId, attempt: int, failure: HolePunchError) -> None:
        self._host.events.emit(
            HolePunchAttemptFailed(
                peer_id=peer_id,
                attempt=attempt,
                reason=str(failure),
                addresses=failure.reasons,
            )
        )


def _as_failure(error: P2PNodeError) -> HolePunchError:
    return error if isinstance(error, HolePunchError) else HolePunchError(str(error), {})


async def _receive(stream: Stream, limit: int) -> bytes:
    data = await stream.receive_prefixed(limit)
    if data is None:
        raise ProtocolError("the stream ended before the exchange did")
    return data
