"""Checks of pub/sub."""

import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from p2pnode.protocols.pubsub import Subscription
from p2pnode.testing.peer.checks.target import Facts, Target
from p2pnode.testing.peer.node import PING, PONG, TOPIC

MESSAGES: Final = 20
HELLO_INTERVAL: Final = 0.25  # seconds; the peer may not have heard of our subscription yet


async def check_gossipsub(target: Target) -> Facts:
    """Publish messages, each of which the peer answers with one of its own."""
    name = secrets.token_hex(8).encode()
    pubsub = target.peer.pubsub
    async with pubsub.subscribe(TOPIC) as messages:
        hello = name + b"-hello"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_repeat, lambda: pubsub.publish(TOPIC, PING + hello))
            await _hear(messages, target, [hello])
            nursery.cancel_scope.cancel()
        texts = [name + b"-%d" % number for number in range(MESSAGES)]
        for text in texts:
            await pubsub.publish(TOPIC, PING + text)
        await _hear(messages, target, texts)
    return {"messages": MESSAGES}


async def _hear(messages: Subscription, target: Target, texts: Iterable[bytes]) -> None:
    """Wait until the peer has answered each of `texts`."""
    missing = {PONG + text for text in texts}
    while missing:
        message = await messages.receive()
        if message.source == target.peer_id:
            missing.discard(message.data)


async def _repeat(publish: Callable[[], Awaitable[bytes]]) -> None:
    while True:
        await publish()
        await trio.sleep(HELLO_INTERVAL)
