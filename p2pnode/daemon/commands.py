"""The commands that ask a running node about itself, and that give it more to do.

Those that concern one part of it alone (the DHT, swarms, descriptions of runs, the machine's owner)
stand beside that part.
"""

import dataclasses
import os
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from multiaddr import Multiaddr

from p2pnode import __version__
from p2pnode.config import Settings
from p2pnode.daemon.control.params import table, text, texts
from p2pnode.daemon.control.service import Method
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.doctor.diagnosis import diagnose
from p2pnode.daemon.doctor.examination import examine
from p2pnode.daemon.doctor.facts import as_plain
from p2pnode.daemon.owner.commands import describe_owner
from p2pnode.daemon.status import describe_network, describe_peers
from p2pnode.errors import BadRequestError, ConfigError, InvalidUidError
from p2pnode.swarm.lookup import HostEntry
from p2pnode.wire.peer_id import PeerId
from p2pnode.wire.uids import expand_all

if TYPE_CHECKING:
    from p2pnode.daemon.node import Node

MAX_PINGS: Final = 100
MAX_FOUND: Final = 1024  # experts looked up by one `find`
_JOINABLE: Final = {  # what a running daemon takes on
    "node.bootstrap",
    "node.experts",
    "node.invite",
    "node.layers",
    "node.run",
}
_AT_THE_START: Final = ("owner", "limits", "metrics")  # sections that stay as they are


class NodeCommands:
    """The commands of one node."""

    def __init__(self, node: "Node", data_dir: DataDir, rng: random.Random) -> None:
        self._node = node
        self._data_dir = data_dir
        self._rng = rng

    def methods(self) -> dict[str, Method]:
        """Return them by the names they have on the control socket."""
        return {
            "status": self._status,
            "peers": self._peers,
            "experts": self._experts,
            "find": self._find,
            "ping": self._ping,
            "host": self._host,
            "stop": self._stop,
            "doctor": self._doctor,
        }

    async def _status(self, _params: Mapping[str, Any]) -> Any:
        node = self._node
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime": node.uptime,
            **describe_network(node.network),
            "experts": len(node.hosted()),
            "swarms": node.swarms.describe(),
            "placement": node.placing.describe(),
            "owner": describe_owner(node.owner),
            "metrics": node.metrics_address,
            "calls": node.hosting.calls() if node.hosting else {},
            "runs": [membership.summary() for membership in node.memberships()],
        }

    async def _peers(self, _params: Mapping[str, Any]) -> Any:
        return describe_peers(self._node.network)

    async def _doctor(self, _params: Mapping[str, Any]) -> Any:
        facts = await examine(
            self._node.network,
            self._node.settings,
            self._data_dir.path,
            self._rng,
            experts=len(self._node.hosted()),
        )
        findings = [
            dataclasses.asdict(each) | {"level": each.level.name.lower()}
            for each in diagnose(facts)
        ]
        return {"findings": findings, "facts": as_plain(facts)}

    async def _experts(self, _params: Mapping[str, Any]) -> Any:
        return self._node.hosted()

    async def _find(self, params: Mapping[str, Any]) -> Any:
        uids = expand_all(texts(params, "patterns"), self._node.settings.node.run or None)
        if len(uids) > MAX_FOUND:
            raise InvalidUidError(f"at most {MAX_FOUND} experts can be looked up at once")
        found = []
        for uid in uids:
            run_id = self._node.membership_of(uid.run).run_id
            hosts = await self._node.network.directory.hosts(uid.in_run(run_id))
            found.append({"uid": str(uid), "hosts": [_describe_host(host) for host in hosts]})
        return found

    async def _ping(self, params: Mapping[str, Any]) -> Any:
        count = params.get("count", 1)
        if not isinstance(count, int) or not 1 <= count <= MAX_PINGS:
            raise BadRequestError(f"the count of pings is a number from 1 to {MAX_PINGS}")
        network = self._node.network
        peer_id, addresses = network.resolve(text(params, "peer"))
        known = addresses or await self._find_addresses(peer_id)
        await network.host.connect(peer_id, known, insist=True)
        return {"seconds": [await network.ping.ping(peer_id) for _ in range(count)]}

    async def _find_addresses(self, peer_id: PeerId) -> list[Multiaddr]:
        network = self._node.network
        if network.host.connection_to(peer_id) is not None:
            return []
        return await network.dht.find_peer(peer_id)

    async def _host(self, params: Mapping[str, Any]) -> Any:
        """Take on what `p2pnode host` asks for; returns the experts that are hosted since."""
        node = self._node
        asked = {name: table(params, name) for name in ("node", *_AT_THE_START)}
        told = Settings.load(environ={}, overrides=asked)
        _refuse_changes(node.settings, told, asked)
        hosting = dataclasses.asdict(node.settings.hosting) | table(params, "hosting")
        more = {"hosting": hosting, "placement": table(params, "placement")}
        settings = Settings.load(environ={}, overrides=more)
        known = {expert["uid"] for expert in node.hosted()}
        await node.take_on(told.node, settings.hosting, settings.placement)
        return [expert for expert in node.hosted() if expert["uid"] not in known]

    async def _stop(self, _params: Mapping[str, Any]) -> Any:
        try:
            await self._node.drain()
            if self._node.hosting is not None:  # here, so that whoever asked hears if it fails
                await self._node.hosting.save()
        finally:
            self._node.request_stop()
        return {"grace": self._node.settings.node.shutdown_grace}


def _refuse_changes(
    before: Settings, told: Settings, asked: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to change what a daemon takes only when it starts.

    Args:
        before: how the daemon runs.
        told: what is wanted.
        asked: the settings named in it, by section; the others are none of its business.

    Raises:
        ConfigError: one of them would be another.
    """
    for section, names in asked.items():
        for name in sorted(names):
            if f"{section}.{name}" in _JOINABLE:
                continue
            if getattr(getattr(told, section), name) != getattr(getattr(before, section), name):
                raise ConfigError(
                    f"a running daemon cannot change {section}.{name}; stop it with"
                    " `p2pnode stop` and start it anew"
                )


def _describe_host(host: HostEntry) -> dict[str, Any]:
    return {
        "peer_id": str(host.peer_id),
        "addresses": [str(address) for address in host.addresses],
        "load": host.load,
        "expires": host.expiry,
    }
