"""Noise XX: proves the peer id at the other end and encrypts everything after.

`core` is the handshake and the ciphers as pure state machines; `service` runs them over a stream.
"""

from p2pnode.security.noise.service import (
    SecureChannel,
    SecureSession,
    secure_inbound,
    secure_outbound,
)

__all__ = ["SecureChannel", "SecureSession", "secure_inbound", "secure_outbound"]
