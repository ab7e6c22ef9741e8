import dataclasses
import json
import os
from dataclasses import dataclass

import pytest
import trio

from cli.event_log import MAX_LINES, PERIOD, EventLog
from p2pnode.events import Event
from p2pnode.host import PeerMisbehaved
from p2pnode.rpc.server import CallServed
from p2pnode.wire.keys import PrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFull(Event):
    level = "warning"

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gossip(Event):
    about: tuple[str, ...]


def misbehaved(reason):
    return PeerMisbehaved(peer_id=None, address=None, reason=reason)


async def test_a_line_has_the_event_its_level_and_its_facts(capsys):
    EventLog("info", as_json=False).write(DiskFull(reason="no space"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("warning disk full  reason=no space\n")


async def test_a_call_can_be_followed_by_its_trace(capsys):
    call = CallServed(
        peer_id=PrivateKey.from_seed(bytes(32)).peer_id, operation="forward", uid=None, rows=3,
        seconds=0.1, error=None, trace=b"\x01\xab" * 4,
    )  # fmt: skip
    EventLog("debug", as_json=False).write(call)
    assert "  trace=01ab01ab01ab01ab\n" in capsys.readouterr().err
    log = EventLog("debug", as_json=True)
    log.release()
    log.write(call)
    log.write(dataclasses.replace(call, trace=b""))
    with_trace, without = map(json.loads, capsys.readouterr().out.splitlines())
    assert (with_trace["trace"], without["trace"]) == ("01ab01ab01ab01ab", None)


async def test_events_below_the_level_are_not_written(capsys):
    EventLog("info", as_json=False).write(Gossip(about=("a",)))
    EventLog("warning", as_json=False).write(misbehaved("x"))
    assert capsys.readouterr().err == ""
    EventLog("debug", as_json=False).write(Gossip(about=("a", "b")))
    assert "about=['a', 'b']" in capsys.readouterr().err


async def test_what_a_peer_says_can_neither_break_the_line_nor_steer_the_terminal(capsys):
    EventLog("info", as_json=False).write(misbehaved("a\nb\x1b[2Jc\u202ed é"))
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "a\\nb\\x1b[2Jc\\u202ed é" in shown


async def test_machines_get_what_was_held_back_after_the_ready_line(capsys):
    log = EventLog("info", as_json=True)
    log.write(DiskFull(reason="early"))
    assert capsys.readouterr().out == ""
    log.release()
    log.write(DiskFull(reason="late"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("disk_full", "early"),
        ("disk_full", "late"),
    ]


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_flood_of_one_kind_leaves_the_log_readable(as_json, capsys, autojump_clock):
    log = EventLog("info", as_json=as_json)
    log.release()
    for number in range(10 * MAX_LINES):
        log.write(misbehaved(str(number)))
    log.write(DiskFull(reason="still seen"))
    shown = "".join(capsys.readouterr())
    assert shown.count("reason") == MAX_LINES + 1
    assert shown.count("misbehaved") == MAX_LINES + 1  # the last one says that others are left out
    assert "still seen" in shown
    await trio.sleep(PERIOD)
    log.write(misbehaved("later"))
    assert "later" in "".join(capsys.readouterr())


async def test_people_are_not_told_what_is_unknown(capsys):
    EventLog("info", as_json=False).write(misbehaved("x"))
    shown = capsys.readouterr().err
    assert "reason=x" in shown
    assert "None" not in shown


async def test_a_reader_that_stops_reading_does_not_stop_the_daemon(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "w") as written:
        monkeypatch.setattr("sys.stdout", written)
        log = EventLog("info", as_json=True)
        log.release()
        for number in range(MAX_LINES):
            log.write(DiskFull(reason=f"{number} {'.' * 2000}"))  # more than a pipe holds
        found = os.read(reader, 2**20).splitlines()
        assert 8 < len(found) < MAX_LINES
        log.write(misbehaved("late"))
        told = [json.loads(line) for line in os.read(reader, 2**20).splitlines()]
        assert [each["event"] for each in told] == ["lost", "peer_misbehaved"]
        assert told[0]["lines"] == MAX_LINES - len(found)
        assert read.fileno() == reader
