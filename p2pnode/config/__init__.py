"""Every setting and limit of a node: named, bounded, validated once.

Values come, in rising order of precedence, from the defaults in the sections, a TOML file,
environment variables (`P2PNODE_<SECTION>_<FIELD>`) and command-line flags. A section is a table of
the file, and a dataclass in one of these modules:

| module | sections |
|---|---|
| `node` | `[node]`, `[mdns]` |
| `network` | `[network]`, `[perf]` |
| `limits` | `[limits]` |
| `owner` | `[owner]`, `[metrics]` |
| `portmap` | `[portmap]` |
| `dcutr` | `[dcutr]` |
| `dht` | `[dht]` |
| `pubsub` | `[pubsub]` |
| `gossip` | `[gossip]` |
| `averaging` | `[averaging]` |
| `reachability` | `[reachability]` |
| `relay` | `[relay]` |
| `sessions` | `[sessions]` |
| `experts` | `[rpc]`, `[hosting]`, `[swarm]`, `[trainer]` |
| `layerwise` | `[layerwise]` |
| `placement` | `[placement]` |
| `rounds` | `[rounds]` |
| `sequential` | `[sequential]` |
| `splitting` | `[splitting]` |
| `weights` | `[weights]` |

Sizes are bytes and durations seconds, unless a name says otherwise.
"""

from p2pnode.config.averaging import AveragingSettings
from p2pnode.config.dcutr import DcutrSettings
from p2pnode.config.dht import DhtSettings
from p2pnode.config.experts import HostingSettings, RpcSettings, SwarmSettings, TrainerSettings
from p2pnode.config.gossip import GossipSettings
from p2pnode.config.layerwise import LayerwiseSettings
from p2pnode.config.limits import LimitSettings
from p2pnode.config.network import NetworkSettings, PerfSettings
from p2pnode.config.node import MdnsSettings, NodeSettings
from p2pnode.config.owner import MetricsSettings, OwnerSettings
from p2pnode.config.placement import PlacementSettings
from p2pnode.config.portmap import PortmapSettings
from p2pnode.config.pubsub import PubSubSettings
from p2pnode.config.reachability import ReachabilitySettings
from p2pnode.config.relay import RelaySettings
from p2pnode.config.rounds import RoundsSettings
from p2pnode.config.sequential import SequentialSettings
from p2pnode.config.sessions import SessionSettings
from p2pnode.config.settings import Settings
from p2pnode.config.splitting import SplittingSettings
from p2pnode.config.units import KIB, MIB
from p2pnode.config.weights import WeightsSettings

__all__ = [
    "KIB",
    "MIB",
    "AveragingSettings",
    "DcutrSettings",
    "DhtSettings",
    "GossipSettings",
    "HostingSettings",
    "LayerwiseSettings",
    "LimitSettings",
    "MdnsSettings",
    "MetricsSettings",
    "NetworkSettings",
    "NodeSettings",
    "OwnerSettings",
    "PerfSettings",
    "PlacementSettings",
    "PortmapSettings",
    "PubSubSettings",
    "ReachabilitySettings",
    "RelaySettings",
    "RoundsSettings",
    "RpcSettings",
    "SequentialSettings",
    "SessionSettings",
    "Settings",
    "SplittingSettings",
    "SwarmSettings",
    "TrainerSettings",
    "WeightsSettings",
]
