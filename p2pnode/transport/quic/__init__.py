"""QUIC: `/ip4/…/udp/…/quic-v1`, connections that bring security and streams of their own.

`engine` is one connection as aioquic keeps it, `core` the session above it, `endpoint` all those
that share a socket; these are pure. `session` and `stream` are what users hold, `carrier` is a
socket, and `service` the transport.
"""

from p2pnode.transport.quic.service import QuicTransport

__all__ = ["QuicTransport"]
