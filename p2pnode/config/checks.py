"""What a single value must be: known by name, of its type, and within its bounds.

What must hold between values of one section, its dataclass checks itself.
"""

import dataclasses
import difflib
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from p2pnode.config.units import KIB
from p2pnode.errors import ConfigError

# All other numbers are limits and times, of which 0 would stop the node or let it spin.
_MAY_BE_ZERO: Final = frozenset(
    {
        "dcutr.tcp_head_start",
        "dht.absence_reuse",
        "dht.lookup_reuse",
        "hosting.batch_window",
        "hosting.beta1",
        "hosting.beta2",
        "hosting.checkpoint_interval",
        "hosting.clip_grad_norm",
        "hosting.learning_rate",
        "hosting.momentum",
        "hosting.quick_work",
        "hosting.seed",
        "hosting.threads",
        "hosting.tolerated_wait",
        "hosting.total_steps",
        "hosting.urgent_lead",
        "hosting.warmup_steps",
        "hosting.weight_decay",
        "network.dial_relay_head_start",
        "network.dial_stagger",
        "network.identify_push_delay",
        "limits.max_download",
        "limits.max_upload",
        "limits.trim_grace",
        "limits.trim_silence",
        "node.shutdown_grace",
        "owner.max_memory",
        "owner.max_vram",
        "placement.max_layers",
        "pubsub.accept_px_threshold",
        "pubsub.app_specific_weight",
        "pubsub.behaviour_penalty_threshold",
        "pubsub.behaviour_penalty_weight",
        "pubsub.d_out",
        "pubsub.d_score",
        "pubsub.first_message_deliveries_weight",
        "pubsub.gossip_factor",
        "pubsub.gossip_threshold",
        "pubsub.idontwant_threshold",
        "pubsub.invalid_message_deliveries_weight",
        "pubsub.ip_colocation_factor_weight",
        "pubsub.mesh_failure_penalty_weight",
        "pubsub.mesh_message_deliveries_weight",
        "pubsub.opportunistic_graft_threshold",
        "pubsub.time_in_mesh_weight",
        "pubsub.topic_score_cap",
        "pubsub.topic_weight",
        "relay.circuit_bytes",
        "relay.circuit_seconds",
        "relay.max_rate",
        "rounds.max_loss",
        "rounds.outer_momentum",
        "rounds.slack",
        "rounds.start_peers",
        "sequential.kept_bytes",
        "sequential.relay_penalty",
        "sequential.session_reroute_gain",
        "sessions.join_window",
        "sequential.training_reroute_gain",
        "trainer.straggles_tolerated",
        "trainer.timeout_after_k_min",
        "weights.max_download_rate",
        "weights.max_upload_rate",
    }
)

# Numbers below which nothing works. A stream begins with a window of 256 KiB, in every Yamux.
_LEAST: Final = (
    dict.fromkeys(
        (
            "limits.max_bytes",
            "limits.max_bytes_per_address",
            "limits.max_bytes_per_connection",
            "limits.max_bytes_per_network",
            "limits.max_bytes_per_peer",
            "network.quic_base_window",
            "network.quic_max_window",
            "network.yamux_max_window",
        ),
        256 * KIB,
    )
    | dict.fromkeys(
        (
            "network.identify_max_message",
            "network.quic_send_buffer",
            "network.quic_socket_buffer",
            "network.websocket_max_message",
            "network.websocket_receive_buffer",
            "network.yamux_max_frame",
            "network.yamux_send_buffer",
            "network.yamux_write_budget",
            "node.control_request_limit",
        ),
        KIB,
    )
    | {"network.quic_max_datagram": 1200}
)  # RFC 9000, 14.1

# Penalties, and the scores from which peers are shunned.
_MUST_NOT_BE_POSITIVE: Final = frozenset(
    {
        "pubsub.behaviour_penalty_weight",
        "pubsub.gossip_threshold",
        "pubsub.graylist_threshold",
        "pubsub.invalid_message_deliveries_weight",
        "pubsub.ip_colocation_factor_weight",
        "pubsub.mesh_failure_penalty_weight",
        "pubsub.mesh_message_deliveries_weight",
        "pubsub.publish_threshold",
    }
)


def check_known(name: str, known: Collection[str], what: str) -> None:
    """Refuse a name that is not among the known ones.

    Args:
        name: as the user wrote it.
        known: all that may stand there.
        what: what it should be the name of.

    Raises:
        ConfigError: it is none of them; the error's text tells the one it resembles.
    """
    if name not in known:
        hint = suggestion(name, known)
        raise ConfigError(f"unknown {what} {name!r} in the configuration{hint}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: which one it resembles, if any."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_section(kind: Any, section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check values of one section, each by itself.

    Args:
        kind: the dataclass of the section.
        section: its name.
        values: by field.

    Returns:
        The values, of their fields' types.

    Raises:
        ConfigError: a name is unknown, or a value does not fit.
    """
    fields = {each.name: each.type for each in dataclasses.fields(kind)}
    checked = {}
    for name, value in values.items():
        check_known(name, fields, f"setting of [{section}]")
        checked[name] = _check(f"{section}.{name}", value, fields[name])
    return checked


def _check(name: str, value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(each, str) for each in items):
            raise ConfigError(f"{name} must be a list of texts")
        return tuple(items)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{name} must be {expected[kind]}, not {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(name, value)
    return value


def _check_number(name: str, value: float) -> None:
    if name in _MUST_NOT_BE_POSITIVE:
        if not float("-inf") < value <= 0:
            raise ConfigError(f"{name} must be a finite number that is not positive")
    elif not 0 <= value < float("inf"):
        raise ConfigError(f"{name} must be a finite number that is not negative")
    if value == 0 and name not in _MAY_BE_ZERO:
        side = "less" if name in _MUST_NOT_BE_POSITIVE else "more"
        raise ConfigError(f"{name} must be {side} than 0")
    if value < _LEAST.get(name, value):
        raise ConfigError(f"{name} must be at least {_LEAST[name]}")
