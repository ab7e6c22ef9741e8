"""Running a daemon in the foreground: signals, the ready line, and its log."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable

import trio

from cli.event_log import EventLog
from cli.open_files import RESERVE, raise_open_files
from cli.output import count, print_event, print_line, print_note
from p2pnode.config import Settings
from p2pnode.daemon.data_dir import DataDir
from p2pnode.daemon.node import Node
from p2pnode.events import Event

Work = Callable[[Node], Awaitable[None]]


def run_daemon(
    data_dir: DataDir,
    settings: Settings,
    *,
    log_level: str,
    as_json: bool,
    work: Work | None = None,
) -> None:
    """Run a node until SIGINT, SIGTERM or `p2pnode stop`.

    Args:
        data_dir: its state.
        settings: of the node.
        log_level: which events are reported.
        as_json: whether for machines.
        work: what is done beside it once it is ready; the node goes on when that has ended, and
            is stopped when it fails.

    Raises:
        P2PNodeError: the node cannot start, or `work` failed.
    """
    allowed, wanted = raise_open_files(), settings.limits.max_connections
    if allowed < wanted + RESERVE:
        print_note(
            f"WARNING: the system lets this process open {allowed} files, too few for "
            f"limits.max_connections = {wanted}; raise it with `ulimit -n`, or lower the setting"
        )
    node = Node(data_dir, settings)
    trio.run(_run, node, EventLog(log_level, as_json=as_json), as_json, work)


async def _run(node: Node, log: EventLog, as_json: bool, work: Work | None) -> None:
    async with trio.open_nursery() as signals:
        starting = trio.CancelScope()
        await signals.start(_stop_on_signal, node, starting)
        async with trio.open_nursery() as daemon:
            node.events.on(Event, log.write)
            with starting:
                await daemon.start(node.run)
            if not starting.cancelled_caught:
                print_ready(node, as_json=as_json)
                log.release()
                if work is not None:
                    daemon.start_soon(_work_beside, node, work)
        signals.cancel_scope.cancel()
    if as_json:
        print_event("stopped")
    else:
        print_note("stopped")


async def _work_beside(node: Node, work: Work) -> None:
    """Do the work, for as long as nobody asks the node to end."""

    async def end() -> None:
        await node.wait_stop()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        await work(node)
        nursery.cancel_scope.cancel()


async def _stop_on_signal(
    node: Node, starting: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    """End the node in good order at the first signal, and the process at a second SIGINT.

    A hangup counts unless it is ignored, as `nohup` has it.
    """
    wanted = {signal.SIGINT, signal.SIGTERM}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.add(signal.SIGHUP)
    with trio.open_signal_receiver(*wanted) as signals:
        task_status.started()
        stopping = False
        async for number in signals:
            if stopping and number == signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            if not stopping and number == signal.SIGINT:
                print_note("stopping; press Ctrl-C again to end at once, without saving")
            stopping = True
            starting.cancel()
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
            open_runs=node.open_runs(),
        )
        return
    print_note(f"node {node.network.peer_id} is ready")
    word = "announcing" if node.settings.node.announce else "listening on"
    for address in addresses:
        print_note(f"  {word} {address}")
    if experts:
        restored = sum(each["restored"] for each in experts)
        told = count(len(experts), "expert")
        print_note(f"  hosting {told}, {restored} restored from checkpoints")
    for run in node.open_runs():
        print_note(f"  WARNING: the run {run} is open: anyone may train and change these experts")
    if addresses:
        print_note("To join from another machine:")
        print_line(f"p2pnode join --bootstrap {addresses[0]}", sys.stdout)
