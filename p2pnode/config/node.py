"""Who a node is, and how it meets others on the local network."""

from dataclasses import dataclass

from p2pnode.config.units import KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Who this node is, where it listens, and what it joins."""

    data_dir: str = ""  # where its state is kept; by default p2pnode in the user's data directory
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001",)
    announce: tuple[str, ...] = ()  # told to others instead of the listen addresses
    bootstrap: tuple[str, ...] = ()
    run: str = ""
    invite: str = ""
    experts: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()  # blocks of hosting.model
    shutdown_grace: float = 10.0  # how long SIGTERM lets running calls finish
    bootstrap_timeout: float = 15.0
    control_request_limit: int = 64 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class MdnsSettings:
    """Discovery of peers on the local network."""

    enabled: bool = False
    max_addresses: int = 16  # taken from one peer
    max_peers: int = 1024  # remembered, so that each is told of once
    max_waiting: int = 64  # announcements heard and not yet dealt with
    address_ttl: float = 600.0
    dials_at_once: int = 4
    dial_tries: int = 3  # of one peer for each time it is heard of
    dial_jitter: float = 0.5  # up to so long before a dial, doubled at each further try
    dial_pause: float = 0.2
    restart_delay: float = 1.0  # after the listen addresses have changed
    retry_interval: float = 60.0  # after the network failed
    close_timeout: float = 2.0  # for taking back what was announced
