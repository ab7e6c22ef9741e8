"""The virtual network, pure: latency, bandwidth, loss, partitions and address translation.

`VirtualNetwork` is the model; `p2pnode.testing.hosts` and `p2pnode.testing.light` run nodes on it.
"""

from p2pnode.testing.network.dialling import Answer, Arrival, Knock
from p2pnode.testing.network.grades import GRADES, IDEAL, MBIT, LinkGrade
from p2pnode.testing.network.latency import (
    REGIONS,
    Drawn,
    Exponential,
    Fixed,
    Latency,
    LogNormal,
    Normal,
    RegionMatrix,
)
from p2pnode.testing.network.machines import Machine
from p2pnode.testing.network.nat import Endpoint, Nat, Router
from p2pnode.testing.network.virtual_network import VirtualNetwork
from p2pnode.testing.network.wires import Flow, Wire, draw_loss

__all__ = [
    "GRADES",
    "IDEAL",
    "MBIT",
    "REGIONS",
    "Answer",
    "Arrival",
    "Drawn",
    "Endpoint",
    "Exponential",
    "Fixed",
    "Flow",
    "Knock",
    "Latency",
    "LinkGrade",
    "LogNormal",
    "Machine",
    "Nat",
    "Normal",
    "RegionMatrix",
    "Router",
    "VirtualNetwork",
    "Wire",
    "draw_loss",
]
