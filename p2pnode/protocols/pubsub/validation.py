"""Asking the application about messages, without letting it hold up the network.

A validator that is a plain function answers at once. One that takes time runs in a task of its
own, so many at once for the node and for a topic, and for a bounded time; a message that finds no
free place, or is not judged in time, is ignored, which is nobody's fault.
"""

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from p2pnode.config import PubSubSettings
from p2pnode.errors import ProtocolError
from p2pnode.protocols.pubsub.core import Verdict
from p2pnode.protocols.pubsub.subscription import PubSubMessage

Validator = Callable[[PubSubMessage], Verdict | Awaitable[Verdict]]
"""Judges a message. A `ProtocolError` that it raises, as decoders do, counts as a rejection."""


class Validation:
    """The validators of all topics, and their running.

    Args:
        settings: how many may run, and for how long.
        conclude: is told the verdict of those that take time.
    """

    def __init__(
        self, settings: PubSubSettings, conclude: Callable[[PubSubMessage, Verdict], None]
    ) -> None:
        self._settings = settings
        self._conclude = conclude
        self._validators: dict[str, Validator] = {}
        self._running: Counter[str] = Counter()
        self.overloaded = 0  # messages ignored for lack of room
        self.timed_out = 0

    @property
    def running(self) -> int:
        """How many validations are under way."""
        return self._running.total()

    def set_validator(self, topic: str, validator: Validator | None) -> None:
        """Judge a topic's messages by `validator` from now on, or accept them all."""
        if validator is None:
            self._validators.pop(topic, None)
        else:
            self._validators[topic] = validator

    def judge(self, message: PubSubMessage, nursery: trio.Nursery) -> Verdict | None:
        """Return the verdict on a message; None if `conclude` is going to be told it."""
        if (validator := self._validators.get(message.topic)) is None:
            return Verdict.ACCEPT
        try:
            answer = validator(message)
        except ProtocolError:
            return Verdict.REJECT
        if isinstance(answer, Verdict):
            return answer
        if (
            self.running >= self._settings.max_validations
            or self._running[message.topic] >= self._settings.max_validations_per_topic
        ):
            self.overloaded += 1
            if inspect.iscoroutine(answer):
                answer.close()
            return Verdict.IGNORE
        self._running[message.topic] += 1
        nursery.start_soon(self._wait_for, message, answer)
        return None

    async def _wait_for(self, message: PubSubMessage, answer: Awaitable[Verdict]) -> None:
        verdict = Verdict.IGNORE
        try:
            with trio.move_on_after(self._settings.validation_timeout) as scope:
                verdict = await answer
            self.timed_out += scope.cancelled_caught
        except ProtocolError:
            verdict = Verdict.REJECT
        finally:
            self._running[message.topic] -= 1
            if not self._running[message.topic]:
                del self._running[message.topic]
        self._conclude(message, verdict)
