"""All figures of a node on one page."""

from collections.abc import Callable
from typing import Any

import trio
from prometheus_client import CollectorRegistry, disable_created_metrics

from p2pnode.config import MetricsSettings
from p2pnode.daemon.metrics.network import NetworkMetrics
from p2pnode.daemon.metrics.service import MetricsServer
from p2pnode.daemon.owner.core import Decision
from p2pnode.swarm.network import Network


class MetricsPage:
    """Collects the figures from now on; serves them while `run` runs.

    Args:
        settings: where.
        network: what is measured.
        decision: whether the node is paused, and by what.

    Raises:
        ConfigError: the address cannot be read.
    """

    def __init__(
        self, settings: MetricsSettings, network: Network, decision: Callable[[], Decision]
    ) -> None:
        # It would put a time beside each figure, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # of a typed package
        self._registry = CollectorRegistry()
        self._events = network.host.events
        self._server = MetricsServer(settings, self._registry)
        NetworkMetrics(self._registry, network, decision)

    @property
    def address(self) -> str | None:
        """Where it is served, once it is."""
        return self._server.address

    def begin_hosting(self, describe: Callable[[], list[dict[str, Any]]]) -> None:
        """Collect the figures of experts, too, once there are some.

        Args:
            describe: what `p2pnode experts` shows of them.
        """
        from p2pnode.daemon.metrics.hosting import HostingMetrics  # noqa: PLC0415  # imports torch

        HostingMetrics(self._registry, self._events, describe)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; raises as `MetricsServer.run` does."""
        await self._server.run(task_status=task_status)
