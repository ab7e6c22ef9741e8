from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pnode.protocols.pubsub.messages import (
    Graft,
    IDontWant,
    IHave,
    Interest,
    IWant,
    Message,
    Prune,
    RpcLimits,
    decode,
)
from p2pnode.protocols.pubsub.outbox import Outbox

LIMITS = RpcLimits(1000, 1000, 1000)
WHOLE = 1 << 20


def push(outbox, piece, *, own=False):
    name = piece.data if isinstance(piece, Message) else b""
    return outbox.push(piece, piece.encode(), name, own=own)


def note(name, size=0):
    return Message(topic="t", data=name + bytes(size))


def taken(outbox, limit=WHOLE):
    rpc = outbox.take(limit)
    return None if rpc is None else decode(rpc, LIMITS)


def test_what_matters_most_goes_first():
    outbox = Outbox(100, 10_000)
    pieces = [IWant((b"w",)), IHave("t", (b"h",)), note(b"theirs"), IDontWant((b"d",)), Graft("t")]
    for piece in pieces:
        push(outbox, piece)
    push(outbox, note(b"ours"), own=True)
    push(outbox, Interest("t", wanted=True))
    order = []
    while (rpc := taken(outbox, 20)) is not None:
        order += [*rpc.subscriptions, *rpc.messages, *rpc.control]
    assert order == [
        Graft("t"),
        Interest("t", wanted=True),
        IDontWant((b"d",)),
        note(b"ours"),
        note(b"theirs"),
        IWant((b"w",)),
        IHave("t", (b"h",)),
    ]
    assert (len(outbox), outbox.size, outbox.dropped) == (0, 0, 0)


def test_many_pieces_make_one_rpc_with_one_control_message():
    outbox = Outbox(100, 10_000)
    for piece in (Graft("a"), Prune("b", (), 1), note(b"m"), IHave("t", (b"h",))):
        push(outbox, piece)
    rpc = taken(outbox)
    assert rpc.messages == (note(b"m"),)
    assert set(rpc.control) == {Graft("a"), Prune("b", (), 1), IHave("t", (b"h",))}
    assert taken(outbox) is None


def test_rpcs_are_split_at_the_limit_but_a_large_message_goes_alone():
    outbox = Outbox(100, 10_000)
    for n in range(4):
        push(outbox, note(b"%d" % n, 30))
    push(outbox, note(b"large", 500))
    sizes = []
    while (rpc := outbox.take(100)) is not None:
        sizes.append((len(rpc), len(decode(rpc, LIMITS).messages)))
    assert [count for _, count in sizes] == [2, 2, 1]
    assert all(size <= 100 for size, _ in sizes[:2])


def test_the_lesser_makes_room_for_what_matters_more():
    outbox = Outbox(3, 10_000)
    push(outbox, IHave("t", (b"h",)))
    push(outbox, note(b"theirs 1"))
    push(outbox, note(b"theirs 2"))
    assert push(outbox, note(b"ours 1"), own=True)
    assert push(outbox, note(b"ours 2"), own=True)
    assert not push(outbox, note(b"theirs 3"))
    assert not push(outbox, IWant((b"w",)))
    assert outbox.dropped == 4
    assert [each.data for each in taken(outbox).messages] == [b"ours 1", b"ours 2", b"theirs 2"]


def test_nothing_is_thrown_out_in_vain():
    outbox = Outbox(100, 200)
    push(outbox, note(b"ours", 150), own=True)
    push(outbox, note(b"theirs"))
    assert not push(outbox, note(b"more of ours", 150), own=True)
    assert len(taken(outbox).messages) == 2


def test_control_has_room_of_its_own_and_a_newer_one_replaces_the_older():
    outbox = Outbox(2, 10_000)
    push(outbox, note(b"a"))
    push(outbox, note(b"b"))
    assert push(outbox, Graft("t"))
    assert push(outbox, Prune("t", (), 5))
    assert push(outbox, Interest("t", wanted=True))
    assert push(outbox, Interest("t", wanted=False))
    assert not outbox.overflowed
    rpc = taken(outbox)
    assert rpc.control == (Prune("t", (), 5),)
    assert rpc.subscriptions == (Interest("t", wanted=False),)
    assert len(rpc.messages) == 2


def test_control_that_finds_no_room_is_not_dropped_in_silence():
    outbox = Outbox(2, 10_000)
    assert push(outbox, Graft("a"))
    assert push(outbox, Graft("b"))
    assert not push(outbox, Graft("c"))
    assert outbox.overflowed


def test_messages_the_peer_has_got_otherwise_are_taken_out():
    outbox = Outbox(100, 10_000)
    for name in (b"a", b"b", b"c"):
        push(outbox, note(name), own=name == b"a")
    assert outbox.cancel([b"a", b"c", b"unknown"]) == 2
    assert [each.data for each in taken(outbox).messages] == [b"b"]


def test_a_message_waits_once():
    outbox = Outbox(100, 10_000)
    push(outbox, note(b"a"))
    push(outbox, note(b"a"))
    assert len(outbox) == 1


class OutboxMachine(RuleBasedStateMachine):
    """Whatever is pushed, the bounds hold, the counts are right, and nothing else is lost."""

    def __init__(self):
        super().__init__()
        self.outbox = Outbox(6, 300)
        self.pushed = self.taken = self.cancelled = self.replaced = 0

    @rule(
        kind=st.sampled_from([Graft, Prune, Interest, IHave, IWant, IDontWant, Message]),
        name=st.integers(0, 8),
        size=st.integers(0, 120),
        own=st.booleans(),
    )
    def push(self, kind, name, size, own):
        piece = {
            Graft: lambda: Graft(f"t{name}"),
            Prune: lambda: Prune(f"t{name}", (), 3),
            Interest: lambda: Interest(f"t{name}", wanted=own),
            IHave: lambda: IHave("t", (bytes(size + 1),)),
            IWant: lambda: IWant((bytes(size + 1),)),
            IDontWant: lambda: IDontWant((bytes(size + 1),)),
            Message: lambda: note(b"%d" % name, size),
        }[kind]()
        before, dropped = len(self.outbox), self.outbox.dropped
        kept = self.outbox.push(piece, piece.encode(), b"%d" % name, own=own)
        overflow = not kept and kind in {Graft, Prune, Interest}
        gone = before + 1 - len(self.outbox) - (self.outbox.dropped - dropped) - overflow
        assert gone in {0, 1}  # 1 if it took the place of an equal one
        assert self.outbox.overflowed or not overflow

    @rule(name=st.integers(0, 8))
    def cancel(self, name):
        before = len(self.outbox)
        assert self.outbox.cancel([b"%d" % name]) == before - len(self.outbox)

    @rule(limit=st.integers(30, 200))
    def take(self, limit):
        before = len(self.outbox)
        rpc = self.outbox.take(limit)
        assert (rpc is None) == (before == 0)
        if rpc is not None:
            said = decode(rpc, LIMITS)
            count = len(said.subscriptions) + len(said.messages) + len(said.control)
            assert count == before - len(self.outbox) > 0
            assert len(rpc) <= limit or count == 1

    @invariant()
    def bounds_hold(self):
        assert len(self.outbox) <= 12
        assert 0 <= self.outbox.size <= 600
        assert (len(self.outbox) == 0) == (self.outbox.size == 0)


OutboxMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestOutboxMachine = OutboxMachine.TestCase
