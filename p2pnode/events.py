"""The named facts a node emits: logs, metrics, the status page and tests read these.

An event is a frozen dataclass. Emitting is synchronous and never blocks: listeners are plain
functions that must return at once. A consumer that wants to wait takes a bounded subscription,
which drops the oldest events, and counts them, when its reader is slow.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, TypeVar

import trio

MAX_PENDING_EVENTS: Final = 1024  # per subscription; a slow reader loses the oldest, not the node


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A fact about the node, named by its class.

    `level` says who should see it without asking: nobody (`debug`), the log (`info`), or a person
    who may have to act (`warning`).
    """

    level: ClassVar[Literal["debug", "info", "warning"]] = "debug"


E = TypeVar("E", bound=Event)


class Subscription:
    """A bounded queue of events for one reader."""

    def __init__(self, limit: int) -> None:
        self._pending: deque[Event] = deque(maxlen=limit)
        self._arrived = trio.Event()
        self.dropped = 0

    def push(self, event: Event) -> None:
        """Queue `event`, dropping the oldest one when full."""
        if len(self._pending) == self._pending.maxlen:
            self.dropped += 1
        self._pending.append(event)
        self._arrived.set()

    async def get(self) -> Event:
        """Wait for the next event."""
        while not self._pending:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        return self._pending.popleft()


class EventBus:
    """Delivers each emitted event to the listeners of its class or of a base class."""

    def __init__(self) -> None:
        self._listeners: dict[type[Event], list[Callable[[Any], None]]] = {}
        self._plans: dict[type[Event], tuple[Callable[[Any], None], ...]] = {}  # made when needed

    def on(self, kind: type[E], listener: Callable[[E], None]) -> Callable[[], None]:
        """Call `listener` for each event of `kind`; returns a function that undoes it."""
        listeners = self._listeners.setdefault(kind, [])
        listeners.append(listener)
        self._plans.clear()

        def undo() -> None:
            with contextlib.suppress(ValueError):
                listeners.remove(listener)
                self._plans.clear()

        return undo

    def emit(self, event: Event) -> None:
        """Deliver `event` to its listeners, in the order they subscribed."""
        plan = self._plans.get(type(event))
        if plan is None:
            kinds = type(event).__mro__
            plan = tuple(each for kind in kinds for each in self._listeners.get(kind, ()))
            self._plans[type(event)] = plan
        for listener in plan:
            listener(event)

    @contextlib.contextmanager
    def subscribe(
        self, *kinds: type[Event], limit: int = MAX_PENDING_EVENTS
    ) -> Iterator[Subscription]:
        """Collect events of `kinds` (all events by default) while the block runs."""
        subscription = Subscription(limit)
        undo = [self.on(kind, subscription.push) for kind in kinds or (Event,)]
        try:
            yield subscription
        finally:
            for each in undo:
                each()
