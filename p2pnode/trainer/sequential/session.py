"""Generation through a chain of blocks: sessions with hosts that may die, and what they were sent.

Each stage of the chain is a session with one host, which keeps the keys and values of the positions
it has seen (`p2pnode.experts.sessions`). The trainer keeps what it sent to each stage. When a host
dies, others open sessions for its blocks, are sent those positions again, and the step goes on: the
stages before and behind it notice nothing.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import trio

from p2pnode.config import SequentialSettings
from p2pnode.errors import (
    ConfigError,
    DeadlineExceededError,
    HostLostError,
    RemoteError,
    SchemaError,
)
from p2pnode.experts.sessions.client import Session, SessionClient
from p2pnode.trainer.judged import JudgedClient
from p2pnode.trainer.quorum import Attempt
from p2pnode.trainer.sequential.planner import Pass, Planner
from p2pnode.trainer.sequential.routing import Hop
from p2pnode.trainer.sources import CallPolicy


class Sent:
    """What one stage was sent, for all positions: of shape (rows, length, hidden_size).

    Args:
        like: hidden states whose rows, features and dtype are those of all.
        length: positions there is room for.
    """

    def __init__(self, like: torch.Tensor, length: int) -> None:
        self._hidden = like.new_empty((like.shape[0], length, like.shape[2]))
        self.filled = 0

    def write(self, position: int, hidden: torch.Tensor) -> None:
        """Keep hidden states from `position` on; what was behind them counts no more."""
        self.filled = position + hidden.shape[1]
        self._hidden[:, position : self.filled] = hidden

    def until(self, position: int) -> torch.Tensor:
        """Return the hidden states before `position`."""
        return self._hidden[:, :position].contiguous()

    def reorder(self, order: Sequence[int], position: int) -> None:
        """Let each row i be what row `order[i]` was, before `position`."""
        self._hidden[:, :position] = self._hidden[list(order), :position]


class _LapsedError(Exception):
    """A session was over when its next step came."""


@dataclass(slots=True, eq=False)
class _Stage:
    hop: Hop
    sent: Sent
    session: Session | None = None  # None before it is opened, and after it was lost


class ChainSession(trio.abc.AsyncResource):
    """Sequences that grow position by position, through the blocks of a chain.

    Args:
        client: judges the hosts.
        opener: opens sessions with them.
        planner: finds them.
        ends: the first block, and the one behind the last.
        length: positions of the longest sequence.
        policy: the timeout of a step, replays included.
        settings: limits.
    """

    def __init__(
        self,
        client: JudgedClient,
        opener: SessionClient,
        planner: Planner,
        ends: tuple[int, int],
        *,
        length: int,
        policy: CallPolicy,
        settings: SequentialSettings,
    ) -> None:
        self._client = client
        self._opener = opener
        self._planner = planner
        self._start, self._stop = ends
        self._length = length
        self._policy = policy
        self._settings = settings
        self._stages: list[_Stage] = []
        self._position = 0
        self._turn = trio.Lock()

    @property
    def position(self) -> int:
        """How many positions the blocks have seen."""
        return self._position

    async def step(
        self,
        hidden: torch.Tensor,
        position: int | None = None,
        order: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Send hidden states of the next positions through the blocks.

        Args:
            hidden: of shape (rows, positions, hidden_size); the first step decides the rows.
            position: of the first of them, by default where the last step ended. An earlier one
                goes back: what was sent behind it is forgotten.
            order: for each row the one it goes on from, by default itself; for beam search.

        Returns:
            What the last block gives, of the same shape.

        Raises:
            SchemaError, TensorTooLargeError: the step does not fit; the session goes on.
            ConfigError: what was sent would be more than `sequential.kept_bytes`.
            NoLiveExpertError: a block had no live host for longer than the settings' patience.
            RemoteError: what the last host tried answered, when the time was over.
        """
        async with self._turn:
            start = self._position if position is None else position
            self._check(hidden, start)
            on_way = Pass.begin(self._policy)
            if not self._stages:
                await self._begin(hidden, on_way)
            if order is not None:
                for stage in self._stages:
                    stage.sent.reorder(order, start)
            number = 0
            while number < len(self._stages):  # there are more when a stage has to be split
                hidden = await self._advance(number, hidden, start, order, on_way)
                number += 1
            self._position = start + hidden.shape[1]
            return hidden

    async def aclose(self) -> None:
        """End the sessions; their hosts free what they hold."""
        for stage in self._stages:
            if stage.session is not None:
                with contextlib.suppress(RemoteError):  # its host is gone
                    await stage.session.aclose()
        self._stages.clear()

    def _check(self, hidden: torch.Tensor, start: int) -> None:
        if hidden.dim() != 3 or not hidden.shape[1]:
            raise SchemaError(
                f"a step takes (rows, positions, hidden_size), not {tuple(hidden.shape)}"
            )
        if not 0 <= start <= self._position:
            raise SchemaError(f"a step begins between 0 and {self._position}, not at {start}")
        if start + hidden.shape[1] > self._length:
            raise SchemaError(
                f"the session was opened for {self._length} positions; open a longer one"
            )

    async def _begin(self, hidden: torch.Tensor, on_way: Pass) -> None:
        route = await self._planner.route(self._start, self._stop, on_way)
        size = len(route) * hidden[:, 0].nbytes * self._length
        if size > self._settings.kept_bytes:
            raise ConfigError(
                f"to replay a session of {self._length} positions takes {size} bytes, more than"
                " sequential.kept_bytes; open a shorter one, or raise the setting"
            )
        self._stages = [_Stage(hop, Sent(hidden, self._length)) for hop in route]

    async def _advance(
        self,
        number: int,
        hidden: torch.Tensor,
        position: int,
        order: Sequence[int] | None,
        on_way: Pass,
    ) -> torch.Tensor:
        """Run a step through one stage, on its host or on another one.

        A session that is over when its next step comes may have been idle for too long: its host
        is asked for another one before it is taken to be dead.
        """
        while True:
            stage = self._stages[number]
            stage.sent.write(position, hidden)
            is_old = stage.session is not None and not stage.session.is_over
            try:
                if not is_old:
                    order = None  # what is sent again is in order
                    await self._open(number, hidden, position, on_way)
                return await self._send(stage, hidden, position, order, on_way, is_old=is_old)
            except _LapsedError:
                continue
            except RemoteError as error:
                on_way.receive_failure(stage.hop, error)
            await self._replace(number, hidden, on_way)

    async def _replace(self, number: int, hidden: torch.Tensor, on_way: Pass) -> None:
        """Find others for a stage's blocks; the first of them has what the stage was sent."""
        lost = self._stages[number]
        route = await self._planner.route(lost.hop.start, lost.hop.stop, on_way)
        sent = [lost.sent, *(Sent(hidden, self._length) for _ in route[1:])]
        self._stages[number : number + 1] = map(_Stage, route, sent)

    async def _open(self, number: int, hidden: torch.Tensor, position: int, on_way: Pass) -> None:
        """Open a stage's session, and bring it to `position`."""
        stage = self._stages[number]
        hop, uid = stage.hop, self._planner.uid(stage.hop.start)

        async def ask(limit: float) -> Session | SchemaError:
            try:
                return await self._opener.open(
                    hop.peer_id,
                    uid,
                    span=hop.span,
                    rows=len(hidden),
                    length=self._length,
                    codec=self._policy.codec,
                    timeout=limit,
                )
            except SchemaError as error:  # no other host would take such sequences
                return error

        limit = await self._planner.limit(hop, on_way)
        opened = await self._client.judge(
            hop.peer_id, uid, limit, Attempt(), ask, span=hop.span, timed=False
        )
        if isinstance(opened, SchemaError):
            raise opened
        stage.session = opened
        if position:
            again = stage.sent.until(position)
            behind = await self._send(stage, again, 0, None, on_way, is_old=False)
            after = self._stages[number + 1 : number + 2]
            if after and after[0].sent.filled < position:  # it was split off, and knows nothing
                after[0].sent.write(0, behind)

    async def _send(
        self,
        stage: _Stage,
        hidden: torch.Tensor,
        position: int,
        order: Sequence[int] | None,
        on_way: Pass,
        *,
        is_old: bool,
    ) -> torch.Tensor:
        """Send positions to a stage, not too many at once, and judge its host."""
        session, hop, book = stage.session, stage.hop, self._client.book
        assert session is not None, "it was opened"
        uid = self._planner.uid(hop.start)
        given = []
        give_up = await self._planner.limit(hop, on_way)
        try:
            for part in torch.split(hidden, self._settings.session_positions, dim=1):
                started = trio.current_time()
                book.recorder.started(hop.peer_id)
                given.append(
                    await session.step(
                        part.contiguous(), position=position, order=order, timeout=give_up - started
                    )
                )
                seconds = trio.current_time() - started
                self._planner.paces.receive_answer(hop.peer_id, hop.span, seconds)
                position += part.shape[1]
                order = None
        except SchemaError:
            raise
        except RemoteError as error:
            was_over = isinstance(error, HostLostError | DeadlineExceededError)
            if is_old and was_over and trio.current_time() < give_up:
                raise _LapsedError from error
            book.receive_failure(hop.peer_id, uid, error, span=hop.span)
            raise
        book.receive_success(hop.peer_id, uid, None)
        return torch.cat(given, dim=1)
