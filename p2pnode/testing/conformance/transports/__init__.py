"""What every transport must do.

Subclass `TransportConformance` as `Test…`, override its fixture `made` and its method, and declare
what the transport cannot do by class attributes; the tests in question are skipped with a reason.
"""

from p2pnode.testing.conformance.transports.addresses import AddressTests
from p2pnode.testing.conformance.transports.cancellation import CancellationTests
from p2pnode.testing.conformance.transports.listening import ListeningTests
from p2pnode.testing.conformance.transports.streams import StreamTests

__all__ = ["TransportConformance"]


class TransportConformance(StreamTests, AddressTests, ListeningTests, CancellationTests):
    """All of its tests, in one class; see `TransportSuite` for what to declare."""
