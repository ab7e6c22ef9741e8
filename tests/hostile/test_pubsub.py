"""What becomes of peers that break the rules of pub/sub, while a friend's messages come through."""

import functools

import pytest

from p2pnode.config import MIB
from p2pnode.host import ConnectionEnded, PeerMisbehaved
from p2pnode.protocols.pubsub.info import PeerGivenUp
from p2pnode.protocols.pubsub.state import GOSSIPSUB_1_2
from p2pnode.testing.hostile import gossip, messages
from p2pnode.testing.hostile.arena import arena
from p2pnode.testing.hostile.trials import Case, withstand

BUSY = 8 * MIB  # the friend's messages are in the caches, too
MALFORMED_REASONS = {
    "of a giant length": "exceeds the limit",
    "of a length without end": "varint",
    "of garbage": "malformed RPC",
    "of groups within groups": "malformed RPC",
    "of half a million messages of nothing": "too many elements",
    "of half a million topics without a name": "too many elements",
    "of half a million GRAFTs": "too many elements",
    "of a PRUNE with half a million peers": "too many elements",
    "of an IHAVE with half a million ids": "too many elements",
    "by an author who is no peer": "malformed id",
    "that stops half-way": "ended inside an RPC",
}
SHUNNED = "its score is so low that it is no longer heard"
WITH_REASON = {
    "an RPC that never ends": (gossip.an_rpc_that_never_ends, "took longer than 60 s"),
    "messages promised and not sent": (gossip.promises_not_kept, "did not send it when asked"),
    "GRAFTs during the backoff": (gossip.grafts_in_the_backoff, "before its backoff is over"),
    "GRAFTs during the backoff, without end": (gossip.grafts_in_the_backoff, SHUNNED),
    "GRAFTs of who has not subscribed": (gossip.grafts_of_an_outsider, "none of those who may"),
    "forged signatures": (gossip.forgeries, "refused: its signature"),
    "forged signatures, without end": (gossip.forgeries, SHUNNED),
    "messages in the victim's name": (gossip.in_the_victims_name, "claims to be ours"),
    "invalid messages, without end": (gossip.invalid_messages, SHUNNED),
    "an oversized message": (gossip.oversized_message, "it is too large"),
    "topics without end": (gossip.topics_without_end, "subscribes to more than it may"),
    "topics with giant names": (gossip.topics_with_giant_names, "subscribes to more than it may"),
    "a word where only the victim speaks": (
        gossip.a_word_where_only_the_victim_speaks,
        "ours to write on",
    ),
}
UNPUNISHED = {
    "empty RPCs": gossip.empty_rpcs,
    "one message again and again": gossip.replayed_message,
    "IHAVE flood": gossip.ihave_flood,
    "IWANT flood": gossip.iwant_flood,
    "IDONTWANT flood": gossip.idontwant_flood,
    "subscriptions that flip": gossip.flips,
    "peers that do not exist": gossip.peers_that_do_not_exist,
    "stream after stream": functools.partial(
        messages.many_streams, protocol=GOSSIPSUB_1_2, count=200
    ),
}
NOT_READ = "does not read what we send"

CASES = [
    *(
        Case(
            name=f"an RPC {name}",
            attack=messages.said(GOSSIPSUB_1_2, data),
            event=PeerMisbehaved,
            reason=f"malformed RPC: .*{MALFORMED_REASONS[name]}"
            if MALFORMED_REASONS[name] != "malformed RPC"
            else "malformed RPC",
            survives=True,
            memory=BUSY,
        )
        for name, data in gossip.MALFORMED.items()
    ),
    *(
        Case(
            name=name,
            attack=attack,
            event=PeerMisbehaved,
            reason=f"pubsub: .*{reason}",
            survives=True,
            memory=BUSY,
        )
        for name, (attack, reason) in WITH_REASON.items()
    ),
    *(
        Case(name=name, attack=attack, survives=True, memory=BUSY)
        for name, attack in UNPUNISHED.items()
    ),
    Case(
        name="one broken RPC after the other",
        attack=functools.partial(messages.again_and_again, protocol=GOSSIPSUB_1_2),
        event=ConnectionEnded,
        reason="one rule after the other",
        memory=BUSY,
    ),
    Case(
        name="a reader that never reads",
        attack=gossip.a_reader_that_never_reads,
        event=PeerGivenUp,
        reason=NOT_READ,
        survives=True,
        memory=BUSY,
    ),
    Case(
        name="the same message asked for without end, and never read",
        attack=gossip.the_same_again_and_again,
        event=PeerGivenUp,
        reason=NOT_READ,
        survives=True,
        memory=BUSY,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_who_breaks_the_rules_of_pubsub_keeps_nobody_from_hearing_others(
    case, traced, autojump_clock
):
    async with arena(**case.settings) as field, gossip.gossiping(field) as heard:
        await withstand(case, field)
        assert heard.delivered > 10
