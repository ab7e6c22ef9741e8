"""Running a daemon in the foreground: signals, the ready line, and its log."""

import signal

import trio

from cli.event_log import EventLog
from cli.output import print_event, print_note
from p2pnode.config import Settings
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.node import Node
from p2pnode.events import Event


def run_daemon(data_dir: DataDir, settings: Settings, *, log_level: str, as_json: bool) -> None:
    """Run a node until SIGINT, SIGTERM or `p2pnode stop`.

    Raises:
        P2PNodeError: the node cannot start.
    """
    node = Node(data_dir, settings)
    trio.run(_run, node, EventLog(log_level, as_json=as_json), as_json)


async def _run(node: Node, log: EventLog, as_json: bool) -> None:
    async with trio.open_nursery() as signals:
        signals.start_soon(_stop_on_signal, node)
        async with trio.open_nursery() as daemon:
            held: list[Event] = []  # machines are promised the ready line first
            stop_holding = node.events.on(Event, held.append)
            await daemon.start(node.run)
            stop_holding()
            print_ready(node, as_json=as_json)
            for event in held:
                log.write(event)
            node.events.on(Event, log.write)
        signals.cancel_scope.cancel()
    if as_json:
        print_event("stopped")
    else:
        print_note("stopped")


async def _stop_on_signal(node: Node) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            node.request_stop()


def print_ready(node: Node, *, as_json: bool) -> None:
    """Say that the node serves, and how to join it."""
    addresses = node.network.full_addresses()
    experts = node.hosted()
    if as_json:
        print_event(
            "ready",
            peer_id=str(node.network.peer_id),
            addresses=addresses,
            experts=[
                {"uid": each["uid"], "step": each["steps"], "restored": each["restored"]}
                for each in experts
            ],
        )
        return
    print_note(f"node {node.network.peer_id} is ready")
    for address in addresses:
        print_note(f"  listening on {address}")
    if experts:
        restored = sum(each["restored"] for each in experts)
        print_note(f"  hosting {len(experts)} experts, {restored} restored from checkpoints")
    for run in node.open_runs():
        print_note(f"  WARNING: the run {run} is open: anyone may train and change these experts")
    if addresses:
        print_note("To join from another machine:")
        print(f"p2pnode join --bootstrap {addresses[0]}", flush=True)
