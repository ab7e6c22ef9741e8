"""Asks a helper on the internet how the NAT in between behaves, as RFC 5780 does.

```
python -m p2pnode.testing.nat_lab.probe serve IP OTHER_IP PORT
python -m p2pnode.testing.nat_lab.probe ask udp|tcp LOCAL_PORT IP OTHER_IP PORT
```

The helper has two addresses, and on each the ports `PORT` and `PORT + 1`. To everybody who asks it
tells, as JSON, where it sees them; on request it then comes back from another of its endpoints
(UDP sends a datagram, TCP connects). `ask` prints what it found as JSON.
"""

import contextlib
import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Final

from p2pnode.host.reachability.nat_behaviour import (
    Endpoint,
    Sighting,
    Stranger,
    Trial,
    classify_filtering,
    classify_mapping,
)

_PATIENCE: Final = 0.5  # seconds for a packet to arrive; there and back takes a millisecond or two
_TRIES: Final = 2
_BACKLOG: Final = 16
_COME_BACK: Final = b"come back"
_LOOK: Final = b"look"
_KINDS: Final = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}

Address = tuple[str, int]


# --- the helper ---------------------------------------------------------------------------------


def serve(ips: tuple[str, str], port: int) -> None:
    """Answer who asks, for ever."""
    ends = [(ip, each) for ip in ips for each in (port, port + 1)]
    with selectors.DefaultSelector() as selector:
        datagrams = {}
        for end in ends:
            datagrams[end] = _bind("udp", end)
            selector.register(datagrams[end], selectors.EVENT_READ, "udp")
            listener = _bind("tcp", end)
            listener.listen(_BACKLOG)
            selector.register(listener, selectors.EVENT_READ, "tcp")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            for key, _ in selector.select():
                opened = key.fileobj
                assert isinstance(opened, socket.socket)
                here = opened.getsockname()
                strangers = [(here[0], port + 2), (ips[here[0] == ips[0]], port + 2)]
                if key.data == "udp":
                    _answer_datagram(opened, strangers)
                else:
                    opened, asker = opened.accept()
                    # Some who ask are behind routers that keep this side waiting.
                    threading.Thread(
                        target=_answer_connection, args=(opened, asker, strangers), daemon=True
                    ).start()


def _answer_datagram(opened: socket.socket, strangers: list[Address]) -> None:
    text, asker = opened.recvfrom(1500)
    opened.sendto(json.dumps(asker).encode(), asker)
    if text == _COME_BACK:
        for stranger in strangers:
            with _bind("udp", stranger) as other:
                other.sendto(json.dumps(stranger).encode(), asker)


def _answer_connection(opened: socket.socket, asker: Address, strangers: list[Address]) -> None:
    with opened, contextlib.suppress(OSError):
        opened.settimeout(_PATIENCE)
        text = opened.recv(1500)
        opened.sendall(json.dumps(asker).encode())
        if text == _COME_BACK:
            for stranger in strangers:
                with _bind("tcp", stranger) as other, contextlib.suppress(OSError):
                    other.settimeout(_PATIENCE)
                    other.connect(asker)


# --- who asks -----------------------------------------------------------------------------------


def ask(kind: str, local_port: int, ips: tuple[str, str], port: int) -> dict[str, Any]:
    """Probe with one local port.

    Returns:
        `local_port`, the `public_port` that the first endpoint sees, and how the NAT does its
        `mapping` and `filtering`.
    """
    find = _find_datagrams if kind == "udp" else _find_connections
    sightings, trials = find(local_port, ips, port)
    return {
        "local_port": local_port,
        "public_port": sightings[0].seen.port,
        "mapping": classify_mapping(sightings).value,
        "filtering": classify_filtering(trials).value,
    }


def _find_datagrams(
    local_port: int, ips: tuple[str, str], port: int
) -> tuple[list[Sighting], list[Trial]]:
    with _bind("udp", ("", local_port)) as ours:
        ours.settimeout(_PATIENCE)
        # First where strangers try to come in: nothing has gone out to their addresses yet.
        first = (ips[0], port)
        trials = []
        sightings = [_sight(ours, first, _exchange(ours, _LOOK, first))]
        for _ in range(_TRIES):
            ours.sendto(_COME_BACK, first)
            heard = list(_listen(ours))
            trials += [
                Trial(stranger=Stranger.OTHER_PORT, arrived=(ips[0], port + 2) in heard),
                Trial(stranger=Stranger.OTHER_ADDRESS, arrived=(ips[1], port + 2) in heard),
            ]
        sightings += [
            _sight(ours, remote, _exchange(ours, _LOOK, remote))
            for remote in [(ips[0], port + 1), (ips[1], port), (ips[1], port + 1)]
        ]
        return sightings, trials


def _exchange(ours: socket.socket, text: bytes, remote: Address) -> bytes:
    for _ in range(_TRIES):
        ours.sendto(text, remote)
        with contextlib.suppress(TimeoutError):
            while True:
                answer, sender = ours.recvfrom(1500)
                if sender == remote:
                    return answer
    raise OSError(f"{remote} does not answer")


def _listen(ours: socket.socket) -> Iterator[Address]:
    until = time.monotonic() + _PATIENCE
    with contextlib.suppress(TimeoutError):
        while time.monotonic() < until:
            yield ours.recvfrom(1500)[1]


def _find_connections(
    local_port: int, ips: tuple[str, str], port: int
) -> tuple[list[Sighting], list[Trial]]:
    with _bind("tcp", ("", local_port)) as listener, contextlib.ExitStack() as stack:
        listener.listen(_BACKLOG)
        listener.settimeout(_PATIENCE)
        sightings, heard = [], set[Address]()
        for place, remote in enumerate((ip, each) for ip in ips for each in (port, port + 1)):
            ours = stack.enter_context(_bind("tcp", ("", local_port)))
            ours.settimeout(4 * _PATIENCE)  # the helper tries twice to come back
            ours.connect(remote)
            ours.sendall(_LOOK if place else _COME_BACK)
            sightings.append(_sight(ours, remote, ours.recv(1500)))
            if not place:
                with contextlib.suppress(TimeoutError):
                    while len(heard) < 2:
                        stranger, sender = listener.accept()
                        stranger.close()
                        heard.add(sender)
        trials = [
            Trial(stranger=Stranger.OTHER_PORT, arrived=(ips[0], port + 2) in heard),
            Trial(stranger=Stranger.OTHER_ADDRESS, arrived=(ips[1], port + 2) in heard),
        ]
        return sightings, trials


def _sight(ours: socket.socket, remote: Address, answer: bytes) -> Sighting:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:  # which address we have there
        route.connect(remote)
        local = (route.getsockname()[0], ours.getsockname()[1])
    ip, port = json.loads(answer)
    return Sighting(
        local=_endpoint(local), remote=_endpoint(remote), seen=_endpoint((str(ip), int(port)))
    )


def _endpoint(address: Address) -> Endpoint:
    return Endpoint(ip_address(address[0]), address[1])


def _bind(kind: str, address: Address) -> socket.socket:
    opened = socket.socket(socket.AF_INET, _KINDS[kind])
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.bind(address)
    return opened


def main() -> None:
    """Run what the command line says."""
    role, *rest = sys.argv[1:]
    if role == "serve":
        ip, other, port = rest
        serve((ip, other), int(port))
    else:
        kind, local_port, ip, other, port = rest
        sys.stdout.write(json.dumps(ask(kind, int(local_port), (ip, other), int(port))))


if __name__ == "__main__":
    main()
