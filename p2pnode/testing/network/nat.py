"""Address translation: who behind it can be dialled by whom. Pure: time is an argument.

| `Nat` | mapping | filtering | RFC 3489 name |
|---|---|---|---|
| `FULL_CONE` | endpoint-independent | endpoint-independent | full cone |
| `RESTRICTED` | endpoint-independent | address-dependent | restricted cone |
| `PORT_RESTRICTED` | endpoint-independent | address and port-dependent | port restricted cone |
| `SYMMETRIC` | address and port-dependent | address and port-dependent | symmetric |

The mapping decides which public endpoint a private one gets, the filtering whose packets pass to
it (RFC 4787, and RFC 5382 for TCP). Both are made by what goes out. While a connection uses them
they stay, as its keep-alives see to; else they end after `timeout`.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

_PORTS: Final = range(1024, 65536)
_FEW: Final = 64  # mappings that are not worth looking through for dead ones


class Endpoint(NamedTuple):
    """One end of a connection: an IP address and a port."""

    ip: str
    port: int


class Nat(Enum):
    """What stands between a machine and the internet."""

    NONE = "none"
    FULL_CONE = "full-cone"
    RESTRICTED = "restricted"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"


@dataclass(slots=True)
class _Mapping:
    private: Endpoint
    port: int
    heard: dict[Endpoint, float]  # when something last went out to each remote endpoint
    many: int = _FEW  # of them: when to look for those that count no more


class Router:
    """One network address translator with one public address, and a private network behind it.

    Args:
        kind: how it maps and filters.
        ip: its public address.
        rng: where the ports of mappings come from.
        timeout: seconds for which a mapping that no connection uses is kept; RFC 5382 asks for
            four minutes after a connection that was not established.
        hairpin: whether machines behind it reach each other at their public endpoints.
    """

    def __init__(
        self,
        kind: Nat,
        ip: str,
        rng: random.Random,
        *,
        timeout: float = 240.0,
        hairpin: bool = True,
    ) -> None:
        if kind is Nat.NONE:
            raise ValueError("a router translates addresses; a machine without NAT has none")
        self.kind = kind
        self.ip = ip
        self.timeout = timeout
        self.hairpin = hairpin
        self._rng = rng
        self._by_key: dict[tuple[Endpoint, Endpoint | None], _Mapping] = {}
        self._by_port: dict[int, tuple[Endpoint, Endpoint | None]] = {}
        self._in_use: Counter[tuple[int, Endpoint]] = Counter()
        self._many = _FEW  # when to look for dead mappings the next time

    def send(self, private: Endpoint, remote: Endpoint, now: float) -> Endpoint:
        """Let a packet out; returns the public endpoint it comes from."""
        key = self._key(private, remote)
        mapping = self._by_key.get(key)
        if mapping is not None and not self._lives(mapping, now):
            self._remove(key)
            mapping = None
        if mapping is None:
            if len(self._by_port) >= self._many:
                self._prune(now)
            mapping = _Mapping(private, self._free_port(private.port), {})
            self._by_key[key] = mapping
            self._by_port[mapping.port] = key
        mapping.heard.pop(remote, None)
        mapping.heard[remote] = now  # the newest one last
        if len(mapping.heard) >= mapping.many:
            self._forget_silent(mapping, now)
        return Endpoint(self.ip, mapping.port)

    def receive(self, remote: Endpoint, port: int, now: float) -> Endpoint | None:
        """Return whom a packet for a public port is for, or None if it is dropped."""
        key = self._by_port.get(port)
        if key is None:
            return None
        mapping = self._by_key[key]
        if not self._lives(mapping, now):
            self._remove(key)
            return None
        if self.kind is Nat.FULL_CONE or self._may_pass(mapping, remote, now):
            return mapping.private
        return None

    def public_endpoint(self, private: Endpoint, now: float) -> Endpoint | None:
        """Return where others may find a private endpoint now, if one mapping serves them all."""
        if self.kind is Nat.SYMMETRIC:
            return None
        mapping = self._by_key.get((private, None))
        if mapping is None or not self._lives(mapping, now):
            return None
        return Endpoint(self.ip, mapping.port)

    def hold(self, port: int, remote: Endpoint) -> None:
        """Keep a mapping, and the way in from `remote`, for a connection that uses both."""
        self._in_use[port, remote] += 1

    def release(self, port: int, remote: Endpoint, now: float) -> None:
        """Take back a `hold`; from now on the timeout counts."""
        self._in_use[port, remote] -= 1
        if self._in_use[port, remote] > 0:
            return
        del self._in_use[port, remote]
        key = self._by_port.get(port)
        if key is not None:
            self._by_key[key].heard[remote] = now

    def forget_all(self) -> None:
        """Forget all mappings, as a router does that is switched off and on."""
        self._by_key.clear()
        self._by_port.clear()
        self._in_use.clear()

    def _key(self, private: Endpoint, remote: Endpoint) -> tuple[Endpoint, Endpoint | None]:
        return private, remote if self.kind is Nat.SYMMETRIC else None

    def _may_pass(self, mapping: _Mapping, remote: Endpoint, now: float) -> bool:
        if self.kind is Nat.RESTRICTED:
            return any(
                each.ip == remote.ip and self._last_use(mapping, each, now) + self.timeout >= now
                for each in mapping.heard
            )
        return self._last_use(mapping, remote, now) + self.timeout >= now

    def _last_use(self, mapping: _Mapping, remote: Endpoint, now: float) -> float:
        if self._in_use[mapping.port, remote]:
            return now
        return mapping.heard.get(remote, -math.inf)

    def _lives(self, mapping: _Mapping, now: float) -> bool:
        return any(
            self._last_use(mapping, remote, now) + self.timeout >= now
            for remote in reversed(mapping.heard)
        )

    def _forget_silent(self, mapping: _Mapping, now: float) -> None:
        """Drop the remote endpoints whose packets would not pass any more."""
        mapping.heard = {
            remote: at
            for remote, at in mapping.heard.items()
            if self._last_use(mapping, remote, now) + self.timeout >= now
        }
        mapping.many = max(_FEW, 2 * len(mapping.heard))

    def _remove(self, key: tuple[Endpoint, Endpoint | None]) -> None:
        mapping = self._by_key.pop(key)
        del self._by_port[mapping.port]

    def _prune(self, now: float) -> None:
        for key in [each for each, one in self._by_key.items() if not self._lives(one, now)]:
            self._remove(key)
        if len(self._by_port) >= len(_PORTS) // 2:  # as a router does that runs out of memory
            for key in tuple(self._by_key)[: len(self._by_key) // 2]:
                self._remove(key)
        self._many = max(_FEW, min(2 * len(self._by_port), len(_PORTS) // 2))

    def _free_port(self, wanted: int) -> int:
        """Choose a public port: the private one if it can be had, except where none lasts."""
        port = wanted
        while port in self._by_port or (self.kind is Nat.SYMMETRIC and port == wanted):
            port = self._rng.choice(_PORTS)
        return port
