"""What becomes of peers that break the rules: one table, and what must hold for each row of it.

Each attack ends by a typed reason, costs bounded memory, leaves nothing behind, and a
well-behaved peer is served all the while. They run in memory and in virtual time, so that attacks
by patience take no longer than others; `test_over_tcp.py` has those that need sockets, and
`test_pubsub.py` those on pub/sub.
"""

import functools

import pytest

from p2pnode.config import MIB, DhtSettings
from p2pnode.errors import DialError, HandshakeError
from p2pnode.host import ConnectionEnded, PeerMisbehaved
from p2pnode.host.budgets import ResourceRefused
from p2pnode.host.connections import InboundStreamFailed
from p2pnode.mux.yamux.frames import Flag
from p2pnode.testing.hostile import handshakes, messages, negotiation, sessions
from p2pnode.testing.hostile.arena import DEAF, ECHO, arena
from p2pnode.testing.hostile.crowds import many_connections, silent_crowd
from p2pnode.testing.hostile.frames import frame
from p2pnode.testing.hostile.trials import Case, withstand

KAD = DhtSettings().protocol

SLOW = "took longer|no answer in time"
NEGOTIATION_REASONS = {
    "silence": SLOW,
    "hang-up": "hung up",
    "garbage": "malformed",
    "another protocol": "newline",
    "half a line": SLOW,
    "half a line and a hang-up": "hung up",
    "header alone": SLOW,
    "wrong header": "does not speak multistream",
    "oversized line": "of 1025 bytes",
    "line without end": "is not accepted",
    "line without length": "of 0 bytes",
    "line without newline": "newline",
    "line that is not text": "not text",
    "header replayed for ever": "more than 64 proposals|answered '/multistream",
    "proposals without end": "more than 64 proposals",
    "an answer to another question": "answered '/plaintext/1'",
    "refusal": "does not speak",
}
AS_LISTENER = negotiation.FAULTS + negotiation.DIALER_FAULTS
AS_DIALER = negotiation.FAULTS + negotiation.LISTENER_FAULTS

NEGOTIATIONS = [
    *(
        Case(
            name=f"security, dialling: {fault.name}",
            attack=negotiation.at_security(fault),
            event=PeerMisbehaved,
            reason=NEGOTIATION_REASONS[fault.name],
        )
        for fault in AS_LISTENER
    ),
    *(
        Case(
            name=f"security, dialled: {fault.name}",
            attack=negotiation.at_security(fault),
            error=DialError,
            reason=NEGOTIATION_REASONS[fault.name],
        )
        for fault in AS_DIALER
    ),
    *(
        Case(
            name=f"muxer, dialling: {fault.name}",
            attack=negotiation.at_muxer(fault),
            event=PeerMisbehaved,
            reason=NEGOTIATION_REASONS[fault.name],
        )
        for fault in AS_LISTENER
    ),
    *(
        Case(
            name=f"muxer, dialled: {fault.name}",
            attack=negotiation.at_muxer(fault),
            error=DialError,
            reason=NEGOTIATION_REASONS[fault.name],
        )
        for fault in AS_DIALER
    ),
    *(
        Case(
            name=f"stream: {fault.name}",
            attack=negotiation.at_stream(fault),
            event=InboundStreamFailed,
            reason=NEGOTIATION_REASONS[fault.name],
            survives=True,
        )
        for fault in AS_LISTENER
    ),
    Case(
        name="muxer: something else than was agreed on",
        attack=negotiation.muxer_garbage,
        event=PeerMisbehaved,
        reason="yamux version 165",
    ),
]

HANDSHAKE_REASONS = {
    "silence": SLOW,
    "garbage": "decrypt|degenerate|changed",
    "an empty message": "too short",
    "a short message": "too short",
    "a giant message": "too long",
    "half a message": SLOW,
    "a degenerate key": "degenerate|decrypt",
    "a changed bit": "decrypt",
    "a replay": "decrypt|too short",
}
# In the first message, nothing is encrypted yet: what is wrong with it shows in the third, which
# an attacker that does not know it never gets to send.
FIRST_MESSAGE = {"garbage": SLOW, "a changed bit": SLOW, "a replay": SLOW}
PAYLOAD_REASONS = {
    "no payload": "identity key",
    "garbage": "malformed",
    "another's identity": "did not prove",
    "a broken signature": "did not prove",
    "a key of no kind": "identity key",
    "a key that is too large": "too large",
    "groups within groups": "malformed",
    "a length beyond the end": "malformed",
    "muxers that are not text": "malformed",
    "a muxer that we do not have": "offers the muxers '/mplex/6.7.0'",
    "thousands of unknown muxers": "offers the muxers",
}


def _dial_error(reason):
    """The class of a failed dial: that of its cause where the peer is to blame for all of it."""
    return DialError if reason == SLOW or "muxers" in reason else HandshakeError


HANDSHAKES = [
    *(
        Case(
            name=f"noise message {number}: {name}",
            attack=handshakes.at_message(number, spoil),
            event=None if number == 2 else PeerMisbehaved,
            error=_dial_error(HANDSHAKE_REASONS[name]) if number == 2 else None,
            reason=(FIRST_MESSAGE if number == 1 else {}).get(name) or HANDSHAKE_REASONS[name],
        )
        for number in (1, 2, 3)
        for name, spoil in handshakes.SPOILS.items()
        if (number, name) != (2, "a replay")
    ),
    # It looks as if both had dialled at once: the smaller id dials again, the other one waits.
    Case(
        name="noise message 2: a replay",
        attack=handshakes.at_message(2, handshakes.SPOILS["a replay"]),
        error=(HandshakeError, DialError),
        reason=f"both|same time|{HANDSHAKE_REASONS['a replay']}|{SLOW}",
    ),
    *(
        Case(
            name=f"noise message {number}: a hang-up",
            attack=handshakes.at_message(
                number, handshakes.SPOILS["half a message"], hangs_up=True
            ),
            event=None if number == 2 else PeerMisbehaved,
            error=HandshakeError if number == 2 else None,
            reason="hung up",
        )
        for number in (1, 2, 3)
    ),
    *(
        Case(
            name=f"noise payload, {role}: {name}",
            attack=handshakes.with_payload(forge),
            event=None if role == "dialled" else PeerMisbehaved,
            error=_dial_error(PAYLOAD_REASONS[name]) if role == "dialled" else None,
            reason=PAYLOAD_REASONS[name],
        )
        for role in ("dialling", "dialled")
        for name, forge in handshakes.PAYLOADS.items()
    ),
    Case(
        name="noise: another peer than was dialled",
        attack=handshakes.as_somebody_else,
        error=HandshakeError,
        reason="answered where .* was expected",
    ),
    Case(
        name="noise frame: changed",
        attack=handshakes.changed_frame,
        event=PeerMisbehaved,
        reason="changed or replayed",
    ),
    Case(
        name="noise frame: replayed",
        attack=handshakes.replayed_frame,
        event=PeerMisbehaved,
        reason="changed or replayed",
    ),
    Case(
        name="noise frame: without its tag",
        attack=handshakes.frame_without_tag,
        event=PeerMisbehaved,
        reason="no room for its tag",
    ),
    Case(
        name="noise frame: half of it",
        attack=handshakes.half_a_frame,
        event=ConnectionEnded,
        reason="ended inside an encrypted frame",
    ),
    Case(
        name="noise frame: one that never ends",
        attack=handshakes.frame_that_never_ends,
        event=ConnectionEnded,
        reason="stopped answering",
    ),
    Case(
        name="noise frame: empty ones without end",
        attack=handshakes.empty_frames,
        event=PeerMisbehaved,
        reason="floods us",
    ),
]

FLOODED = "floods us"
SESSIONS = [
    Case(
        name="yamux: unknown version",
        attack=sessions.frames(b"\x01" + frame(2, 1, 0, 0)[1:]),
        event=PeerMisbehaved,
        reason="version 1",
    ),
    Case(
        name="yamux: unknown type",
        attack=sessions.frames(frame(4, 0, 1)),
        event=PeerMisbehaved,
        reason="type 4",
    ),
    Case(name="yamux: unknown flags", attack=sessions.unknown_flags, survives=True),
    Case(
        name="yamux: a stream's frame with the session's id",
        attack=sessions.frames(frame(0, Flag.SYN, 0)),
        event=PeerMisbehaved,
        reason="session's own id",
    ),
    Case(
        name="yamux: an id of the victim's",
        attack=sessions.wrong_parity,
        event=PeerMisbehaved,
        reason="an id of ours",
    ),
    Case(
        name="yamux: a stream opened twice",
        attack=sessions.open_twice,
        event=PeerMisbehaved,
        reason="twice",
    ),
    Case(
        name="yamux: window overflow",
        attack=functools.partial(sessions.window_overflow, protocol=DEAF),
        event=PeerMisbehaved,
        reason="with a window of",
    ),
    Case(
        name="yamux: giant frame",
        attack=sessions.giant_frame,
        event=PeerMisbehaved,
        reason="4294967295 bytes on a stream",
    ),
    Case(
        name="yamux: a grant of more than 32 bits",
        attack=functools.partial(sessions.grant_overflow, protocol=DEAF),
        event=PeerMisbehaved,
        reason="exceeds 32 bits",
    ),
    Case(
        name="yamux: data behind the end",
        attack=functools.partial(sessions.data_behind_the_end, protocol=DEAF),
        event=PeerMisbehaved,
        reason="behind the end",
    ),
    Case(
        name="yamux: data for dead streams",
        attack=functools.partial(sessions.dead_stream_data, protocol=ECHO),
        survives=True,
    ),
    Case(
        name="yamux: half a header and a hang-up",
        attack=functools.partial(sessions.half_a_header, hangs_up=True),
        event=ConnectionEnded,
        reason="the peer closed|broke",
    ),
    Case(
        name="yamux: half a header, then silence",
        attack=functools.partial(sessions.half_a_header, hangs_up=False),
        event=ConnectionEnded,
        reason="stopped answering",
    ),
    *(
        Case(
            name=f"yamux: go-away {code}",
            attack=sessions.frames(frame(3, 0, 0, code)),
            event=ConnectionEnded,
            reason=reason,
        )
        for code, reason in (
            (0, "the peer closed the connection"),
            (1, "this side broke the rules"),
            (2, "it failed itself"),
            (4711, "with code 4711"),
        )
    ),
    Case(
        name="yamux: SYN flood",
        attack=sessions.syn_flood,
        event=PeerMisbehaved,
        reason=FLOODED,
        memory=24 * MIB,  # 1024 streams wait for their negotiation
    ),
    Case(
        name="yamux: rapid reset", attack=sessions.rapid_reset, event=PeerMisbehaved, reason=FLOODED
    ),
    Case(
        name="yamux: ping flood", attack=sessions.ping_flood, event=PeerMisbehaved, reason=FLOODED
    ),
    Case(
        name="yamux: answers nobody asked for",
        attack=sessions.pong_flood,
        event=PeerMisbehaved,
        reason=FLOODED,
    ),
    Case(
        name="yamux: empty data flood",
        attack=sessions.empty_data_flood,
        event=PeerMisbehaved,
        reason=FLOODED,
    ),
    Case(
        name="yamux: empty grant flood",
        attack=sessions.empty_grant_flood,
        event=PeerMisbehaved,
        reason=FLOODED,
    ),
    Case(
        name="yamux: reset flood",
        attack=sessions.reset_flood,
        event=PeerMisbehaved,
        reason=FLOODED,
    ),
    Case(
        name="yamux: pings whose answers are never read",
        attack=sessions.pings_never_read,
        event=PeerMisbehaved,
        reason="floods us|faster than it reads",
    ),
    Case(
        name="yamux: echoes that are never read",
        attack=functools.partial(sessions.echo_never_read, protocol=ECHO),
        event=ConnectionEnded,
        reason="stopped answering|did not read",
        memory=64 * MIB,  # a window's worth on each of 64 streams
    ),
    Case(
        name="yamux: echoes that are never read, and signs of life",
        attack=functools.partial(sessions.echo_never_read, protocol=ECHO, alive=True),
        event=ConnectionEnded,
        reason="does not read what it is sent",
        memory=64 * MIB,
    ),
]

INTRODUCTION_REASONS = {
    "of 1 MB": "of 1048576 bytes exceeds",
    "of 1 MB in small messages": "too many identify messages",
    "of a length without end": "varint|length",
    "of garbage": "malformed",
    "of groups within groups": "malformed",
    "with a length beyond its end": "malformed",
    "that is not text": "malformed",
    "with another's key": "another key",
    "with another's record": "another peer",
    "with an envelope of garbage": "malformed",
    "with a record of another type": "payload type",
    "that stops half-way": "ended after 100 of 4000",
}
REQUEST_REASONS = {
    "of a giant length": "exceeds the limit",
    "of a length without end": "varint|length",
    "of garbage": "a protobuf ends inside",
    "of groups within groups": "unknown kind",
    "with half a million peers of nothing": "too many elements",
    "with half a million records": "too many elements",
    "with a peer of half a million addresses": "too many elements",
    "of an unknown type": "too many elements",
    "with a giant key": "too long",
    "with the record of another key": "another key",
    "with a record nobody can check": "",
    "that stops half-way": "ended after 102 of 4002",
}

MESSAGES = [
    *(
        Case(
            name=f"identify: an answer {name}",
            attack=messages.identify_answer(data),
            event=PeerMisbehaved,
            reason=INTRODUCTION_REASONS[name],
            survives=True,
        )
        for name, data in messages.INTRODUCTIONS.items()
    ),
    *(
        Case(
            name=f"identify: a push {name}",
            attack=messages.identify_push(data),
            event=PeerMisbehaved,
            reason=INTRODUCTION_REASONS[name],
            survives=True,
        )
        for name, data in messages.INTRODUCTIONS.items()
    ),
    Case(
        name="identify: a push of thousands of empty names",
        attack=messages.identify_push(messages.EMPTY_THINGS),
        survives=True,
    ),
    Case(
        name="identify: a push that never ends",
        attack=messages.identify_push(b"\xa0\x1f" + bytes(100), ends=False),
        event=InboundStreamFailed,
        reason="did not finish its push in time",
        survives=True,
    ),
    Case(
        name="identify: pushes without end",
        attack=messages.push_flood,
        event=PeerMisbehaved,
        reason="faster than anybody changes",
    ),
    *(
        Case(
            name=f"kad: a request {name}",
            attack=messages.said(KAD, data),
            event=PeerMisbehaved,
            reason=REQUEST_REASONS[name],
            survives=True,
            memory=8 * MIB,
        )
        for name, data in messages.REQUESTS.items()
    ),
    Case(
        name="kad: a request that never ends",
        attack=messages.said(KAD, messages.REQUESTS["that stops half-way"], ends=False),
        survives=True,
    ),
    Case(
        name="kad: answers that are never read",
        attack=functools.partial(messages.requests_never_read, protocol=KAD),
        survives=True,
        memory=16 * MIB,
    ),
    Case(
        name="kad: more streams than anybody needs",
        attack=functools.partial(messages.many_streams, protocol=KAD, count=200),
        survives=True,
        memory=8 * MIB,
    ),
    Case(
        name="kad: one broken request after the other",
        attack=functools.partial(messages.again_and_again, protocol=KAD),
        event=ConnectionEnded,
        reason="one rule after the other",
    ),
    Case(
        name="ping: half of one",
        attack=messages.half_a_ping,
        event=PeerMisbehaved,
        reason="inside a ping",
        survives=True,
    ),
    Case(
        name="ping: answers for which no window is granted",
        attack=messages.pings_never_read,
        event=InboundStreamFailed,
        reason="not used for too long",
        survives=True,
        settings={"idle_timeout": 30.0},
    ),
]

CROWDS = [
    Case(
        name="crowd: connections that say nothing",
        attack=functools.partial(silent_crowd, count=1000),
        event=ResourceRefused,
        reason="connections a second come from",
        memory=24 * MIB,
    ),
    Case(
        name="crowd: too many connections of one peer",
        attack=functools.partial(many_connections, count=20),
        event=ResourceRefused,
        reason="connections with one peer",
        survives=True,
        memory=8 * MIB,
    ),
]

CASES = [*NEGOTIATIONS, *HANDSHAKES, *SESSIONS, *MESSAGES, *CROWDS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_hostile_peer_is_stopped_and_the_others_are_served(case, traced, autojump_clock):
    async with arena(**case.settings) as field:
        await withstand(case, field)
