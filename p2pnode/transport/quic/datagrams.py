"""Sending and receiving datagrams: many of one size in one system call, where the kernel can.

A call costs several times what its 1,200 bytes do. Linux cuts one large buffer into datagrams
(UDP_SEGMENT), late and cheaply, and hands over those that came together as one again (UDP_GRO).
Other systems, and devices that refuse, are sent one at a time.
"""

import errno
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final

from p2pnode.transport.quic.core import Address
from p2pnode.transport.quic.endpoint import Datagram

# linux/udp.h
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SIZE: Final = struct.Struct("=H")
_GRO_SIZE: Final = struct.Struct("=i")
_ANCILLARY_BYTES: Final = 64  # room for the one number that comes beside datagrams
MAX_JOINED: Final = 64  # datagrams of one call, as old kernels have it
_MAX_JOINED_BYTES: Final = 65_000  # below what a UDP header can tell, whatever stands before it
_MAX_DATAGRAM: Final = 65_535
_UNABLE: Final = frozenset(
    {errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMSGSIZE}
)


class DatagramSocket:
    """A UDP socket that does not block; whoever opened it closes it.

    Attributes:
        joins: whether datagrams are sent together where they can be.
    """

    def __init__(self, opened: socket.socket) -> None:
        self.joins = sys.platform == "linux"
        self._socket = opened
        self._buffer = bytearray(_MAX_DATAGRAM)
        self._takes_joined = False
        if self.joins:
            try:
                opened.setsockopt(_SOL_UDP, _UDP_GRO, 1)
                self._takes_joined = True
            except OSError:  # an older kernel
                pass

    def send(self, datagrams: Sequence[Datagram]) -> int:
        """Send what the system takes at once; returns how many, lost ones included."""
        done = 0
        while done < len(datagrams):
            count = _run(datagrams, done) if self.joins else 1
            try:
                if count == 1:
                    self._socket.sendto(*datagrams[done])
                else:
                    self._send_joined(datagrams[done : done + count])
            except BlockingIOError:
                break
            except OSError as error:
                if count > 1 and error.errno in _UNABLE:
                    self.joins = False
                    continue
                # No route, a firewall, or closed: lost, as it might be on any wire.
            done += count
        return done

    def _send_joined(self, datagrams: Sequence[Datagram]) -> None:
        first, address = datagrams[0]
        size = _SIZE.pack(len(first))
        pieces = [data for data, _ in datagrams]
        self._socket.sendmsg(pieces, [(_SOL_UDP, _UDP_SEGMENT, size)], 0, address)

    def receive(self) -> tuple[list[bytes], Address]:
        """Return datagrams that came together, from one address; never none.

        Raises:
            BlockingIOError: none has come.
            OSError: an earlier one could not be delivered, as some systems tell.
        """
        if not self._takes_joined:
            length, address = self._socket.recvfrom_into(self._buffer)
            return [bytes(memoryview(self._buffer)[:length])], address
        length, ancillary, _, address = self._socket.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
        size = length
        for level, kind, data in ancillary:
            if (level, kind) == (_SOL_UDP, _UDP_GRO):
                (size,) = _GRO_SIZE.unpack(data)
        view = memoryview(self._buffer)
        starts = range(0, length, size) if length else (0,)
        return [bytes(view[start : min(start + size, length)]) for start in starts], address


def _run(datagrams: Sequence[Datagram], start: int) -> int:
    """Count those that can go in one call: to one address, of one size; the last may be smaller."""
    first, address = datagrams[start]
    count, total = 1, len(first)
    for data, where in datagrams[start + 1 : start + MAX_JOINED]:
        total += len(data)
        if where != address or len(data) > len(first) or not data or total > _MAX_JOINED_BYTES:
            break
        count += 1
        if len(data) < len(first):
            break
    return count
