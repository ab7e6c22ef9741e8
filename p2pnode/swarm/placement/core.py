"""What to host, and whether moving is worth it: from who hosts what, and how fast, alone.

Units are a run's layers, in the order in which a pipeline passes through them, or its experts. Each
costs time and takes room, and they need not be alike. A server that does `speed` rows through a
unit of cost 1 in a second does `speed / (sum of costs)` through each of its units; a unit's rate is
the sum over its servers, and a pipeline is as fast as its slowest layer.

*Layers.* A newcomer takes consecutive layers, as many as it has room for, so that one stretch
serves a call without a hop between its layers: the stretch whose rates, sorted, come first, which
holds the slowest ones. A server moves to where it would go if it came now, under two conditions.
All rates, sorted, must come later than before, so no move slows the slowest layer down, and moves
end: each one climbs. And within a while the pipeline must pass more rows by a factor, once those
that this allows to move have moved, too; often no single move raises the minimum. While the server
loads what it does not have, nothing is gained yet: so a move that takes long has to gain more. A
node that comes back and has the states of some layers stands where it stood, unless it would move
away from there at once. Where no stretch would do, but a layer has no server and some of ours have
others, too, these give way to it.

*Experts.* They are chosen one by one: the slowest ones, and experts give way to another one if the
slowest of them all passes more rows by the factor.

Source: Borzunov et al. 2023, "Distributed Inference and Fine-tuning of Large Language Models Over
The Internet" (Petals), section 3.2 and appendix on load balancing. Theirs asks for the factor only,
and all blocks are alike; costs, room, that every move climbs, and the swaps, are ours.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from p2pnode.swarm.placement.units import MAX_UNITS, Stretches, Units

MAX_LOOKED_AHEAD: Final = 64  # other servers whose moves are foreseen: each takes some 0.1 ms
_ROUNDS: Final = 4  # of foreseen moves; most settle in two
_RESOLUTION: Final = 1000  # whole numbers are compared, so that no rounding looks like a gain
_SWAPS: Final = 64  # of single units, tried in one decision; more are left for the next one
_NEVER_FIRST: Final = np.iinfo(np.int64).max  # where a stretch is shorter than others

Rates = npt.NDArray[np.int64]  # by unit, in 1 / _RESOLUTION rows a second


@dataclass(frozen=True, slots=True)
class Server:
    """Who hosts what, and how fast.

    Attributes:
        name: tells servers apart, and orders them.
        units: what it hosts, in rising order.
        speed: rows through a unit of cost 1 in a second, if it did nothing else; 0 when not known.
    """

    name: str
    units: tuple[int, ...]
    speed: float

    def rate(self, of: Units) -> int:
        """Return what it contributes to each of its units, in 1 / _RESOLUTION rows a second."""
        return round(_RESOLUTION * self.speed / of.cost(self.units)) if self.units else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a node may host of a run.

    Attributes:
        units: what there is.
        room: for units, in the measure of their sizes.
        most: units at once.
        is_pipeline: whether they are layers, passed through one after the other.
        min_gain: the factor by which a move must let more rows pass what is slow, above 1.
        loading: seconds that it takes to load what takes a room of 1.
        pay_back: seconds in which they must pass, loading included.
    """

    units: Units
    room: int
    most: int = MAX_UNITS
    is_pipeline: bool
    min_gain: float
    loading: float = 0.0
    pay_back: float = 600.0

    @property
    def length(self) -> int:
        """How many units a node may come to hold."""
        if self.is_pipeline:
            stretches = self.units.stretches(self.room, self.most)
            return max((end - start for start, end in stretches.tolist()), default=0)
        smallest_first = np.cumsum(np.sort(self.units.sizes))
        return min(self.most, int(np.count_nonzero(smallest_first <= self.room)))

    def is_worth(self, before: int, after: int, own: Server, moved: Server) -> bool:
        """Tell whether a move gains enough, which makes what is slow as fast as `after`."""
        added = self.units.size([each for each in moved.units if each not in own.units])
        loading = self.loading * added
        passed = after * (self.pay_back - loading) + before * loading
        return passed >= self.min_gain * before * self.pay_back

    def is_filled_by(self, units: Sequence[int]) -> bool:
        """Tell whether a node may hold these, and no more: of layers, none beside them."""
        left = self.room - self.units.size(units)
        if not units or left < 0 or len(units) > self.most:
            return False
        return not self._fitting(units, left)

    def filled(self, units: Sequence[int], without: Rates) -> tuple[int, ...]:
        """Return these with all that fit beside them, the slowest first."""
        found, left = list(units), self.room - self.units.size(units)
        while fit := self._fitting(found, left):
            found.append(min(fit, key=lambda unit: (without[unit], unit)))
            left -= int(self.units.sizes[found[-1]])
        return tuple(sorted(found))

    def _fitting(self, units: Sequence[int], left: int) -> list[int]:
        sizes = self.units.sizes
        if len(units) >= self.most or left < sizes.min():
            return []
        candidates: Iterable[int] = range(len(sizes))
        if self.is_pipeline:
            beside = {each + step for each in units for step in (-1, 1)}
            candidates = sorted(each for each in beside if 0 <= each < len(sizes))
        mine = set(units)
        return [each for each in candidates if each not in mine and sizes[each] <= left]


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
        offer: what it may host of what; at least one unit fits.
        others: all other servers of the run; those that do not tell their speed are taken to have
            the median of the speeds known.
        own: this node; `units` is empty when it hosts nothing yet.
        chance: drawn from [0, 1); spreads newcomers that see the same.
        kept: units whose states a newcomer has from an earlier time.
    """
    *others, own = with_speeds([*sorted(others, key=lambda each: each.name), own])
    without = rates_of(offer.units, others)
    now = _joined(offer.units, without, own)
    if not offer.is_filled_by(own.units):
        moved = _returned(offer, others, own, without, kept) or replace(
            own, units=_newcomers_choice(offer, without, own.units, chance)
        )
        then = _joined(offer.units, without, moved)
    elif offer.is_pipeline:
        moved, then = _better_stretch(offer, others, own, without)
    else:
        moved = _swapped(offer, own, without)
        then = _joined(offer.units, without, moved)
    slowest = min(moved.units, key=lambda unit: (without[unit], unit))
    return Decision(
        units=moved.units,
        moves=moved.units != own.units,
        slowest=int(without[slowest]) / _RESOLUTION,
        servers=sum(slowest in each.units for each in others),
        before=int(now.min()) / _RESOLUTION,
        after=int(then.min()) / _RESOLUTION,
    )


def rates_of(units: Units, servers: Iterable[Server]) -> Rates:
    """Return each unit's rate."""
    rates = np.zeros(len(units), dtype=np.int64)
    for server in servers:
        rates[list(server.units)] += server.rate(units)
    return rates


def with_speeds(servers: Sequence[Server]) -> list[Server]:
    """Return the servers, those of unknown speed with the median of the others' speeds."""
    known = [each.speed for each in servers if each.speed > 0]
    usual = statistics.median(known) if known else 1.0
    return [each if each.speed > 0 else replace(each, speed=usual) for each in servers]


def _joined(units: Units, without: Rates, server: Server) -> Rates:
    rates = without.copy()
    rates[list(server.units)] += server.rate(units)
    return rates


def _returned(
    offer: Offer, others: Sequence[Server], own: Server, without: Rates, kept: Sequence[int]
) -> Server | None:
    """Return a newcomer where most of what it keeps is; None if it would not stay there."""
    if own.units or not kept:
        return None
    if offer.is_pipeline:
        near = _nearest(offer.units, offer.units.stretches(offer.room, offer.most), kept)
        back = replace(own, units=tuple(range(*_slowest(without, near)[0].tolist())))
        stays, _ = _better_stretch(offer, others, back, without)
    else:
        mine = set(kept)
        order = sorted(
            range(len(offer.units)), key=lambda unit: (unit not in mine, without[unit], unit)
        )
        back = replace(own, units=_first_that_fit(offer, order))
        stays = _swapped(offer, back, without)
    return back if stays.units == back.units else None


def _newcomers_choice(
    offer: Offer, without: Rates, held: Sequence[int], chance: float
) -> tuple[int, ...]:
    """Choose the slowest units; of equally slow ones those held, or where full stretches meet.

    Newcomers that start together see the same rates: they spread by chance, and leave no gap that
    is shorter than what one of them hosts.
    """
    count = len(offer.units)
    if not offer.is_pipeline:
        length = len(_first_that_fit(offer, range(count)))
        first = length * int(chance * -(-count // length))
        order = sorted(
            range(count),
            key=lambda unit: (without[unit], unit not in held, (unit - first) % count),
        )
        return _first_that_fit(offer, order)
    all_of_them = offer.units.stretches(offer.room, offer.most)
    found = _nearest(offer.units, _slowest(without, all_of_them), held)
    tiles = _side_by_side(all_of_them)
    among = [each for each in found.tolist() if each[0] in tiles] or found.tolist()
    return tuple(range(*among[int(chance * len(among))]))


def _first_that_fit(offer: Offer, order: Iterable[int]) -> tuple[int, ...]:
    """Take units in this order, but for those for which there is no room."""
    found, room = list[int](), offer.room
    for unit in order:
        size = int(offer.units.sizes[unit])
        if size <= room and len(found) < offer.most:
            found.append(unit)
            room -= size
    return tuple(sorted(found))


def _side_by_side(stretches: Stretches) -> set[int]:
    """Return where the stretches start with which nodes of one size would cover all layers."""
    found, covered = set[int](), 0
    for start, end in stretches.tolist():
        if start >= covered:
            found.add(start)
            covered = end
    return found


def _slowest(without: Rates, stretches: Stretches) -> Stretches:
    """Keep the stretches whose sorted rates come first; several if they are equal."""
    starts, ends = stretches[:, :1], stretches[:, 1:]
    columns = np.arange(int((ends - starts).max()))
    is_inside = starts + columns < ends
    rates = np.where(is_inside, without[np.where(is_inside, starts + columns, 0)], _NEVER_FIRST)
    rates.sort(axis=1)
    left = np.arange(len(rates))
    for column in columns:
        values = rates[left, column]
        left = left[values == values.min()]
        if len(left) == 1:
            break
    found: Stretches = stretches[left]
    return found


def _nearest(units: Units, stretches: Stretches, held: Sequence[int]) -> Stretches:
    """Keep those of the stretches that share most with what is held."""
    sizes = np.zeros(len(units) + 1, dtype=np.int64)
    sizes[[each + 1 for each in held]] = units.sizes[list(held)]
    until = np.cumsum(sizes)
    shared = until[stretches[:, 1]] - until[stretches[:, 0]]
    found: Stretches = stretches[shared == shared.max()]
    return found


def _better_stretch(
    offer: Offer, others: Sequence[Server], own: Server, without: Rates
) -> tuple[Server, Rates]:
    """Return this node with the layers it should host, and the rates to expect."""
    now = _joined(offer.units, without, own)
    moved = _moved_to_the_slowest(
        offer.units, own, without, offer.units.stretches(offer.room, offer.most)
    )
    if moved.units != own.units:
        joined = _joined(offer.units, without, moved)
        then = _foreseen(offer.units, others, joined)
        before, after = int(now.min()), int(then.min())
        is_worth = before > 0 and offer.is_worth(before, after, own, moved)
        if is_worth or _holes(joined) < _holes(now):
            return moved, then
    if _holes(now):
        own = _swapped(offer, own, without, only_for_holes=True)
    return own, _joined(offer.units, without, own)


def _moved_to_the_slowest(
    units: Units, server: Server, without: Rates, stretches: Stretches
) -> Server:
    """Return the server where it would go as a newcomer, or as it is if all would not climb."""
    start, end = _nearest(units, _slowest(without, stretches), server.units)[0].tolist()
    moved = replace(server, units=tuple(range(start, end)))
    climbs = _climbs(_joined(units, without, server), _joined(units, without, moved))
    return moved if climbs else server


def _climbs(before: Rates, after: Rates) -> bool:
    """Whether the slowest is faster, or where they are equal the second slowest, and so on."""
    rises = np.sort(after) - np.sort(before)
    changes = rises[rises != 0]
    return len(changes) > 0 and bool(changes[0] > 0)


def _holes(rates: Rates) -> int:
    return int(np.count_nonzero(rates == 0))


def _foreseen(units: Units, others: Sequence[Server], then: Rates) -> Rates:
    """Return the rates when others, in turn, have also moved to where the slowest layers are.

    Each is taken to have the room that it uses now.
    """
    rates = then.copy()
    servers = list(others[:MAX_LOOKED_AHEAD])
    rooms = [units.stretches(units.size(each.units), MAX_UNITS) for each in servers]
    for _ in range(_ROUNDS):
        before = rates.copy()
        for position, server in enumerate(servers):
            rates[list(server.units)] -= server.rate(units)
            moved = _moved_to_the_slowest(units, server, rates, rooms[position])
            servers[position] = moved
            rates[list(moved.units)] += moved.rate(units)
        if (rates == before).all():
            break
    return rates


def _swapped(offer: Offer, own: Server, without: Rates, *, only_for_holes: bool = False) -> Server:
    """Return the server with some units swapped for slower ones.

    Args:
        offer: what it may host of what.
        own: the server as it is.
        without: the rates without it.
        only_for_holes: whether that is worth it only for units that nobody hosts.
    """
    free = sorted(set(range(len(without))) - set(own.units), key=lambda unit: (without[unit], unit))
    for wanted in free[:_SWAPS]:
        before = int(without[wanted])
        if before > 0 and only_for_holes:
            break
        swapped, spares = _with(offer, own, without, wanted)
        if wanted in own.units or not swapped.units:
            continue
        rate = swapped.rate(offer.units)
        after = min([before + rate, *(int(without[each]) for each in spares)])
        if after <= before or (before > 0 and not offer.is_worth(before, after, own, swapped)):
            continue
        if rate == own.rate(offer.units) or _climbs(
            _joined(offer.units, without, own), _joined(offer.units, without, swapped)
        ):
            own = swapped
    return own


def _with(offer: Offer, own: Server, without: Rates, wanted: int) -> tuple[Server, set[int]]:
    """Return the server with one more unit, and those that gave way to it, the fastest first.

    The server has no units where that one alone is too large.
    """
    size = int(offer.units.sizes[wanted])
    stay = sorted(own.units, key=lambda unit: (without[unit], -unit))
    left = offer.room - offer.units.size(stay)
    while left < size or len(stay) >= offer.most:
        if not stay:
            return replace(own, units=()), set()
        left += int(offer.units.sizes[stay.pop()])
    units = offer.filled([*stay, wanted], without)
    return replace(own, units=units), set(own.units) - set(units)
