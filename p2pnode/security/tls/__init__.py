"""Who is at the other end of a TLS 1.3 connection, by libp2p's self-signed certificates."""

from p2pnode.security.tls.certificates import TlsIdentity, verify_chain

__all__ = ["TlsIdentity", "verify_chain"]
