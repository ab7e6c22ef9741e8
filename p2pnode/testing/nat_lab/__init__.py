"""Real NATs: homes, routers and wires out of Linux network namespaces."""

from p2pnode.testing.nat_lab.lab import Lab, Machine, Router
from p2pnode.testing.nat_lab.namespaces import LabError, Namespace, why_not

__all__ = ["Lab", "LabError", "Machine", "Namespace", "Router", "why_not"]
