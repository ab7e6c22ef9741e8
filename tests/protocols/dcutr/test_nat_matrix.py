"""Each NAT against each other one, over a way of 50 ms that loses packets."""

import itertools

import pytest
import trio

from p2pnode.protocols.dcutr.core import MAX_ATTEMPTS, HolePunched, HolePunchFailed
from p2pnode.testing.network import Nat

LOSS = 0.01
IN_TIME = 5.0

# A symmetric NAT sends from a port that nobody can know beforehand. The other side lets it in if it
# does not look at ports; and where that side's own ports are as unknown, nobody can even try.
LOOKS_AT_PORTS = {Nat.PORT_RESTRICTED, Nat.SYMMETRIC}
NATS = list(Nat)


def can_be_punched(one, other):
    return not (
        (one is Nat.SYMMETRIC and other in LOOKS_AT_PORTS)
        or (other is Nat.SYMMETRIC and one in LOOKS_AT_PORTS)
    )


PAIRS = list(itertools.product(NATS, NATS))
PUNCHABLE = [each for each in PAIRS if can_be_punched(*each)]
OTHERS = [each for each in PAIRS if not can_be_punched(*each)]


def names(pairs):
    return [f"{one.value}_x_{other.value}" for one, other in pairs]


def test_all_but_three_pairs_can_be_punched():
    assert len(PUNCHABLE) == 22
    assert set(OTHERS) == {
        (Nat.SYMMETRIC, Nat.SYMMETRIC),
        (Nat.SYMMETRIC, Nat.PORT_RESTRICTED),
        (Nat.PORT_RESTRICTED, Nat.SYMMETRIC),
    }


@pytest.mark.parametrize(("nat_a", "nat_b"), PUNCHABLE, ids=names(PUNCHABLE))
async def test_who_can_connect_directly_does(meet, say, autojump_clock, nat_a, nat_b):
    async with meet(nat_a, nat_b, loss=LOSS) as meeting:
        await meeting.call()
        punched = await meeting.until(meeting.b, HolePunched)
        assert punched.seconds < IN_TIME
        # A that has no NAT is simply dialled; all others are punched to, at the first attempt.
        assert punched.attempts == (0 if nat_a is Nat.NONE else 1)
        await trio.sleep(1)
        ours, theirs = meeting.ends()
        assert not ours.is_relayed
        assert not theirs.is_relayed
        assert {ours.direction, theirs.direction} == {"outbound", "inbound"}
        await say(ours)
        await say(theirs)


@pytest.mark.parametrize(("nat_a", "nat_b"), OTHERS, ids=names(OTHERS))
async def test_who_cannot_stays_relayed_and_knows_why(meet, say, autojump_clock, nat_a, nat_b):
    free = {"circuit_bytes": 0, "circuit_seconds": 0}
    async with meet(nat_a, nat_b, loss=LOSS, relay=free) as meeting:
        connection = await meeting.call()
        failed = await meeting.until(meeting.b, HolePunchFailed)
        assert failed.attempts == MAX_ATTEMPTS
        assert failed.addresses
        assert set(failed.addresses.values()) == {"no answer in time"}
        ours, theirs = meeting.ends()
        assert ours is connection
        assert ours.is_relayed
        assert theirs.is_relayed
        assert "no hole could be punched" in theirs.info().note
        await say(ours, bytes(100_000))
        await say(theirs, bytes(100_000))
