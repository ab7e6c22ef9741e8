"""Attacks on pub/sub: RPCs that are bombs, and peers that keep no rule of gossipsub."""

import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.config import KIB, MIB
from p2pnode.protocols.pubsub import PubSub, Subscription, Verdict
from p2pnode.protocols.pubsub.messages import (
    Control,
    Graft,
    IDontWant,
    IHave,
    Interest,
    IWant,
    Message,
    PeerHint,
    Prune,
    Rpc,
    encode,
)
from p2pnode.protocols.pubsub.signing import message_id, sign
from p2pnode.protocols.pubsub.state import GOSSIPSUB_1_2
from p2pnode.testing.hostile.arena import ECHO_PAUSE, Arena
from p2pnode.testing.hostile.attacker import Attack, Attacker
from p2pnode.testing.hostile.frames import FrameStream
from p2pnode.testing.hostile.messages import SOMEBODY, pour
from p2pnode.wire import varint
from p2pnode.wire.keys import PrivateKey
from p2pnode.wire.peer_id import PeerId

TOPIC: Final = "news"
STRICT: Final = "strict"  # a topic none of whose messages is valid
BIG: Final = "big"  # a topic on which the friend publishes more than a peer's windows hold
BIG_BYTES: Final = 20 * KIB
PATIENCE: Final = 5.0  # seconds for a message from the friend to the victim
BEAT: Final = 1.0  # seconds between what an attacker says that counts by heartbeats


class Gossip:
    """Pub/sub on a victim and its friend.

    Attributes:
        victim: subscribed to `TOPIC`, `STRICT` and `BIG`.
        delivered: how many of the friend's messages on `TOPIC` the victim has got, all of them.
    """

    def __init__(self, victim: PubSub, friend: PubSub) -> None:
        self.victim = victim
        self.delivered = 0
        self._friend = friend

    async def run(self) -> None:
        """Let the friend publish, and the victim get it, until cancelled."""
        subscription = self.victim.subscribe(TOPIC)
        self.victim.subscribe(STRICT, validator=lambda _message: Verdict.REJECT)
        self.victim.subscribe(BIG, queue=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, self._friend.subscribe(TOPIC))
            for number in itertools.count():
                await trio.sleep(ECHO_PAUSE)
                if not self._friend.peers_of(TOPIC):
                    continue  # the two have not met yet
                await self._friend.publish(BIG, bytes(BIG_BYTES))
                await self._friend.publish(TOPIC, b"%d" % number)
                with trio.fail_after(PATIENCE):
                    while (await subscription.receive()).data != b"%d" % number:
                        pass  # what attackers published, too
                self.delivered += 1


async def _drain(subscription: Subscription) -> None:
    while True:
        await subscription.receive()  # which no name may keep until the next one


@contextlib.asynccontextmanager
async def gossiping(field: Arena) -> AsyncIterator[Gossip]:
    """Run pub/sub between the victim and its friend until the block ends."""
    async with trio.open_nursery() as nursery:
        nodes = []
        for number, host in enumerate((field.victim, field.friend)):
            node = PubSub(host, host.key, rng=random.Random(number))
            await nursery.start(node.run)
            nodes.append(node)
        gossip = Gossip(*nodes)
        nursery.start_soon(gossip.run)
        yield gossip
        nursery.cancel_scope.cancel()


# --- RPCs that nobody can read ----------------------------------------------------------------


def _of_nothing(tag: bytes, room: int = MIB // 2 - 16) -> bytes:
    """Return as many empty fields as one RPC has room for."""
    return tag * room


MALFORMED: Final[dict[str, bytes]] = {
    "of a giant length": varint.encode(2**40),
    "of a length without end": b"\xff" * 100,
    "of garbage": varint.prefixed(b"\xff" * 4000),
    "of groups within groups": varint.prefixed(b"\x7b" * (MIB - 16)),
    "of half a million messages of nothing": varint.prefixed(_of_nothing(b"\x12\x00")),
    "of half a million topics without a name": varint.prefixed(_of_nothing(b"\x0a\x00")),
    "of half a million GRAFTs": varint.prefixed(
        b"\x1a" + varint.prefixed(_of_nothing(b"\x1a\x00"))
    ),
    "of a PRUNE with half a million peers": varint.prefixed(
        b"\x1a" + varint.prefixed(b"\x22" + varint.prefixed(_of_nothing(b"\x12\x00")))
    ),
    "of an IHAVE with half a million ids": varint.prefixed(
        b"\x1a" + varint.prefixed(b"\x0a" + varint.prefixed(_of_nothing(b"\x12\x00")))
    ),
    "by an author who is no peer": varint.prefixed(b"\x12\x04\x0a\x02\xff\xff"),
    "that stops half-way": varint.encode(4000) + bytes(100),
}


# --- peers that take part, and keep no rule ---------------------------------------------------


def rpc(
    *,
    topics: Iterable[str] = (),
    messages: Iterable[Message] = (),
    control: Iterable[Control] = (),
) -> bytes:
    """Return an RPC as it is sent: subscriptions, messages and control messages."""
    return varint.prefixed(
        encode(
            Rpc(
                subscriptions=tuple(Interest(each, wanted=True) for each in topics),
                messages=tuple(messages),
                control=tuple(control),
            )
        )
    )


@dataclass(frozen=True, slots=True)
class Member:
    """An attacker that takes part in pub/sub: the stream it sends on, and the victim's."""

    ours: FrameStream
    theirs: FrameStream


async def join(attacker: Attacker, *topics: str) -> Member:
    """Open a stream of pub/sub, and take the victim's, on which no window is ever granted."""
    ours = await attacker.talk(GOSSIPSUB_1_2)
    await ours.send(rpc(topics=topics))
    return Member(ours, await ours.wire.wait_opened(GOSSIPSUB_1_2))


def repeated(*rpcs: bytes, times: int, topics: Iterable[str] = (TOPIC,)) -> Attack:
    """Subscribe, then say the same again and again, once in a heartbeat."""

    async def attack(attacker: Attacker) -> None:
        member = await join(attacker, *topics)
        for _ in range(times):
            for each in rpcs:
                await pour(member.ours, each)
            await trio.sleep(BEAT)

    return attack


def at_once(data: bytes, *, topics: Iterable[str] = (TOPIC,)) -> Attack:
    """Subscribe, and say all of it as fast as the victim takes it."""

    async def attack(attacker: Attacker) -> None:
        member = await join(attacker, *topics)
        await pour(member.ours, data)
        await trio.sleep(10 * BEAT)

    return attack


def _ids(count: int) -> tuple[bytes, ...]:
    """Return ids of messages that do not exist."""
    return tuple(b"no such message %06d" % number for number in range(count))


def _names(count: int) -> tuple[PeerHint, ...]:
    """Return peers that do not exist."""
    keys = (PrivateKey.from_seed(number.to_bytes(32, "little")) for number in range(count))
    return tuple(PeerHint(key.peer_id) for key in keys)


def forged(number: int, *, author: PeerId | None = None, topic: str = TOPIC) -> Message:
    """Return a message whose signature is another one's."""
    true = sign(SOMEBODY, "another topic", b"", number)
    return Message(
        topic=topic,
        data=b"forged %d" % number,
        author=author or true.author,
        seqno=true.seqno,
        signature=true.signature,
    )


def genuine(number: int, *, topic: str = TOPIC, data: bytes = b"as it should be") -> Message:
    """Return a message as it should be, of somebody who is not here."""
    return sign(SOMEBODY, topic, data, number)


promises_not_kept: Final = repeated(rpc(control=[IHave(TOPIC, _ids(10))]), times=30)
grafts_in_the_backoff: Final = repeated(
    rpc(control=[Prune(TOPIC, backoff=3600)]), rpc(control=[Graft(TOPIC)]), times=30
)
grafts_of_an_outsider: Final = repeated(rpc(control=[Graft(TOPIC)]), times=3, topics=())
forgeries: Final = at_once(b"".join(rpc(messages=[forged(each)]) for each in range(10)))
invalid_messages: Final = at_once(
    b"".join(rpc(messages=[genuine(each, topic=STRICT)]) for each in range(10)),
    topics=(STRICT,),
)
oversized_message: Final = at_once(rpc(messages=[genuine(0, data=bytes(961 * KIB))]))
topics_without_end: Final = repeated(
    *(rpc(topics=[f"topic {n} {m}" for m in range(1000)]) for n in range(2)), times=1
)
topics_with_giant_names: Final = repeated(rpc(topics=["x" * 500_000]), times=1)
peers_that_do_not_exist: Final = repeated(
    rpc(control=[Graft(TOPIC)]), rpc(control=[Prune(TOPIC, _names(64), backoff=1)]), times=5
)
empty_rpcs: Final = at_once(bytes(20_000))
replayed_message: Final = at_once(rpc(messages=[genuine(0)]) * 3000)
ihave_flood: Final = at_once(rpc(control=[IHave(TOPIC, _ids(5000))]) * 30)
iwant_flood: Final = at_once(rpc(control=[IWant(_ids(5000))]) * 30)
idontwant_flood: Final = at_once(rpc(control=[IDontWant(_ids(5000))]) * 30)
flips: Final = at_once(
    varint.prefixed(b"".join(Interest(TOPIC, wanted=n % 2 == 0).encode() for n in range(2000))) * 5
)


async def valid_messages(attacker: Attacker) -> None:
    """Publish messages as they should be, as fast as the victim takes them."""
    stream = (await join(attacker, TOPIC)).ours
    for number in itertools.count(random.getrandbits(40)):  # others have come in earlier rounds
        await pour(stream, rpc(messages=[genuine(number)]))
        if stream.wire.is_over(stream.stream_id):
            return


async def an_rpc_that_never_ends(attacker: Attacker) -> None:
    """Send half an RPC, and fall silent."""
    member = await join(attacker, TOPIC)
    await pour(member.ours, varint.encode(MIB) + bytes(MIB // 2))
    await member.ours.wait_over()


async def in_the_victims_name(attacker: Attacker) -> None:
    """Publish a message that claims to be the victim's own."""
    member = await join(attacker, TOPIC)
    await member.ours.send(rpc(messages=[forged(1, author=attacker.victim)]))
    await trio.sleep(BEAT)


async def the_same_again_and_again(attacker: Attacker) -> None:
    """Ask a thousand times for a large message that the victim has, and take none of it."""
    member = await join(attacker, TOPIC)
    message = genuine(0, data=bytes(500 * KIB))
    await pour(member.ours, rpc(messages=[message]))
    await pour(member.ours, rpc(control=[IWant((message_id(message),))]) * 1000)
    await member.theirs.wait_over()


async def a_reader_that_never_reads(attacker: Attacker) -> None:
    """Join the mesh of a topic with much traffic, and take nothing of it."""
    member = await join(attacker, BIG)
    await member.ours.send(rpc(control=[Graft(BIG)]))
    await member.theirs.wait_over()


async def a_word_where_only_the_victim_speaks(attacker: Attacker) -> None:
    """Answer on the stream that is the victim's to write on."""
    member = await join(attacker)
    await member.theirs.send(rpc(topics=[TOPIC]))
    await member.theirs.wait_over()
