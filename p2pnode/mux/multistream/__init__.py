"""multistream-select: agreeing on the protocol of a connection or a stream."""

from p2pnode.mux.multistream.core import Dialer, Listener
from p2pnode.mux.multistream.service import select_either, select_inbound, select_outbound

__all__ = ["Dialer", "Listener", "select_either", "select_inbound", "select_outbound"]
