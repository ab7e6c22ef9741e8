"""Reduces tensors with groups of peers: `/p2pnode/averaging/1.0.0`.

Butterfly all-reduce: the elements are cut in parts, each member sends each part to the member that
reduces it, straight from the tensors' memory, and gets it back reduced. So every member sends and
receives about twice the tensors' size, however many there are.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import torch
import trio

from p2pnode.clock import wall_time
from p2pnode.config import AveragingSettings
from p2pnode.errors import (
    ConfigError,
    ConnectionClosedError,
    DeadlineExceededError,
    P2PNodeError,
    RoundError,
    StreamResetError,
)
from p2pnode.host import Host, Stream
from p2pnode.host.ranking import is_relayed
from p2pnode.rpc.access import Access
from p2pnode.rpc.authority import Authority
from p2pnode.rpc.budget import Budget
from p2pnode.rpc.codecs.worker import Transcoder
from p2pnode.swarm.averaging.elements import Reducible
from p2pnode.swarm.averaging.group import Group
from p2pnode.swarm.averaging.matchmaking import Candidate
from p2pnode.swarm.averaging.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    Join,
    Refusal,
    decode_join,
    encode_answer,
)
from p2pnode.swarm.averaging.round import Reduced, ReducingEnded, Round
from p2pnode.swarm.averaging.terms import rounded
from p2pnode.wire.peer_id import PeerId

__all__ = ["AllReduce", "Reduced", "ReducingEnded"]

_Key = tuple[str, bytes]  # a run, and a round of it as this node names it
_SMOOTHING: Final = 0.3  # weight of the newest round in the rate of sending


class AllReduce:
    """Takes part in rounds of reducing, from its construction until `close`.

    Args:
        host: the network.
        access: the way to other members.
        authority: says who may take part: members of the run who may host.
        settings: limits and times.
        budget: of tensors and calls; the node's, as `TensorServer` has it.
        transcoder: encodes and decodes; likewise.
    """

    def __init__(
        self,
        host: Host,
        access: Access,
        authority: Authority,
        settings: AveragingSettings,
        *,
        budget: Budget,
        transcoder: Transcoder,
    ) -> None:
        self._host = host
        self._access = access
        self._authority = authority
        self._settings = settings
        self._budget = budget
        self._transcoder = transcoder
        self._rounds: dict[_Key, Round] = {}
        self._over: OrderedDict[_Key, None] = OrderedDict()
        self._begun = trio.Event()  # another one has begun
        self._upload = 0.0
        host.set_handler(PROTOCOL, self._serve)

    def close(self) -> None:
        """Take no more contributions; rounds under way go on until they fail."""
        self._host.remove_handler(PROTOCOL)

    async def reduce(
        self,
        group: Group,
        tensors: Sequence[torch.Tensor],
        *,
        weight: float = 1.0,
        quorum: int = 2,
        timeout: float | None = None,
        on_result: Callable[[Reduced], None] = lambda _reduced: None,
    ) -> Reduced:
        """Reduce tensors with the other members of a group, all of whom call this.

        Members that are lost meanwhile are left out. The result is of the whole contributions of
        those that it names, for all elements alike, and bit for bit the same at every member that
        names the same ones. All members that have a result name the same ones, unless messages
        took longer than the timeouts between them; who was left out may be given it, too, and is
        not among them. What is given is never written.

        Args:
            group: the same at all members, but for members that some do not know of: those
                are left out.
            tensors: this member's contribution: floats, of the same shapes and dtypes at all
                members. They must not change until the round ends.
            weight: of this contribution in sums and means.
            quorum: how many contributions the result must be of; a group of one needs one.
            timeout: seconds for the whole round; `averaging.round_timeout` by default.
            on_result: called once with the result as soon as it is here, while the round goes on
                until the others have theirs. They may be given it from these tensors, which must
                not change before.

        Raises:
            AveragingError: there is no result: too few members are left, the others went on
                without this node, or time is up. The text says what became of whom.
            ConfigError: this node is not in the group, the round is under way here or is over,
                or weight or quorum are none.
            SchemaError: the tensors cannot be reduced.
            NonFiniteError: they hold NaN or infinite values.
            NotAMemberError: this node is no member of the run.
        """
        own = self._host.peer_id
        if all(member.peer_id != own for member in group.members):
            raise ConfigError("this node is not in the group; only members can reduce with it")
        if not 0 < weight < float("inf") or not 1 <= quorum <= max(2, len(group.members)):
            raise ConfigError("a weight is finite and above 0, and a quorum 1 to the group's size")
        key = group.run_id, group.id_at(own)
        if key in self._rounds or key in self._over:
            raise ConfigError("a round of this id has begun here before; name each round anew")
        if len(self._rounds) >= self._settings.rounds_at_once:
            raise ConfigError(
                f"{len(self._rounds)} rounds are under way; averaging.rounds_at_once allows no more"
            )
        membership = self._access.membership(group.run_id)
        reducible = Reducible(tensors, self._settings.max_bytes)
        current = self._rounds[key] = Round(
            group,
            own,
            reducible,
            weight=weight,
            quorum=min(quorum, len(group.members)),
            token=membership.token,
            access=self._access,
            settings=self._settings,
            transcoder=self._transcoder,
            on_complete=lambda: on_result(current.finish()),
        )
        self._begun.set()
        self._begun = trio.Event()
        began = trio.current_time()
        failure: str | None = "Cancelled"
        try:
            with trio.move_on_after(self._settings.round_timeout if timeout is None else timeout):
                await current.run()
            reduced = current.finish()
            failure = None
        except P2PNodeError as error:
            failure = type(error).__name__
            raise
        else:
            return reduced
        finally:
            current.end()
            del self._rounds[key]
            self._note_upload(current.upload)
            self._over[key] = None
            if len(self._over) > self._settings.rounds_remembered:
                self._over.popitem(last=False)
            self._host.events.emit(
                ReducingEnded(
                    run_id=group.run_id,
                    round_id=group.round_id,
                    members=len(group.members),
                    contributors=current.contributors,
                    attempts=current.attempts,
                    bytes=reducible.ours.nbytes,
                    seconds=trio.current_time() - began,
                    error=failure,
                )
            )

    @property
    def upload(self) -> int:
        """The bytes a second that this node sends in rounds, rounded; 0 if that is not known."""
        return rounded(self._upload)

    def _note_upload(self, rate: float) -> None:
        if rate:
            self._upload += (rate - self._upload) * (_SMOOTHING if self._upload else 1.0)

    def candidates(self, peer_ids: Iterable[PeerId]) -> list[Candidate]:
        """Return what this node knows of peers that it may reduce with, itself among them or not.

        Members need not know the same: of two views the one counts in which a peer reduces less.
        """
        return [
            Candidate(peer_id=peer_id, is_reachable=self._is_reachable(peer_id))
            for peer_id in peer_ids
        ]

    def _is_reachable(self, peer_id: PeerId) -> bool:
        """Whether a peer can be dialled directly, as far as this node can tell."""
        if peer_id == self._host.peer_id:
            return any(not is_relayed(address) for address in self._host.addresses)
        connection = self._host.connection_to(peer_id)
        if connection is not None and not connection.is_relayed:
            return True
        addresses = self._host.addresses_of(peer_id)
        return not addresses or any(not is_relayed(address) for address in addresses)

    # --- for other members ----------------------------------------------------------------------

    async def _serve(self, stream: Stream) -> None:
        try:
            with self._budget.call(stream.peer_id) as charge:
                join = await self._receive_join(stream)
                current = await self._round(join)
                await current.serve(stream, join, charge)
        except (StreamResetError, ConnectionClosedError):
            raise
        except P2PNodeError as error:
            with trio.move_on_after(self._settings.patience):
                await stream.send_all(encode_answer(Refusal(error=error)))

    async def _receive_join(self, stream: Stream) -> Join:
        data: bytes | None = None
        with trio.move_on_after(self._settings.patience) as scope:
            data = await stream.receive_prefixed(MAX_MESSAGE_BYTES)
        if scope.cancelled_caught:
            raise DeadlineExceededError("the contribution took too long to begin")
        if data is None:
            raise StreamResetError("the member has nothing to contribute")
        join = decode_join(data)
        self._authority.authorise(stream.peer_id, join.run_id, join.token, "host", wall_time())
        return join

    async def _round(self, join: Join) -> Round:
        """Return the round that a contribution is for, when it begins here."""
        key = join.run_id, join.round_id
        with trio.move_on_after(self._settings.arrival_timeout):
            while (found := self._rounds.get(key)) is None:
                if key in self._over:
                    raise RoundError("this round is over here; come earlier to the next one")
                await self._begun.wait()
            return found
        raise RoundError("this round has not begun here; are both of the same swarm?")
