"""All sections of the settings, and how they are put together from their sources."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from p2pnode.config.averaging import AveragingSettings
from p2pnode.config.checks import check_known, check_section
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
from p2pnode.config.sources import from_environ, from_texts, read_file
from p2pnode.config.splitting import SplittingSettings
from p2pnode.config.weights import WeightsSettings
from p2pnode.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a node."""

    node: NodeSettings = field(default_factory=NodeSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    relay: RelaySettings = field(default_factory=RelaySettings)
    perf: PerfSettings = field(default_factory=PerfSettings)
    mdns: MdnsSettings = field(default_factory=MdnsSettings)
    dcutr: DcutrSettings = field(default_factory=DcutrSettings)
    portmap: PortmapSettings = field(default_factory=PortmapSettings)
    dht: DhtSettings = field(default_factory=DhtSettings)
    pubsub: PubSubSettings = field(default_factory=PubSubSettings)
    gossip: GossipSettings = field(default_factory=GossipSettings)
    reachability: ReachabilitySettings = field(default_factory=ReachabilitySettings)
    rpc: RpcSettings = field(default_factory=RpcSettings)
    hosting: HostingSettings = field(default_factory=HostingSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    swarm: SwarmSettings = field(default_factory=SwarmSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    sequential: SequentialSettings = field(default_factory=SequentialSettings)
    splitting: SplittingSettings = field(default_factory=SplittingSettings)
    weights: WeightsSettings = field(default_factory=WeightsSettings)
    rounds: RoundsSettings = field(default_factory=RoundsSettings)
    averaging: AveragingSettings = field(default_factory=AveragingSettings)
    layerwise: LayerwiseSettings = field(default_factory=LayerwiseSettings)
    owner: OwnerSettings = field(default_factory=OwnerSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    @classmethod
    def load(
        cls,
        *,
        file: Path | None = None,
        environ: Mapping[str, str] = os.environ,
        texts: Mapping[str, Mapping[str, str]] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """Read the settings from all their sources.

        Args:
            file: a TOML file, or None.
            environ: where `P2PNODE_<SECTION>_<FIELD>` is looked up.
            texts: values by section and field, written as text, as command-line flags give them.
            overrides: values by section and field, of the field's own type.

        Raises:
            ConfigError: a file cannot be read, a name is unknown, or a value does not fit.
        """
        sections: dict[str, Any] = {each.name: each.type for each in dataclasses.fields(cls)}
        layers = [
            read_file(file) if file else {},
            from_texts(sections, from_environ(sections, environ)),
            from_texts(sections, texts or {}),
            overrides or {},
        ]
        values: dict[str, dict[str, Any]] = {name: {} for name in sections}
        for layer in layers:
            for section, table in layer.items():
                check_known(section, sections, "section")
                if not isinstance(table, Mapping):
                    raise ConfigError(f"[{section}] must be a table of settings")
                values[section] |= table
        return cls(
            **{
                name: kind(**check_section(kind, name, values[name]))
                for name, kind in sections.items()
            }
        )

    def replace(self, **sections: Mapping[str, Any]) -> Self:
        """Return a copy in which some fields of some sections differ.

        Raises:
            ConfigError: a name is unknown, or a value does not fit.
        """
        changed = {}
        for name, table in sections.items():
            check_known(name, [each.name for each in dataclasses.fields(self)], "section")
            section = getattr(self, name)
            checked = check_section(type(section), name, table)
            changed[name] = dataclasses.replace(section, **checked)
        return dataclasses.replace(self, **changed)
