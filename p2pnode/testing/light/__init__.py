"""Light fidelity: hosts whose streams are memory pipes, without Noise or Yamux.

`light_hosts` runs a world of them. They implement `p2pnode.host.Host`, so every protocol service
runs on them unchanged, and the virtual network decides who reaches whom and when.
"""

from p2pnode.testing.light.connections import LightConnection
from p2pnode.testing.light.host import LightHost
from p2pnode.testing.light.streams import LightStream
from p2pnode.testing.light.world import LightWorld, light_hosts

__all__ = ["LightConnection", "LightHost", "LightStream", "LightWorld", "light_hosts"]
