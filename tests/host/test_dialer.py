import contextlib
import math
import random
from dataclasses import replace

import pytest
import trio

from p2pnode.config import NetworkSettings
from p2pnode.errors import (
    DialError,
    HandshakeError,
    ResourceLimitError,
    SimultaneousOpenError,
    WrongPeerError,
)
from p2pnode.host.backoff import DialBackoff
from p2pnode.host.dialer import Dial, DialTools
from p2pnode.transport.base import RawConnection, Transport
from p2pnode.wire.addresses import parse_address, split_p2p, tcp_address, with_p2p
from p2pnode.wire.keys import PrivateKey

SMALLER, PEER, LARGER = sorted(PrivateKey.from_seed(bytes([n] * 32)).peer_id for n in range(3))
SETTINGS = NetworkSettings(dial_attempts_at_once=2, dial_stagger=0.25, dial_attempt_timeout=5.0)


class Streamless(trio.abc.AsyncResource):
    def __init__(self, closed, address):
        self._closed = closed
        self._address = address

    async def aclose(self):
        self._closed.append(self._address)
        await trio.lowlevel.checkpoint()


class Script(Transport):
    """A transport where each address takes a while and then works, fails, or meets a stranger."""

    def __init__(self, outcomes, names=None):
        self.outcomes = outcomes
        self.names = names or {}
        self.started = []
        self.ports = []  # of each dial, whether it may reuse one
        self.closed = []

    def can_dial(self, address):
        return "udp" not in str(address)

    async def resolve(self, address, peer_id):
        assert peer_id == PEER
        await trio.sleep(0.1)
        return self.names[address]

    async def dial(self, address, *, reuse_port=True):
        if "p2p-circuit" in str(address):
            address, target = split_p2p(address)
            assert target == PEER
        self.started.append((trio.current_time(), address))
        self.ports.append(reuse_port)
        delay, outcome = self.outcomes[address]
        await trio.sleep(delay)
        if outcome is not None:
            raise outcome
        stream = Streamless(self.closed, address)
        return RawConnection(stream=stream, local_address=address, remote_address=address)

    async def listen(self, address):
        raise NotImplementedError

    async def upgrade(self, raw, peer_id):
        assert peer_id == PEER
        await trio.lowlevel.checkpoint()
        return Won(raw)


class Won:
    def __init__(self, raw):
        self.raw = raw


def address(port):
    return tcp_address("10.0.0.1", port)


REFUSED = DialError("connection refused")


def dial_with(
    script,
    *,
    upgrade=None,
    settings=SETTINGS,
    backoff=None,
    rank=list,
    forget=None,
    own_id=SMALLER,
    direct=False,
):
    tools = DialTools(
        own_id=own_id,
        transports=[script],
        resolve=script.resolve,
        upgrade=upgrade or script.upgrade,
        backoff=DialBackoff(settings, random.Random(0)) if backoff is None else backoff,
        slots=trio.CapacityLimiter(settings.max_dials),
        direct_slots=trio.CapacityLimiter(settings.max_dials),
        settings=settings,
    )
    return Dial(PEER, tools, rank=rank, forget=forget or [].append, direct=direct)


async def run(script, addresses, *, timeout=10.0, insist=False, **options):
    dial = dial_with(script, **options)
    dial.offer(addresses, insist=insist)
    with dial.wanted_until(trio.current_time() + timeout):
        return dial, await dial.run()


async def test_the_first_address_that_works_wins_and_the_next_waits_its_turn(autojump_clock):
    script = Script({address(1): (0.2, None), address(2): (0.0, None)})
    _, winner = await run(script, [address(1), address(2)])
    assert winner.raw.remote_address == address(1)
    assert [each for _, each in script.started] == [address(1)]


async def test_a_slow_address_is_overtaken_by_the_next(autojump_clock):
    script = Script({address(1): (3.0, None), address(2): (0.1, None)})
    _, winner = await run(script, [address(1), address(2)])
    assert winner.raw.remote_address == address(2)
    assert script.started == [(0.0, address(1)), (0.25, address(2))]
    assert trio.current_time() == pytest.approx(0.35)


def relayed(port):
    return parse_address(f"/ip4/10.0.0.9/tcp/{port}/p2p/{LARGER}/p2p-circuit")


async def test_relays_wait_until_direct_addresses_had_their_head_start(autojump_clock):
    script = Script({address(1): (3.0, None), relayed(1): (3.0, None), relayed(2): (0.1, None)})
    _, winner = await run(
        script, list(script.outcomes), settings=replace(SETTINGS, dial_attempts_at_once=3)
    )
    assert winner.raw.remote_address == relayed(2)
    assert script.started == [(0.0, address(1)), (0.5, relayed(1)), (0.75, relayed(2))]


async def test_a_failure_does_not_shorten_the_head_start_of_another_direct_address(autojump_clock):
    script = Script({address(1): (0.3, REFUSED), address(2): (3.0, None), relayed(1): (0.1, None)})
    await run(script, list(script.outcomes))
    assert script.started == [(0.0, address(1)), (0.25, address(2)), (0.75, relayed(1))]


async def test_relays_begin_at_once_when_all_direct_addresses_have_failed(autojump_clock):
    script = Script({address(1): (0.1, REFUSED), relayed(1): (0.1, None)})
    await run(script, list(script.outcomes))
    assert script.started == [(0.0, address(1)), (0.1, relayed(1))]


async def test_a_direct_dial_leaves_relays_out(autojump_clock):
    script = Script({address(1): (0.1, REFUSED), relayed(1): (0.1, None)})
    dial, winner = await run(script, list(script.outcomes), direct=True)
    assert winner is None
    assert [each for _, each in script.started] == [address(1)]
    assert "it leads through a relay" in str(dial.failure)


async def test_a_failure_starts_the_next_address_at_once(autojump_clock):
    script = Script({address(1): (0.1, REFUSED), address(2): (0.1, None)})
    _, winner = await run(script, [address(1), address(2)])
    assert winner.raw.remote_address == address(2)
    assert trio.current_time() == pytest.approx(0.2)


async def test_only_so_many_addresses_are_tried_at_once(autojump_clock):
    script = Script({address(port): (4.0, REFUSED) for port in range(1, 5)})
    await run(script, list(script.outcomes), timeout=20)
    assert [time for time, _ in script.started] == pytest.approx([0.0, 0.25, 4.0, 4.25])


async def test_a_silent_address_gives_up_its_place(autojump_clock):
    silent = {address(1): (math.inf, None), address(2): (math.inf, None)}
    script = Script({**silent, address(3): (0.1, None)})
    _, winner = await run(script, [address(1), address(2), address(3)])
    assert winner.raw.remote_address == address(3)
    assert trio.current_time() == pytest.approx(5.1)


async def test_a_failure_lists_every_attempt(autojump_clock):
    script = Script({address(1): (0.0, REFUSED), address(2): (math.inf, None)})
    other = parse_address("/ip4/10.0.0.1/udp/1/quic-v1")
    dial, winner = await run(script, [address(1), address(2), other])
    assert winner is None
    assert isinstance(dial.failure, DialError)
    text = str(dial.failure)
    assert f"{PEER} could not be reached" in text
    assert f"{address(1)}: connection refused" in text
    assert f"{address(2)}: no answer within 5 s" in text
    assert f"{other}: this node has no transport" in text


async def test_addresses_not_reached_in_time_are_listed_too(autojump_clock):
    script = Script({address(port): (math.inf, None) for port in range(1, 4)})
    dial, winner = await run(script, list(script.outcomes), timeout=1.0)
    assert winner is None
    assert trio.current_time() == pytest.approx(1.0)
    assert f"{address(1)}: no answer in time" in str(dial.failure)
    assert f"{address(3)}: not tried in time" in str(dial.failure)


async def test_strangers_everywhere_are_a_handshake_error(autojump_clock):
    stranger = HandshakeError("another peer answers")
    dial, _ = await run(Script({address(1): (0.0, stranger)}), [address(1)])
    assert isinstance(dial.failure, HandshakeError)
    mixed = Script({address(1): (0.0, stranger), address(2): (0.0, REFUSED)})
    dial, _ = await run(mixed, [address(1), address(2)])
    assert isinstance(dial.failure, DialError)


async def test_a_stranger_at_one_address_does_not_hide_the_peer_at_another(autojump_clock):
    script = Script(
        {address(1): (0.0, HandshakeError("another peer answers")), address(2): (0.1, None)}
    )
    _, winner = await run(script, [address(1), address(2)])
    assert winner.raw.remote_address == address(2)


async def test_no_address_is_a_failure_of_its_own(autojump_clock):
    dial, winner = await run(Script({}), [])
    assert winner is None
    assert f"no address of {PEER}" in str(dial.failure)


async def test_a_name_is_replaced_by_what_it_means(autojump_clock):
    name = parse_address("/dns/node.example/tcp/1")
    script = Script(
        {address(1): (math.inf, None), address(2): (0.1, None), address(3): (0.0, None)},
        names={name: [address(1), address(2)]},
    )
    _, winner = await run(script, [name])
    assert winner.raw.remote_address == address(2)
    assert trio.current_time() == pytest.approx(0.1 + 0.25 + 0.1)


async def test_an_address_that_comes_late_still_counts(autojump_clock):
    script = Script({address(1): (2.0, REFUSED), address(2): (0.1, None)})
    dial = dial_with(script)
    dial.offer([address(1)])
    winners = []

    async def go():
        winners.append(await dial.run())

    with dial.wanted_until(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            await trio.sleep(1.0)
            dial.offer([with_p2p(address(2), PEER), address(1)])
    assert winners[0].raw.remote_address == address(2)
    assert trio.current_time() == pytest.approx(1.1)


async def test_of_two_winners_one_is_closed(autojump_clock):
    gate = trio.Event()
    script = Script({address(1): (0.0, None), address(2): (0.0, None)})

    async def upgrade(raw, _peer_id):
        await gate.wait()
        return Won(raw)

    dial = dial_with(script, upgrade=upgrade)
    dial.offer([address(1), address(2)])
    winners = []

    async def go():
        winners.append(await dial.run())

    with dial.wanted_until(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            await trio.sleep(1.0)
            gate.set()
    won = winners[0].raw.remote_address
    assert script.closed == [each for each in (address(1), address(2)) if each != won]


async def test_a_dial_nobody_wants_any_more_ends(autojump_clock):
    script = Script({address(1): (math.inf, None)})
    dial = dial_with(script)
    dial.offer([address(1)])
    async with trio.open_nursery() as nursery:
        with contextlib.ExitStack() as callers:
            callers.enter_context(dial.wanted_until(100))
            with dial.wanted_until(100):
                nursery.start_soon(dial.run)
                await trio.sleep(1)
            assert not dial.is_abandoned
        assert dial.is_abandoned
    assert trio.current_time() == pytest.approx(1.0)


async def test_the_longest_patience_of_all_callers_counts(autojump_clock):
    script = Script({address(1): (2.0, None)})
    dial = dial_with(script)
    dial.offer([address(1)])
    with dial.wanted_until(1.0), dial.wanted_until(3.0):
        assert await dial.run() is not None


async def test_a_refusal_after_the_race_is_what_callers_get():
    dial = dial_with(Script({}))
    dial.refuse(ResourceLimitError("full"))
    assert isinstance(dial.failure, ResourceLimitError)


# --- names, other peers' addresses, back-off ------------------------------------------------------


async def test_names_are_looked_up_beside_the_attempts_and_join_the_race(autojump_clock):
    name = parse_address("/dns/node.example/tcp/1")
    script = Script(
        {address(1): (math.inf, None), address(2): (math.inf, None), address(3): (0.0, None)},
        names={name: [address(3), address(1)]},
    )
    settings = NetworkSettings(dial_attempts_at_once=3, dial_stagger=0.25)
    _, winner = await run(
        script, [address(1), name, address(2)], rank=sorted_by_port, settings=settings
    )
    # The name is known after 0.1 s, which does not cut the head start of the first attempt short.
    assert script.started == [(0.0, address(1)), (0.25, address(2)), (0.5, address(3))]
    assert winner.raw.remote_address == address(3)


def sorted_by_port(addresses):
    return sorted(addresses, key=lambda each: int(each.value_for_protocol("tcp")))


async def test_a_dial_by_a_name_alone_waits_for_what_it_means(autojump_clock):
    name = parse_address("/dns/node.example/tcp/1")

    class Nameless(Script):
        async def resolve(self, address, peer_id):
            await trio.sleep(1)
            raise DialError("the name node.example cannot be resolved")

    dial, winner = await run(Nameless({}), [name])
    assert winner is None
    assert trio.current_time() == pytest.approx(1.0)
    assert "node.example cannot be resolved" in str(dial.failure)


async def test_addresses_that_name_another_peer_are_not_dialled(autojump_clock):
    other = PrivateKey.from_seed(b"o" * 32).peer_id
    script = Script({address(1): (0.0, None)})
    dial, winner = await run(script, [with_p2p(address(1), other)])
    assert (winner, script.started) == (None, [])
    assert f"it is an address of {other}" in str(dial.failure)


async def test_an_address_where_another_peer_answers_is_forgotten(autojump_clock):
    forgotten = []
    script = Script({address(1): (0.0, WrongPeerError("x answered where y was expected"))})
    dial, _ = await run(script, [address(1)], forget=forgotten.append)
    assert forgotten == [address(1)]
    assert isinstance(dial.failure, HandshakeError)


async def test_an_address_that_failed_is_left_alone_and_then_tried_again(autojump_clock):
    backoff = DialBackoff(NetworkSettings(dial_backoff=4.0), random.Random(0))
    script = Script({address(1): (0.0, REFUSED), address(2): (0.0, None)})
    await run(script, [address(1)], backoff=backoff)
    dial, winner = await run(script, [address(1)], backoff=backoff)
    assert winner is None
    assert len(script.started) == 1
    assert f"{address(1)}: backed off for another 4 s" in str(dial.failure)
    assert type(dial.failure) is DialError
    _, winner = await run(script, [address(1), address(2)], backoff=backoff)
    assert [each for _, each in script.started] == [address(1), address(2)]
    await trio.sleep(4)
    await run(script, [address(1)], backoff=backoff)
    assert [each for _, each in script.started] == [address(1), address(2), address(1)]


async def test_every_second_dial_of_an_address_that_fails_comes_from_another_port(autojump_clock):
    backoff = DialBackoff(NetworkSettings(), random.Random(0))
    script = Script({address(1): (0.0, REFUSED)})
    for _ in range(4):
        await run(script, [address(1)], backoff=backoff, insist=True)
    assert script.ports == [True, False, True, False]
    script.outcomes[address(1)] = (0.0, None)
    await run(script, [address(1)], backoff=backoff, insist=True)
    await run(script, [address(1)], backoff=backoff, insist=True)
    assert script.ports[4:] == [True, True]


async def test_who_insists_dials_it_all_the_same_and_success_clears_it(autojump_clock):
    backoff = DialBackoff(NetworkSettings(dial_backoff=4.0), random.Random(0))
    script = Script({address(1): (0.0, REFUSED)})
    await run(script, [address(1)], backoff=backoff)
    script.outcomes[address(1)] = (0.0, None)
    dial = dial_with(script, backoff=backoff)
    dial.offer([address(1)])
    dial.offer([], insist=True)  # a second caller, of a dial that has given the address up
    with dial.wanted_until(10):
        assert await dial.run() is not None
    assert len(backoff) == 0


async def test_refusals_by_our_own_budgets_back_off_nothing(autojump_clock):
    backoff = DialBackoff(SETTINGS, random.Random(0))
    await run(
        Script({address(1): (0.0, ResourceLimitError("full"))}), [address(1)], backoff=backoff
    )
    assert len(backoff) == 0


@pytest.mark.parametrize(("timeout", "noted"), [(4.0, 1), (1.0, 0)])
async def test_a_silent_address_is_noted_although_its_callers_are_impatient(
    autojump_clock, timeout, noted
):
    backoff = DialBackoff(SETTINGS, random.Random(0))
    script = Script({address(1): (math.inf, None)})
    await run(script, [address(1)], backoff=backoff, timeout=timeout)
    assert len(backoff) == noted


async def test_losers_of_the_race_are_not_backed_off(autojump_clock):
    backoff = DialBackoff(SETTINGS, random.Random(0))
    script = Script({address(1): (math.inf, None), address(2): (4.0, None)})
    await run(script, [address(1), address(2)], backoff=backoff)
    assert len(backoff) == 0


async def test_a_dial_cancelled_at_the_moment_it_is_won_closes_what_it_won(autojump_clock):
    script = Script({address(1): (1.0, None)})
    with trio.CancelScope() as outer:

        async def upgrade(raw, _peer_id):
            outer.cancel()  # whoever runs the dial is cancelled, and it is won all the same
            return Won(raw)

        dial = dial_with(script, upgrade=upgrade)
        dial.offer([address(1)])
        with dial.wanted_until(10):
            await dial.run()
    assert outer.cancelled_caught
    assert script.closed == [address(1)]


# --- both sides dial at the same instant -------------------------------------------------------


class Crossing(Script):
    """A transport whose connections from a reused port meet a peer that dialled just then."""

    async def upgrade(self, raw, peer_id):
        await trio.lowlevel.checkpoint()
        if self.ports[-1]:
            raise SimultaneousOpenError("the peer dialled, too")
        return Won(raw)


async def test_of_two_that_dial_each_other_at_once_the_smaller_dials_again(autojump_clock):
    script = Crossing({address(1): (0.1, None)})
    backoff = DialBackoff(SETTINGS, random.Random(0))
    _, winner = await run(script, [address(1)], own_id=SMALLER, backoff=backoff)
    assert winner.raw.remote_address == address(1)
    assert script.ports == [True, False]
    assert trio.current_time() == pytest.approx(0.2)  # at once
    assert not len(backoff)


async def test_of_two_that_dial_each_other_at_once_the_larger_waits_a_while(autojump_clock):
    script = Crossing({address(1): (0.1, None)})
    backoff = DialBackoff(SETTINGS, random.Random(0))
    dial, winner = await run(script, [address(1)], own_id=LARGER, backoff=backoff)
    assert winner is None
    assert script.ports == [True]
    assert trio.current_time() == pytest.approx(0.1 + SETTINGS.simultaneous_open_wait)
    assert "dialled, too" in str(dial.failure)
    assert not len(backoff)  # the next caller may try at once


async def test_the_larger_waits_no_longer_than_until_the_peer_is_there(autojump_clock):
    script = Crossing({address(1): (0.1, None), address(2): (0.0, None)})
    dial = dial_with(script, own_id=LARGER, settings=NetworkSettings(dial_stagger=5.0))
    dial.offer([address(1), address(2)])
    with dial.wanted_until(trio.current_time() + 10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial.run)
            await trio.sleep(0.5)
            dial.done.set()
    assert trio.current_time() == pytest.approx(0.5)
    assert [where for _, where in script.started] == [address(1)]  # the other is not needed


async def test_a_peer_that_only_pretends_to_dial_is_dialled_again_once(autojump_clock):
    script = Script({address(1): (0.1, None)})

    async def upgrade(raw, peer_id):
        await trio.lowlevel.checkpoint()
        raise SimultaneousOpenError("the peer dialled, too")

    _, winner = await run(script, [address(1)], own_id=SMALLER, upgrade=upgrade)
    assert winner is None
    assert script.ports == [True, False]


async def test_addresses_that_were_left_alone_are_insisted_on_in_their_order(autojump_clock):
    """Whatever their hashes are: runs from one seed must be the same in every process."""
    places = [address(port) for port in range(1, 9)]
    script = Script(dict.fromkeys(places, (0.0, REFUSED)))
    backoff = DialBackoff(SETTINGS, random.Random(0))
    for each in places:
        backoff.fail(PEER, each, trio.current_time())
    dial = dial_with(script, backoff=backoff)
    dial.offer(places)
    dial.offer([], insist=True)
    with dial.wanted_until(trio.current_time() + 10):
        await dial.run()
    assert [each for _, each in script.started] == places
