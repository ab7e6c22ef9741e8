"""`swarm …`: who shares the layers hosted here, and what they announce."""

import datetime as dt
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from cli.options import data_dir_option, json_option
from cli.output import as_one_line, count, print_json, print_line, print_note, print_table
from p2pnode.daemon.control.client import call_daemon
from p2pnode.daemon.data_dir import DataDir

_WAIT: Final = 20.0  # seconds, for which the daemon holds one question for changes
_SHORT: Final = 12  # characters of a digest that tell versions apart


@click.group()
def swarm() -> None:
    """Show the swarms of layers: who hosts a layer, and how good everybody's weights are."""


@swarm.command("list")
@data_dir_option
@json_option
def list_swarms(data_dir: DataDir, as_json: bool) -> None:
    """List the swarms that this node is in."""
    found = call_daemon(data_dir.control_socket, "swarms")
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["uid"],
            "yes" if each["hosted"] else "no",
            each["peers"],
            each["announcing"],
            each["mode"],
            each["round"],
            _score(each["best_score"]),
        )
        for each in found["swarms"]
    ]
    columns = ("layer", "hosted here", "others", "announcing", "mode", "round", "best score")
    print_table(count(len(rows), "swarm"), columns, rows)
    if alone := found["alone"]:
        kind = "other expert" if rows else "expert"
        print_note(f"Nobody else hosts {count(len(alone), kind)} of this node, as far as is known.")


@swarm.command()
@click.argument("uid")
@data_dir_option
@json_option
def show(uid: str, data_dir: DataDir, as_json: bool) -> None:
    """Show who hosts the layer UID, and what each announces.

    \b
    p2pnode swarm show mnist/layers.0
    """  # noqa: D301  # \b is click's mark for lines it must not wrap
    found = call_daemon(data_dir.control_socket, "swarm", uid=uid)
    if as_json:
        print_json(found)
        return
    rows = [] if found["own"] is None else [("this node", *_announced(found["own"]), None)]
    rows += [
        (member["peer_id"], *_announced(member["announcement"]), _remark(member))
        for member in found["members"]
    ]
    columns = ("peer", "round", "steps", "score", "scored on", "weights", "said", "remarks")
    print_table(f"{found['uid']}: {count(found['peers'], 'other')}", columns, rows)
    offenders = [
        (
            member["peer_id"],
            _offences(member["standing"]),
            as_one_line(member["standing"]["last_reason"]),
        )
        for member in found["members"]
        if member["standing"] is not None
    ]
    if offenders:
        print_table("Held against", ("peer", "offences", "the last one"), offenders)


@swarm.command()
@click.argument("uid")
@data_dir_option
@json_option
def watch(uid: str, data_dir: DataDir, as_json: bool) -> None:
    """Tell what happens in the swarm of the layer UID, until Ctrl-C."""
    before = call_daemon(data_dir.control_socket, "swarm", uid=uid)
    _tell({"event": "watching", **before}, as_json=as_json)
    while True:
        after = call_daemon(
            data_dir.control_socket,
            "swarm",
            uid=uid,
            since=before["revision"],
            wait=_WAIT,
            timeout=2 * _WAIT,
        )
        for event in changes(before, after):
            _tell(event, as_json=as_json)
        before = after


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Say what has changed in a swarm between two descriptions of it, one event each."""
    uid = after["uid"]
    old = {each["peer_id"]: each for each in before["members"]}
    new = {each["peer_id"]: each for each in after["members"]}
    for peer_id in [each for each in old if each not in new]:
        yield {"event": "left", "uid": uid, "peer_id": peer_id}
    for peer_id, member in new.items():
        if peer_id not in old:
            yield {"event": "joined", "uid": uid, "peer_id": peer_id}
        known = old.get(peer_id, {"announcement": None, "standing": None, "shunned": False})
        if said := _news(known["announcement"], member["announcement"]):
            yield {"event": "announced", "uid": uid, "peer_id": peer_id, **said}
        if member["shunned"] and not known["shunned"]:
            yield {
                "event": "shunned",
                "uid": uid,
                "peer_id": peer_id,
                "standing": member["standing"],
            }
    if said := _news(before["own"], after["own"]):
        yield {"event": "announced", "uid": uid, "peer_id": None, **said}


def describe_offender(found: Mapping[str, Any]) -> str:
    """Say in one line what a peer has done, and what follows from it."""
    if found["is_blacklisted"]:
        return f"blacklisted: {_offences(found)}"
    if found["back_off"]:
        return f"left alone for {found['back_off']:.0f} s: {_offences(found)}"
    return _offences(found)


def _tell(event: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(event)
    else:
        now = dt.datetime.now().astimezone()
        print_line(f"{now:%H:%M:%S}  {_sentence(event)}", sys.stdout)


def _sentence(event: Mapping[str, Any]) -> str:
    who = event.get("peer_id") or "this node"
    match event["event"]:
        case "watching":
            return f"{event['uid']}: {count(event['peers'], 'other')}; Ctrl-C ends"
        case "announced":
            parts = [f"{who} announces round {event['round']}"]
            if event["score"] is not None:
                parts.append(f"score {_score(event['score'])}")
            if event["weights"]:
                parts.append(f"weights {event['weights'][:_SHORT]}")
            return ", ".join(parts)
        case "shunned":
            standing = event["standing"]
            reason = f" ({as_one_line(standing['last_reason'])})" if standing else ""
            return f"{who} is left alone{reason}"
        case other:
            return f"{who} has {other}"


def _news(before: Any, after: Any) -> Any:
    """Return an announcement if it says something new."""
    if after is None or (before is not None and before["version"] == after["version"]):
        return None
    return after


def _announced(said: Any) -> tuple[Any, ...]:
    if said is None:
        return (None,) * 6
    return (
        said["round"],
        said["steps"],
        _score(said["score"]),
        said["scored_on"] or None,
        said["weights"] and said["weights"][:_SHORT],
        f"{said['age']:.0f} s ago",
    )


def _remark(member: Mapping[str, Any]) -> str | None:
    remarks = []
    if member["standing"] is not None:
        remarks.append(describe_offender(member["standing"]))
    if not member["connected"]:
        remarks.append("not connected")
    if not member["listed"]:
        remarks.append("not in the index")
    return ", ".join(remarks) or None


def _offences(standing: Mapping[str, Any]) -> str:
    return ", ".join(f"{times} x {name}" for name, times in standing["offences"].items())


def _score(score: float | None) -> str | None:
    return None if score is None else f"{score:.4f}"
