"""A wire with delay and loss between two namespaces, for kernels without netem.

It runs as a process of its own, between two TAP devices:

```
python -m p2pnode.testing.nat_lab.wire NAMESPACE INTERFACE NAMESPACE INTERFACE DELAY LOSS SEED
```

Each frame that comes out of one device goes into the other, `DELAY` seconds later, unless chance
has it lost. Frames keep their order, as on a real line. It says `ready` when both devices exist,
and they are gone when it ends.
"""

import ctypes
import fcntl
import os
import random
import selectors
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

_TUNSETIFF: Final = 0x400454CA  # Linux, if_tun.h
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_CLONE_NEWNET: Final = 0x40000000
_MAX_FRAME: Final = 65536
_BATCH: Final = 64  # frames taken from one side before the other has its turn
MAX_WAITING: Final = 8192  # frames on their way in one direction; a router's buffer is finite


class DelayLine:
    """One direction of a wire. Pure: time and chance come from outside.

    Args:
        delay: seconds from end to end.
        loss: the share of frames that never arrive.
        rng: which ones.
    """

    def __init__(self, delay: float, loss: float, rng: random.Random) -> None:
        self._delay = delay
        self._loss = loss
        self._rng = rng
        self._waiting = deque[tuple[float, bytes]]()

    @property
    def next_due(self) -> float | None:
        """When the next frame arrives, or None while there is none."""
        return self._waiting[0][0] if self._waiting else None

    def send(self, frame: bytes, now: float) -> None:
        """Put a frame on the line; it is lost by chance, or if too many are on it."""
        if self._rng.random() >= self._loss and len(self._waiting) < MAX_WAITING:
            self._waiting.append((now + self._delay, frame))

    def receive(self, now: float) -> bytes | None:
        """Take the frame that has arrived, or None if none has by now."""
        if self._waiting and self._waiting[0][0] <= now:
            return self._waiting.popleft()[1]
        return None


def carry(ends: tuple[int, int], delay: float, loss: float, rng: random.Random) -> None:
    """Carry frames between two TAP devices for ever."""
    lines = (DelayLine(delay, loss, rng), DelayLine(delay, loss, rng))
    targets = (ends[1], ends[0])
    with selectors.DefaultSelector() as selector:
        for side, end in enumerate(ends):
            selector.register(end, selectors.EVENT_READ, side)
        while True:
            due = [line.next_due for line in lines if line.next_due is not None]
            timeout = max(min(due) - time.monotonic(), 0) if due else None
            for key, _ in selector.select(timeout):
                _take(key.fd, lines[key.data])
            for line, target in zip(lines, targets, strict=True):
                while (frame := line.receive(time.monotonic())) is not None:
                    _give(target, frame)


def _take(source: int, line: DelayLine) -> None:
    for _ in range(_BATCH):
        try:
            frame = os.read(source, _MAX_FRAME)
        except OSError:  # nothing more now, or the interface is down: unplugged
            return
        line.send(frame, time.monotonic())


def _give(target: int, frame: bytes) -> None:
    try:
        os.write(target, frame)
    except OSError:  # its queue is full, or the interface is down: lost, as on any wire
        return


def _open_tap(namespace: str, name: str) -> int:
    """Make a TAP device in a namespace, and move this thread there."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    try:
        if libc.setns(place, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        os.close(place)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


def main() -> None:
    """Run the wire that the command line describes."""
    first, first_name, second, second_name, delay, loss, seed = sys.argv[1:]
    ends = (_open_tap(first, first_name), _open_tap(second, second_name))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    carry(ends, float(delay), float(loss), random.Random(seed))


if __name__ == "__main__":
    main()
