"""What every `Host` must do, so that services run alike on memory and on the real network.

Subclass `HostConformance` as `Test…`, override `run_pair`, and `clock` where time is virtual.
"""

from p2pnode.testing.conformance.hosts.connections import ConnectionTests
from p2pnode.testing.conformance.hosts.ends import EndTests
from p2pnode.testing.conformance.hosts.streams import StreamTests

__all__ = ["HostConformance"]


class HostConformance(ConnectionTests, StreamTests, EndTests):
    """All of its tests, in one class; see `HostSuite` for what to override."""
