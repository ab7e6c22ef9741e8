"""Where the index says what: the keys of its records, and which coordinates each speaks of.

An expert `ffn.3.17` is listed in up to three kinds of record:

| kind     | of        | says                                                        |
|----------|-----------|-------------------------------------------------------------|
| branches | `ffn`     | that something lives below `ffn.3`                          |
| hosts    | `ffn.3`   | who hosts `ffn.3.17`, and where                             |
| loading  | `ffn.3`   | who will, as soon as it is loaded: for others that consider |

Each record speaks of `SPAN` neighbouring coordinates under a prefix, its shard, so that no record
grows with the width of a grid and wide prefixes are spread over the DHT. A set of coordinates is a
whole number whose bit i stands for the shard's coordinate i. Its DHT key is
`/p2pnode-index/<run id>/<kind>/<prefix>/<shard>`.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from p2pnode.errors import InvalidUidError, ProtocolError
from p2pnode.wire.uids import MAX_COORDINATE, Uid, check_prefix, check_run

NAMESPACE: Final = "p2pnode-index"
SPAN: Final = 128  # coordinates of one record; a grid of 128 x 128 has one record for each row
MAX_SHARD: Final = MAX_COORDINATE // SPAN
OPEN_RUN: Final = "open:"  # how the id of a run without members starts


class Kind(StrEnum):
    """What a record lists."""

    BRANCHES = "branches"
    HOSTS = "hosts"
    LOADING = "loading"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """One record of the index: a kind, a prefix in a run, and the shard of its coordinates."""

    run_id: str
    kind: Kind
    prefix: str
    shard: int

    @property
    def key(self) -> bytes:
        """The DHT key."""
        return f"/{NAMESPACE}/{self.run_id}/{self.kind}/{self.prefix}/{self.shard}".encode()

    @property
    def is_open(self) -> bool:
        """Whether the run has no members, so that anybody may say anything for himself."""
        return self.run_id.startswith(OPEN_RUN)

    @property
    def first(self) -> int:
        """The coordinate that bit 0 stands for."""
        return self.shard * SPAN


@functools.lru_cache(maxsize=16_384)  # each key comes again with every request
def place_of(key: bytes) -> Place:
    """Read a DHT key.

    Raises:
        ProtocolError: it is none of the index.
    """
    try:
        _, _, run_id, kind, prefix, shard = key.decode("ascii").split("/")
        place = Place(check_run(run_id), Kind(kind), check_prefix(prefix), int(shard))
    except (ValueError, InvalidUidError) as error:
        raise ProtocolError(
            f"an index key is not /{NAMESPACE}/<run id>/<kind>/<prefix>/<shard>"
        ) from error
    if place.key != key or not 0 <= place.shard <= MAX_SHARD:
        raise ProtocolError("the shard of an index key is out of range")
    return place


def host_place(uid: Uid) -> Place:
    """Return the record that lists the hosts of an expert, its run named by id."""
    return Place(uid.run, Kind.HOSTS, uid.prefix, uid.coordinate // SPAN)


def shards(run_id: str, kind: Kind, prefix: str, width: int) -> list[Place]:
    """List the records of the first `width` coordinates under a prefix."""
    return [Place(run_id, kind, prefix, shard) for shard in range(-(-width // SPAN))]


def by_place(hosted: Iterable[Uid], loading: Iterable[Uid] = ()) -> dict[Place, int]:
    """Map each record that has to list some of these experts to its set of coordinates."""
    places: dict[Place, int] = {}
    listed = [(Kind.HOSTS, uid) for uid in hosted] + [(Kind.LOADING, uid) for uid in loading]
    for last, uid in listed:
        *inner, (prefix, coordinate) = uid.prefixes
        marks = [(Kind.BRANCHES, *each) for each in inner if last is Kind.HOSTS]
        marks.append((last, prefix, coordinate))
        for kind, above, below in marks:
            place = Place(uid.run, kind, above, below // SPAN)
            places[place] = places.get(place, 0) | 1 << below % SPAN
    return places


def bits_of(coordinates: int) -> Iterator[int]:
    """List the members of a set of coordinates, in rising order."""
    while coordinates:
        lowest = coordinates & -coordinates
        yield lowest.bit_length() - 1
        coordinates ^= lowest
