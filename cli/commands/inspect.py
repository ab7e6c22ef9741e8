"""Commands that ask the running daemon something: id, status, peers, experts, ping, stop."""

import datetime as dt
from typing import Any, Final

import click

from cli.commands.swarm import describe_offender
from cli.options import data_dir_option, json_option
from cli.output import as_one_line, count, print_facts, print_json, print_note, print_table
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.runs import FOREVER

STOP_TIMEOUT: Final = 300.0  # for running calls to end, and for experts to be saved
STOP_MARGIN: Final = 20.0  # for saving experts once their calls have ended


@click.command("id")
@data_dir_option
@json_option
def show_id(data_dir: DataDir, as_json: bool) -> None:
    """Show this node's peer id, making its identity on first use."""
    peer_id = str(data_dir.load_or_create_identity().peer_id)
    if as_json:
        print_json({"peer_id": peer_id, "data_dir": str(data_dir.path)})
    else:
        click.echo(peer_id)


@click.command()
@data_dir_option
@json_option
def status(data_dir: DataDir, as_json: bool) -> None:
    """Show what the running daemon is doing."""
    found = call_daemon(data_dir.control_socket, "status")
    if as_json:
        print_json(found)
        return
    facts: dict[str, Any] = {
        "peer id": found["peer_id"],
        "version": found["version"],
        "up": f"{found['uptime']:.0f} s (process {found['pid']})",
        "addresses": "\n".join(found["addresses"]),
        "listening on": "\n".join(found["listening"]) or None,
        "observed by others": "\n".join(found["observed"]) or None,
        "reachability": describe_reachability(found["reachability"]),
        "peers": f"{found['connections']} connected, {found['dht']['peers']} in the DHT table",
        "ways": ", ".join(f"{number} {way}" for way, number in found["ways"].items()) or None,
        "reached through": describe_reservations(found["relay"]),
        "relays for others": describe_relay(found["relay"]),
        "DHT": f"{found['dht']['mode']}, {found['dht']['records']} records",
        "experts": f"{found['experts']} hosted",
        "swarms": describe_swarms(found["swarms"]),
        "takes calls": describe_owner(found["owner"]),
        "metrics": found["metrics"] and f"http://{found['metrics']}/metrics",
        "calls": ", ".join(f"{count} {name}" for name, count in found["calls"].items()) or None,
    }
    for placed in found["placement"]:
        facts[f"chosen in {placed['run']}"] = describe_placement(placed)
    for run in found["runs"]:
        facts[f"run {run['run']}"] = describe_run(run)
    print_facts("Status", facts)
    _print_budget(found["budget"])
    if offenders := found["swarms"]["offenders"]:
        rows = [
            (each["peer_id"], describe_offender(each), as_one_line(each["last_reason"]))
            for each in offenders
        ]
        print_table("Held against other peers", ("peer", "for", "the last offence"), rows)


def describe_swarms(found: dict[str, Any]) -> str | None:
    """Say in one line with whom the node shares layers; None if it does with nobody."""
    if not found["joined"]:
        return None
    return (
        f"{count(found['joined'], 'layer')} shared with {count(found['members'], 'peer')},"
        f" {found['linked']} linked"
    )


def describe_owner(found: dict[str, Any]) -> str:
    """Say whether the node takes calls, or why it does not, and what it cannot see."""
    line = "yes"
    if found["paused"]:
        line = f"no, {found['reason']}"
        if found["until"] is not None:
            # The owner's own clock: what quiet hours are written in.
            line += f", until {dt.datetime.fromtimestamp(found['until']).astimezone():%a %H:%M}"
    return "\n".join(filter(None, (line, found["missing"])))


def describe_placement(found: dict[str, Any]) -> str:
    """Say what a node that chooses hosts, and why, one stretch a line."""
    hosted = f"{count(found['moves'], 'move')}, room for {found['capacity']} of {found['units']}"
    return "\n".join([*found["why"], hosted])


def describe_reachability(found: dict[str, Any]) -> str:
    """Say in one line whether others reach the node, and in another how that is known."""
    if found["forced"]:
        return f"{found['state']}, as the settings say"
    families = [
        f"{name.replace('ip', 'IPv')} {one['state']} for {one['for']:.0f} s "
        f"(reached by {one['reached']} of {count(one['reached'] + one['failed'], 'network')})"
        for name, one in found["families"].items()
        if one["state"] != "unknown"
    ]
    lines = [f"{found['state']}: {'; '.join(families)}" if families else found["state"]]
    if found["evidence"]:
        last = found["evidence"][0]
        about = f" about {last['addresses'][0]}" if last["addresses"] else ""
        lines.append(
            f"{last['age']:.0f} s ago {last['peer_id']} was asked{about}: {last['result']}"
            f" ({last['text']})"
        )
    elif found["state"] == "unknown":
        lines.append(f"{count(found['servers'], 'peer')} can be asked")
    return "\n".join(lines)


def describe_reservations(found: dict[str, Any]) -> str | None:
    """Say through which relays others reach the node, one a line; None if it wants none."""
    held = found["held"]
    if held is None or not held["wanted"]:
        return None
    lines = [
        f"relay {each['relay']}{', limited' if each['limited'] else ''}"
        f" (renewed within {each['seconds_left']:.0f} s)"
        for each in held["reservations"]
    ]
    return "\n".join(lines) or f"no relay yet; {count(held['known_relays'], 'relay')} known"


def describe_relay(found: dict[str, Any]) -> str | None:
    """Say in one line what the node carries for others; None if it does not."""
    given = found["given"]
    if given is None or not given["serving"]:
        return None
    return (
        f"{count(given['reservations'], 'reservation')}, {count(given['circuits'], 'circuit')}"
        f"{' (limited)' if given['limited'] else ''}, {given['bytes_carried'] / 1e6:.1f} MB"
        f" carried, {count(given['refused'], 'request')} refused"
    )


_BUDGETS: Final = {
    "connections": "connections",
    "inbound_connections": "inbound",
    "outbound_connections": "outbound",
    "handshakes": "handshakes",
    "inbound_streams": "streams in",
    "outbound_streams": "streams out",
    "bytes": "window MiB",
}
_COLUMNS: Final = ("inbound_streams", "outbound_streams", "bytes")  # and connections


def _print_budget(budget: dict[str, Any]) -> None:
    """Print what is used of what may be used: of the node, and of those who use most."""
    node = budget["node"]
    facts = {label: _use(node[name], name) for name, label in _BUDGETS.items() if name in node}
    print_facts("Budget of this node: used / limit", facts)
    if budget["top"]:
        columns = ("", "connections", *(_BUDGETS[name] for name in _COLUMNS))
        rows = [(_short(each["name"]), *_uses(each)) for each in budget["top"]]
        print_table("Those who use most: used / limit", columns, rows)
    refused = budget["refused"]
    if refused:
        print_table("Refused since the start", ("limit", "times"), sorted(refused.items()))


def _uses(scope: dict[str, Any]) -> list[str | None]:
    """Describe a subnet, of which only inbound connections count, a peer or a protocol."""
    connections = scope.get("connections") or scope.get("inbound_connections")
    found = {name: scope.get(name) for name in _COLUMNS}
    return [use and _use(use, name) for name, use in {"connections": connections, **found}.items()]


def _use(use: dict[str, int], name: str) -> str:
    if name == "bytes":
        return f"{use['used'] / 2**20:.4g} / {use['limit'] / 2**20:.4g}"
    return f"{use['used']} / {use['limit']}"


def _short(name: str) -> str:
    """Shorten a peer id, whose end tells peers apart; a subnet or a protocol stays as it is."""
    return name if len(name) <= 30 or "/" in name else f"peer …{name[-8:]}"


def describe_run(run: dict[str, Any]) -> str:
    """Say in a few words what a membership allows."""
    if run["expires_at"] is None:
        return "open: anyone who finds it may train it and change its experts"
    return f"{' and '.join(run['scopes'])}, {until(run['expires_at'])}"


def until(moment: float) -> str:
    """Say when something ends, in seconds since the epoch."""
    if moment >= FOREVER:
        return "for ever"
    return dt.datetime.fromtimestamp(moment, dt.UTC).strftime("until %Y-%m-%d %H:%M UTC")


@click.command()
@data_dir_option
@json_option
def peers(data_dir: DataDir, as_json: bool) -> None:
    """List the peers the daemon is connected to."""
    found = call_daemon(data_dir.control_socket, "peers")
    if as_json:
        print_json(found)
        return
    print_table(
        count(len(found), "peer"),
        ("peer id", "address", "direction", "way", "for", "streams", "sent", "received", "agent"),
        [
            (
                peer["peer_id"],
                peer["address"],
                peer["direction"],
                peer["way"],
                _age(peer["age"]),
                peer["streams"],
                _size(peer["bytes_sent"]),
                _size(peer["bytes_received"]),
                peer["agent"],
            )
            for peer in found
        ],
    )
    noted = [(_short(peer["peer_id"]), peer["way"], peer["note"]) for peer in found if peer["note"]]
    if noted:
        print_table("Why so", ("peer", "way", "why"), noted)


def _age(seconds: float) -> str:
    """Say how long something has lasted, roughly."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(size: float | None) -> str | None:
    if size is None:
        return None
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


@click.command()
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@data_dir_option
@json_option
def experts(patterns: tuple[str, ...], data_dir: DataDir, as_json: bool) -> None:
    """List the experts hosted here; with a PATTERN, find in the DHT who hosts those.

    \b
    p2pnode experts
    p2pnode experts 'digits/ffn0.[0:4].[0:4]'
    """  # noqa: D301  # \b is click's mark for lines it must not wrap
    if patterns:
        found = call_daemon(data_dir.control_socket, "find", patterns=list(patterns))
        columns: tuple[str, ...] = ("expert", "hosts", "peer ids")
        rows: list[tuple[Any, ...]] = [
            (each["uid"], len(each["hosts"]), "\n".join(host["peer_id"] for host in each["hosts"]))
            for each in found
        ]
    else:
        found = call_daemon(data_dir.control_socket, "experts")
        columns = ("expert", "layer", "state", "steps", "rows", "queue", "last saved")
        rows = [
            (
                each["uid"],
                each["layer"],
                *(each[name] for name in ("state", "steps", "rows", "queued")),
                each["saved_at"]
                and dt.datetime.fromtimestamp(each["saved_at"], dt.UTC).strftime("%H:%M:%S UTC"),
            )
            for each in found
        ]
    if as_json:
        print_json(found)
    else:
        print_table(count(len(found), "expert"), columns, rows)


@click.command()
@click.argument("peer")
@click.option("--count", "times", default=3, type=click.IntRange(1, 100), show_default=True)
@data_dir_option
@json_option
def ping(peer: str, times: int, data_dir: DataDir, as_json: bool) -> None:
    """Measure the round trip to PEER: a peer id, or an address that ends in /p2p/ID."""
    found = call_daemon(data_dir.control_socket, "ping", peer=peer, count=times)["seconds"]
    if as_json:
        print_json({"peer": peer, "seconds": found})
        return
    for number, seconds in enumerate(found, 1):
        click.echo(f"{number}: {seconds * 1000:.2f} ms")
    click.echo(f"fastest {min(found) * 1000:.2f} ms, slowest {max(found) * 1000:.2f} ms")


@click.command()
@data_dir_option
@json_option
def stop(data_dir: DataDir, as_json: bool) -> None:
    """Stop the running daemon: it withdraws its experts, saves them, and exits."""
    grace = call_daemon(data_dir.control_socket, "stop", timeout=STOP_TIMEOUT)["grace"]
    data_dir.wait_unlocked(grace + STOP_MARGIN)
    if as_json:
        print_json({"stopped": True})
    else:
        print_note("stopped")
