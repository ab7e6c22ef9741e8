"""What to host, and whether moving is worth it: from who hosts what, and how fast, alone.

Units are a run's layers, in the order in which a pipeline passes through them, or its experts.
A server that does `speed` rows through one unit in a second does `speed / n` through each of its n
units; a unit's rate is the sum over its servers, and a pipeline is as fast as its slowest layer.

*Layers.* A newcomer takes the consecutive layers whose rates, sorted, come first: the slowest ones,
so that one stretch serves a call without a hop between its layers. A server moves to where it would
go if it came now, under two conditions. All rates, sorted, must come later than before, so no move
slows the slowest layer down, and moves end: each one climbs. And the pipeline must become faster by
a factor once those that this allows to move have moved, too; often no single move raises the
minimum. A node that comes back and has the states of some layers stands where it stood, unless it
would move away from there at once. Where no stretch would do, but a layer has no server and one of
ours has another, too, that one is swapped.

*Experts.* They are chosen one by one: the slowest ones, and an expert is swapped for another one if
the slower of the two becomes faster by the factor.

Source: Borzunov et al. 2023, "Distributed Inference and Fine-tuning of Large Language Models Over
The Internet" (Petals), section 3.2 and appendix on load balancing. Theirs asks for the factor only;
that every move climbs, and the swaps, are ours.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

MAX_UNITS: Final = 4096  # as `hosting.max_experts`
MAX_LOOKED_AHEAD: Final = 64  # other servers whose moves are foreseen: each takes some 0.1 ms
_ROUNDS: Final = 4  # of foreseen moves; most settle in two
_RESOLUTION: Final = 1000  # whole numbers are compared, so that no rounding looks like a gain

Rates = npt.NDArray[np.int64]  # by unit, in 1 / _RESOLUTION rows a second


@dataclass(frozen=True, slots=True)
class Server:
    """Who hosts what, and how fast.

    Attributes:
        name: tells servers apart, and orders them.
        units: what it hosts, in rising order.
        speed: rows through one unit in a second, if it did nothing else; 0 when not known.
    """

    name: str
    units: tuple[int, ...]
    speed: float

    @property
    def rate(self) -> int:
        """What it contributes to each of its units, in 1 / _RESOLUTION rows a second."""
        return round(_RESOLUTION * self.speed / len(self.units)) if self.units else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a node may host of a run.

    Attributes:
        units: how many the run has.
        capacity: how many this node can hold.
        is_pipeline: whether they are layers, passed through one after the other.
        min_gain: the factor by which a move must speed up what is slow, above 1.
    """

    units: int
    capacity: int
    is_pipeline: bool
    min_gain: float

    @property
    def length(self) -> int:
        """How many units this node should host."""
        return min(self.capacity, self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to host from now on.

    Attributes:
        units: in rising order; those already hosted among them stay loaded.
        moves: whether that differs from what is hosted now.
        slowest: the rate of the slowest of these units without this node, in rows a second.
        servers: how many others host that one.
        before: the rate of the run's slowest unit now, in rows a second.
        after: what it is expected to become.
    """

    units: tuple[int, ...]
    moves: bool
    slowest: float
    servers: int
    before: float
    after: float


def decide(
    offer: Offer,
    others: Sequence[Server],
    own: Server,
    chance: float,
    *,
    kept: Sequence[int] = (),
) -> Decision:
    """Decide what `own` should host.

    Args:
        offer: what it may host of what.
        others: all other servers of the run; those that do not tell their speed are taken to have
            the median of the speeds known.
        own: this node; `units` is empty when it hosts nothing yet.
        chance: drawn from [0, 1); spreads newcomers that see the same.
        kept: units whose states a newcomer has from an earlier time.
    """
    *others, own = with_speeds([*sorted(others, key=lambda each: each.name), own])
    without = rates_of(offer.units, others)
    now = _joined(without, own)
    if len(own.units) != offer.length:
        moved = _returned(offer, others, own, without, kept) or replace(
            own, units=_newcomers_choice(offer, without, own.units, chance)
        )
        then = _joined(without, moved)
    elif offer.is_pipeline:
        moved, then = _better_stretch(offer, others, own, without)
    else:
        moved = _swapped(own, without, min_gain=offer.min_gain)
        then = _joined(without, moved)
    slowest = min(moved.units, key=lambda unit: (without[unit], unit))
    return Decision(
        units=moved.units,
        moves=moved.units != own.units,
        slowest=int(without[slowest]) / _RESOLUTION,
        servers=sum(slowest in each.units for each in others),
        before=int(now.min()) / _RESOLUTION,
        after=int(then.min()) / _RESOLUTION,
    )


def rates_of(units: int, servers: Iterable[Server]) -> Rates:
    """Return each unit's rate."""
    rates = np.zeros(units, dtype=np.int64)
    for server in servers:
        rates[list(server.units)] += server.rate
    return rates


def with_speeds(servers: Sequence[Server]) -> list[Server]:
    """Return the servers, those of unknown speed with the median of the others' speeds."""
    known = [each.speed for each in servers if each.speed > 0]
    usual = statistics.median(known) if known else 1.0
    return [each if each.speed > 0 else replace(each, speed=usual) for each in servers]


def _joined(without: Rates, server: Server) -> Rates:
    rates = without.copy()
    rates[list(server.units)] += server.rate
    return rates


def _returned(
    offer: Offer, others: Sequence[Server], own: Server, without: Rates, kept: Sequence[int]
) -> Server | None:
    """Return a newcomer where most of what it keeps is; None if it would not stay there."""
    if own.units or not kept:
        return None
    length = offer.length
    if offer.is_pipeline:
        starts = _nearest(range(offer.units - length + 1), length, kept)
        slowest = {start: sorted(without[start : start + length].tolist()) for start in starts}
        start = min(starts, key=lambda each: (slowest[each], each))
        back = replace(own, units=tuple(range(start, start + length)))
        stays, _ = _better_stretch(offer, others, back, without)
    else:
        mine = set(kept)
        order = sorted(range(offer.units), key=lambda unit: (unit not in mine, without[unit], unit))
        back = replace(own, units=tuple(sorted(order[:length])))
        stays = _swapped(back, without, min_gain=offer.min_gain)
    return back if stays.units == back.units else None


def _newcomers_choice(
    offer: Offer, without: Rates, held: Sequence[int], chance: float
) -> tuple[int, ...]:
    """Choose the slowest units; of equally slow ones those held, or at a multiple of the length.

    Newcomers that start together see the same rates: they spread by chance, and leave no gap that
    is shorter than what one of them hosts.
    """
    length = offer.length
    if not offer.is_pipeline:
        first = length * int(chance * -(-offer.units // length))
        order = sorted(
            range(offer.units),
            key=lambda unit: (without[unit], unit not in held, (unit - first) % offer.units),
        )
        return tuple(sorted(order[:length]))
    starts = _nearest(_slowest_starts(without, length), length, held)
    starts = [start for start in starts if start % length == 0] or starts
    start = starts[int(chance * len(starts))]
    return tuple(range(start, start + length))


def _slowest_starts(without: Rates, length: int) -> list[int]:
    """List where the stretches start whose sorted rates come first; several if they are equal."""
    rates = np.sort(np.lib.stride_tricks.sliding_window_view(without, length), axis=1)
    starts = np.arange(len(rates))
    for column in range(length):
        values = rates[starts, column]
        starts = starts[values == values.min()]
        if len(starts) == 1:
            break
    return [int(each) for each in starts]


def _nearest(starts: Sequence[int], length: int, held: Sequence[int]) -> list[int]:
    """Keep the starts of those stretches that share most with what is held."""
    shared = [sum(start <= unit < start + length for unit in held) for start in starts]
    return [start for start, count in zip(starts, shared, strict=True) if count == max(shared)]


def _better_stretch(
    offer: Offer, others: Sequence[Server], own: Server, without: Rates
) -> tuple[Server, Rates]:
    """Return this node with the layers it should host, and the rates to expect."""
    now = _joined(without, own)
    moved = _moved_to_the_slowest(own, without)
    if moved.units != own.units:
        then = _foreseen(others, _joined(without, moved))
        is_enough = int(then.min()) >= offer.min_gain * int(now.min()) > 0
        if is_enough or _holes(_joined(without, moved)) < _holes(now):
            return moved, then
    if _holes(now):
        own = _swapped(own, without, min_gain=None)
    return own, _joined(without, own)


def _moved_to_the_slowest(server: Server, without: Rates) -> Server:
    """Return the server where it would go as a newcomer, or as it is if all would not climb."""
    length = len(server.units)
    start = _nearest(_slowest_starts(without, length), length, server.units)[0]
    moved = replace(server, units=tuple(range(start, start + length)))
    return moved if _climbs(_joined(without, server), _joined(without, moved)) else server


def _climbs(before: Rates, after: Rates) -> bool:
    """Whether the slowest is faster, or where they are equal the second slowest, and so on."""
    rises = np.sort(after) - np.sort(before)
    changes = rises[rises != 0]
    return len(changes) > 0 and bool(changes[0] > 0)


def _holes(rates: Rates) -> int:
    return int(np.count_nonzero(rates == 0))


def _foreseen(others: Sequence[Server], then: Rates) -> Rates:
    """Return the rates when others, in turn, have also moved to where the slowest layers are."""
    rates = then.copy()
    servers = list(others[:MAX_LOOKED_AHEAD])
    for _ in range(_ROUNDS):
        before = rates.copy()
        for position, server in enumerate(servers):
            rates[list(server.units)] -= server.rate
            servers[position] = moved = _moved_to_the_slowest(server, rates)
            rates[list(moved.units)] += moved.rate
        if (rates == before).all():
            break
    return rates


def _swapped(own: Server, without: Rates, *, min_gain: float | None) -> Server:
    """Return the server with some units swapped for slower ones.

    Args:
        own: the server as it is.
        without: the rates without it.
        min_gain: by which factor the slower of the two must become faster; None if that is worth
            it only where nobody hosts one of them, and others the other one.
    """
    mine = set(own.units)
    free = sorted(set(range(len(without))) - mine, key=lambda unit: (without[unit], unit))
    spares = sorted(mine, key=lambda unit: (-without[unit], unit))
    for wanted, spare in zip(free, spares, strict=False):
        before = int(without[wanted])
        after = min(before + own.rate, int(without[spare]))
        if after <= before or (before > 0 and (min_gain is None or after < min_gain * before)):
            break
        mine = mine - {spare} | {wanted}
    return replace(own, units=tuple(sorted(mine)))


def bound(units: int, offered: Iterable[tuple[float, int]]) -> float:
    """Return a rate that no arrangement lets all units exceed, in rows a second.

    All units can have the rate t only if the servers suffice for `units * t` in all, and to each
    of its units no server need give more than t.

    Args:
        units: how many there are.
        offered: speed and capacity of each server.
    """
    servers = [(speed, min(capacity, units)) for speed, capacity in offered]
    if sum(capacity for _, capacity in servers) < units:
        return 0.0
    # The servers' sum is concave in t, and made of straight pieces that end where one is used up.
    used_up = sorted((speed / capacity, speed, capacity) for speed, capacity in servers)
    speed_left, room = 0.0, sum(capacity for _, capacity in servers)
    for rate, speed, capacity in used_up:
        if room < units and speed_left / (units - room) <= rate:
            break
        speed_left += speed
        room -= capacity
    return speed_left / (units - room)
