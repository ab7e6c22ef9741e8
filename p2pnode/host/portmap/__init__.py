"""Asking the router to let others in: PCP, NAT-PMP and UPnP."""

from p2pnode.host.portmap.interfaces import Mapping, Port, PortMapper
from p2pnode.host.portmap.service import PortMappingFailed, PortMappingService, PortsMapped

__all__ = [
    "Mapping",
    "Port",
    "PortMapper",
    "PortMappingFailed",
    "PortMappingService",
    "PortsMapped",
]
