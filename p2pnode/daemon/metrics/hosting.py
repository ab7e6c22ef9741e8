"""Figures of the experts: only a node that hosts some has them, and has torch for that."""

import re
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from p2pnode.daemon.metrics.network import SECONDS
from p2pnode.events import Event, EventBus
from p2pnode.experts.events import (
    BatchComputed,
    CheckpointFailed,
    CheckpointSaved,
    ExpertFailed,
    ExpertRestarted,
    ExpertStopped,
)
from p2pnode.experts.sessions.service import SessionEnded, SessionOpened
from p2pnode.rpc.server import CallServed

ROWS: Final = tuple(4.0**power for power in range(9))  # up to 65,536
CALLS: Final = tuple(2.0**power for power in range(9))  # up to 256


class HostingMetrics(Collector):
    """Calls, batches, the device's time, and checkpoints.

    Args:
        registry: where they are registered.
        events: what they are counted from.
        describe: what `p2pnode experts` shows now.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        events: EventBus,
        describe: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._describe = describe
        self._calls = Counter(
            "p2pnode_calls",
            "Tensor calls served, by how they ended: ok, or the error.",
            ["operation", "outcome"],
            registry=registry,
        )
        self._call_seconds = Histogram(
            "p2pnode_call_seconds",
            "From a call's opening to its end, of those that went well.",
            ["operation"],
            buckets=SECONDS,
            registry=registry,
        )
        self._call_rows = Counter(
            "p2pnode_call_rows",
            "Rows of the calls that went well.",
            ["operation"],
            registry=registry,
        )
        self._batch_rows = Histogram(
            "p2pnode_batch_rows",
            "Rows computed together.",
            ["kind"],
            buckets=ROWS,
            registry=registry,
        )
        self._batch_calls = Histogram(
            "p2pnode_batch_calls",
            "Calls computed together.",
            ["kind"],
            buckets=CALLS,
            registry=registry,
        )
        self._device_seconds = Counter(
            "p2pnode_device_seconds",
            "How long devices have computed batches.",
            ["kind"],
            registry=registry,
        )
        self._sessions = Counter(
            "p2pnode_sessions",
            "Inference sessions that are over, by how they ended: ok, or the error.",
            ["outcome"],
            registry=registry,
        )
        self._session_positions = Counter(
            "p2pnode_session_positions",
            "Positions computed in inference sessions, of all rows together.",
            registry=registry,
        )
        self._sessions_open = Gauge(
            "p2pnode_sessions_open", "Inference sessions that are open.", registry=registry
        )
        self._session_bytes = Gauge(
            "p2pnode_session_bytes",
            "Room kept for keys and values of open sessions.",
            registry=registry,
        )
        registry.register(self)
        events.on(SessionOpened, self._receive_opened)
        events.on(SessionEnded, self._receive_ended)
        events.on(CallServed, self._receive_call)
        events.on(BatchComputed, self._receive_batch)
        for kind, name, text in (
            (ExpertFailed, "expert_failures", "Calls that failed inside their expert."),
            (ExpertStopped, "experts_stopped", "Experts taken out of service, being at fault."),
            (ExpertRestarted, "experts_restarted", "Experts back in service after that."),
            (CheckpointSaved, "checkpoints_saved", "Checkpoints written."),
            (CheckpointFailed, "checkpoints_failed", "Checkpoints that could not be written."),
        ):
            counter = Counter(f"p2pnode_{name}", text, registry=registry)
            events.on(kind, partial(_increment, counter))

    def _receive_call(self, event: CallServed) -> None:
        operation = event.operation or "unreadable"
        outcome = "ok" if event.error is None else _snake(event.error)
        self._calls.labels(operation, outcome).inc()
        if event.error is None:
            self._call_seconds.labels(operation).observe(event.seconds)
            self._call_rows.labels(operation).inc(event.rows)

    def _receive_batch(self, event: BatchComputed) -> None:
        self._batch_rows.labels(event.kind).observe(event.rows)
        self._batch_calls.labels(event.kind).observe(event.calls)
        self._device_seconds.labels(event.kind).inc(event.seconds)

    def _receive_opened(self, event: SessionOpened) -> None:
        self._sessions_open.inc()
        self._session_bytes.inc(event.cache_bytes)

    def _receive_ended(self, event: SessionEnded) -> None:
        self._sessions.labels("ok" if event.error is None else _snake(event.error)).inc()
        self._session_positions.inc(event.positions)
        if event.cache_bytes:
            self._sessions_open.dec()
            self._session_bytes.dec(event.cache_bytes)

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand, see `NetworkMetrics`."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Look at what there is now."""
        found = self._describe()
        experts = GaugeMetricFamily("p2pnode_experts", "Experts here.", labels=["state"])
        states = Counts(each["state"] for each in found)
        for state in ("serving", "standby", "paused", "stopped"):
            experts.add_metric([state], states[state])
        yield experts
        queued = sum(each["queued"] for each in found)
        yield GaugeMetricFamily(
            "p2pnode_calls_queued", "Calls that wait for a device.", value=queued
        )


def _increment(counter: Counter, _event: Event) -> None:
    counter.inc()


def _snake(name: str) -> str:
    """Turn the name of an error class into a label: `OverloadedError` is `overloaded`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Error")).lower()
