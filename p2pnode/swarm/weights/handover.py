"""One host gives an expert to another one, no step lost: `/p2pnode/handover/1.0.0`.

Both sides begin and end with an expert that exactly one of them serves. The giver lets calls wait,
makes the last version, and refuses calls only when the taker has said that it serves; if it does
not say so, the giver goes on as if nothing had been.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final as Constant
from typing import TypeVar

import trio

from p2pnode.clock import wall_time
from p2pnode.config import Settings
from p2pnode.errors import (
    CallError,
    DeadlineExceededError,
    DialError,
    HostLostError,
    LocalError,
    OverloadedError,
    P2PNodeError,
    PermissionDeniedError,
    ProtocolError,
    RemoteError,
    StorageError,
    TransferError,
    UnknownExpertError,
)
from p2pnode.events import Event
from p2pnode.host import Stream
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.swarm.places import SPAN
from p2pnode.swarm.weights.followers import Followers
from p2pnode.swarm.weights.following import Following
from p2pnode.swarm.weights.local import LocalExperts
from p2pnode.swarm.weights.messages import MAX_MESSAGE_BYTES, Hello, decode_hello
from p2pnode.swarm.weights.offers import (
    MAX_OFFER_BYTES,
    PROTOCOL,
    Claim,
    Declined,
    Final,
    Handover,
    Keep,
    Offer,
    Take,
    Taken,
    decode_handover,
    encode_handover,
)
from p2pnode.swarm.weights.session import greeted
from p2pnode.swarm.weights.standby import distance
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import Uid

H = TypeVar("H", bound=Handover)
G = TypeVar("G", bound=Handover)

_OUT_OF_TURN: Constant = "a message of a hand-over came out of turn"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertHandedOver(Event):
    """An expert is served by another host from now on, and not here."""

    level = "info"

    uid: Uid
    taker: PeerId
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTaken(Event):
    """An expert that another host served is served here from now on."""

    level = "info"

    uid: Uid
    giver: PeerId
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverFailed(Event):
    """A peer did not take over an expert; another one may, or it stays where it is."""

    level = "info"

    uid: Uid
    peer_id: PeerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUpFailed(Event):
    """Nobody knows whether other hosts have a newer state of an expert that is served now."""

    level = "warning"

    uid: Uid
    reason: str


class Handovers:
    """Gives experts to other hosts and takes theirs, from its construction until `close`.

    Args:
        local: the node's experts.
        following: which of them stand by.
        followers: the replicas that other nodes keep of them.
        authority: says who may take part.
        access: the way to other hosts.
        settings: timeouts.
    """

    def __init__(
        self,
        local: LocalExperts,
        following: Following,
        followers: Followers,
        *,
        authority: Authority,
        access: Access,
        settings: Settings,
    ) -> None:
        self._local = local
        self._following = following
        self._followers = followers
        self._authority = authority
        self._access = access
        self._settings = settings.hosting
        self._timeout = settings.weights.request_timeout
        self._under_way: set[Uid] = set()
        self._limiter = trio.CapacityLimiter(settings.hosting.handovers_at_once)
        local.host.set_handler(PROTOCOL, self._serve)

    def close(self) -> None:
        """Take part in no more of them; those under way go on."""
        self._local.host.remove_handler(PROTOCOL)

    # --- giving ---------------------------------------------------------------------------------

    async def leave(self, uids: Iterable[Uid]) -> list[Uid]:
        """Give experts that are served here to their replicas, or to other hosts of theirs.

        What nobody takes is withdrawn, and goes on being served to those who know of it.

        Returns:
            Those that another host serves now; calls of them are refused here.
        """
        given: list[Uid] = []

        async def give(uid: Uid) -> None:
            async with self._limiter:
                if await self._give(uid):
                    given.append(uid)
                else:
                    self._local.announcer.remove([uid])

        async with trio.open_nursery() as nursery:
            for uid in uids:
                nursery.start_soon(give, uid)
        return given

    async def _give(self, uid: Uid) -> bool:
        """Offer an expert to one peer after the other, replicas first."""
        replicas = sorted(
            self._followers.of(uid, trio.current_time()), key=lambda each: distance(each, uid)
        )
        for peer_id in dict.fromkeys([*replicas, *await self._local.hosts(uid)]):
            try:
                async with self._talking(peer_id, uid.run) as talk:
                    await talk.say(Offer(uid=uid, steps=self._local.experts.steps(uid)))
                    await talk.hear(Take)
                    await self._hand_over(uid, talk)
            except RemoteError as error:
                self._local.host.events.emit(
                    HandoverFailed(uid=uid, peer_id=peer_id, reason=str(error))
                )
            else:
                return True
        return False

    async def _hand_over(self, uid: Uid, talk: "_Talk") -> None:
        """Let calls wait, give the last version away, and stand aside once it is served.

        Raises:
            RemoteError: it is not; calls go on here.
        """
        is_host = talk.peer_id in await self._local.hosts(uid)
        with self._alone(uid):
            async with self._local.gate.holding(uid):
                try:
                    steps = await self._give_last(uid, talk, is_host=is_host)
                except trio.Cancelled:  # this node stops: it takes no step after the last version
                    self._local.gate.close([uid])
                    raise
                self._local.stand_aside([uid])
        self._followers.forget(uid)
        self._local.host.events.emit(ExpertHandedOver(uid=uid, taker=talk.peer_id, steps=steps))

    async def _give_last(self, uid: Uid, talk: "_Talk", *, is_host: bool) -> int:
        manifest = await self._local.publisher.newest(uid, complete=True, exact=True)
        await talk.say(Final(state=manifest.name, steps=manifest.steps))
        try:
            return (await talk.hear(Taken, within=self._settings.handover_timeout)).steps
        except RemoteError:
            # Its last word may be lost. Who was no host before, and is one now, serves the expert.
            if is_host or talk.peer_id not in await self._local.hosts(uid, anew=True):
                raise
            return manifest.steps

    # --- taking ---------------------------------------------------------------------------------

    async def catch_up(self, uids: Iterable[Uid]) -> list[Uid]:
        """Before some experts are served: take over what others have learnt meanwhile.

        From replicas that stand in they are taken; of other hosts the newest state is adopted, in
        the codec that is declared for the swarm.
        Where that fails, an event says so, and the experts are to be served as they are, but for
        those that have learnt nothing here while this node's disk takes no state of others. What
        others say alone keeps nobody from serving.

        Returns:
            The experts that had better not be served before they have a state.
        """
        without_room: list[Uid] = []

        async def catch_up(uid: Uid) -> None:
            async with self._limiter:
                with trio.move_on_after(self._settings.handover_timeout) as scope:
                    if not await self._catch_up(uid):
                        without_room.append(uid)
                if scope.cancelled_caught:
                    self._tell_behind(uid, "it took too long")

        uids = list(uids)
        # What this node knew before it was paused may be old. One question answers for neighbours.
        one_of_each = {(uid.run, uid.prefix, uid.coordinate // SPAN): uid for uid in uids}
        with trio.move_on_after(self._settings.handover_timeout):
            for uid in one_of_each.values():
                await self._local.hosts(uid, anew=True)
        async with trio.open_nursery() as nursery:
            for uid in uids:
                nursery.start_soon(catch_up, uid)
        return without_room

    async def _catch_up(self, uid: Uid) -> bool:
        """Take over an expert's state; False if it lacks one only for want of room on the disk."""
        kept: dict[PeerId, int] = {}
        failures: list[P2PNodeError] = []
        for peer_id in await self._local.hosts(uid):
            try:
                steps = await self._claim(uid, peer_id)
            except (RemoteError, LocalError) as error:
                failures.append(error)
                continue
            if steps is None:
                return True
            kept[peer_id] = steps
        for peer_id in sorted(kept, key=lambda each: -kept[each]):
            if kept[peer_id] <= self._local.experts.steps(uid):
                break
            try:
                head = await self._local.client.head(peer_id, uid, codec=self._local.codec(uid))
                await self._local.adopt(uid, head.name, head.steps, [peer_id], keep_own=True)
                break
            except (RemoteError, LocalError) as error:
                failures.append(error)
        if failures:
            self._tell_behind(uid, "; ".join(map(str, failures)))
        has_room = not any(isinstance(each, StorageError) for each in failures)
        return has_room or self._local.experts.steps(uid) > 0

    async def _claim(self, uid: Uid, peer_id: PeerId) -> int | None:
        """Take an expert from a replica that stands in; another host says how many steps it has."""
        async with self._talking(peer_id, uid.run) as talk:
            await talk.say(Claim(uid=uid, steps=self._local.experts.steps(uid)))
            answer = await talk.hear_either(Keep, Final)
            if isinstance(answer, Keep):
                return answer.steps
            await self._take(uid, answer, talk)
            return None

    async def _take(self, uid: Uid, final: Final, talk: "_Talk") -> None:
        """Go on from what another host has learnt, serve it, and say so.

        Raises:
            RemoteError, LocalError: it cannot be fetched, or does not fit; nothing has changed.
        """
        await self._local.adopt(uid, final.state, final.steps, [talk.peer_id], keep_own=True)
        await self._following.promote(uid)
        steps = self._local.experts.steps(uid)
        self._local.host.events.emit(ExpertTaken(uid=uid, giver=talk.peer_id, steps=steps))
        await talk.say(Taken(steps=steps))

    # --- being asked ----------------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        data = None
        with trio.move_on_after(self._timeout):
            data = await stream.receive_prefixed(MAX_MESSAGE_BYTES)
        if data is not None:
            hello = decode_hello(data)
            await self._answer(hello, _Talk(stream, hello.run_id, self._timeout))

    async def _answer(self, hello: Hello, talk: "_Talk") -> None:
        try:
            self._authority.authorise(talk.peer_id, hello.run_id, hello.token, "host", wall_time())
            request = await talk.hear_either(Offer, Claim)
            if isinstance(request, Offer):
                await self._receive_offer(request, talk)
            else:
                await self._receive_claim(request, talk)
        except (CallError, LocalError, TransferError) as error:
            await talk.say(Declined(error=error))

    async def _receive_offer(self, offer: Offer, talk: "_Talk") -> None:
        uid = offer.uid
        own = self._local.experts.steps(uid)
        if self._local.announcer.is_suspended:
            raise OverloadedError("this node is paused; offer the expert to another one")
        if uid in self._following:
            known: Sequence[PeerId] = self._following.hosts(uid)
        elif own >= offer.steps:
            raise PermissionDeniedError(
                f"this host serves {uid.name} with {own} steps, and goes on"
            )
        else:
            known = await self._local.hosts(uid)
        if talk.peer_id not in known:  # it may have come just now
            known = await self._local.hosts(uid, anew=True)
        if talk.peer_id not in known:
            raise PermissionDeniedError(f"you are not known to serve {uid.name}")
        with self._alone(uid):
            await talk.say(Take())
            await self._take(
                uid, await talk.hear(Final, within=self._settings.handover_timeout), talk
            )

    async def _receive_claim(self, claim: Claim, talk: "_Talk") -> None:
        uid = claim.uid
        if not self._local.gate.is_open(uid):
            raise UnknownExpertError(f"this host does not serve {uid.name} now; look up who does")
        if not self._following.stands_in(uid):
            await talk.say(Keep(steps=self._local.experts.steps(uid)))
            return
        await self._hand_over(uid, talk)
        self._following.add(uid, has_state=True)

    @contextlib.asynccontextmanager
    async def _talking(self, peer_id: PeerId, run_id: str) -> AsyncIterator["_Talk"]:
        """Open a stream to a peer that can be reached soon.

        Raises:
            DialError: it cannot.
            RemoteError: as `greeted`.
        """
        with trio.CancelScope(deadline=trio.current_time() + self._settings.reach_timeout) as scope:
            async with greeted(self._access, peer_id, run_id, PROTOCOL) as (stream, greeting):
                scope.deadline = math.inf
                yield _Talk(stream, run_id, self._timeout, greeting)
        if scope.cancelled_caught:
            raise DialError(f"{peer_id} was not reached in time")

    @contextlib.contextmanager
    def _alone(self, uid: Uid) -> Iterator[None]:
        """Have no other hand-over of an expert under way on this node.

        Raises:
            OverloadedError: there is one.
        """
        if uid in self._under_way:
            raise OverloadedError(f"{uid.name} is being handed over already; look up who serves it")
        self._under_way.add(uid)
        try:
            yield
        finally:
            self._under_way.discard(uid)

    def _tell_behind(self, uid: Uid, reason: str) -> None:
        self._local.host.events.emit(CatchUpFailed(uid=uid, reason=reason))


class _Talk:
    """The messages of one stream, one after the other."""

    def __init__(self, stream: Stream, run_id: str, timeout: float, greeting: bytes = b"") -> None:
        self._stream = stream
        self._run_id = run_id
        self._timeout = timeout
        self._unsent = greeting  # goes with the first message

    @property
    def peer_id(self) -> PeerId:
        """Who is at the other end."""
        return self._stream.peer_id

    async def say(self, message: Handover) -> None:
        """Send a message.

        Raises:
            DeadlineExceededError: it is not taken.
            StreamResetError, ConnectionClosedError: the other side is gone.
        """
        data, self._unsent = self._unsent + encode_handover(message), b""
        with trio.move_on_after(self._timeout) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"{self.peer_id} takes no message")

    async def hear(self, kind: type[H], *, within: float | None = None) -> H:
        """Wait for a message of this kind, as long as usual or `within` seconds.

        Raises:
            ProtocolError: another one came.
            DeadlineExceededError: none came.
            CallError: the other side declines.
            StreamResetError, ConnectionClosedError: it is gone.
        """
        message = await self._receive(self._timeout if within is None else within)
        if not isinstance(message, kind):
            raise ProtocolError(_OUT_OF_TURN)
        return message

    async def hear_either(self, one: type[H], other: type[G]) -> H | G:
        """Wait for a message of one of two kinds; raises as `hear` does."""
        message = await self._receive(self._timeout)
        if not isinstance(message, one | other):
            raise ProtocolError(_OUT_OF_TURN)
        return message

    async def _receive(self, timeout: float) -> Handover:
        with trio.move_on_after(timeout) as scope:
            data = await self._stream.receive_prefixed(MAX_OFFER_BYTES)
        if scope.cancelled_caught:
            raise DeadlineExceededError(f"{self.peer_id} did not answer within {timeout:g} s")
        if data is None:
            raise HostLostError(f"{self.peer_id} ended a hand-over in the middle")
        message = decode_handover(data, self._run_id)
        if isinstance(message, Declined):
            raise message.error
        return message
