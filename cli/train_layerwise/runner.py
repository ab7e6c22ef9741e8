"""The demo: participants as processes of this machine, and one process alone to compare with.

What runs here starts them and reads what they tell. It takes no part in the training.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from cli.demo.daemons import DemoDaemon, ending, sigterm_unwinds, start_all
from cli.train_layerwise.alone import train_alone
from cli.train_layerwise.data import part_of, test_images
from cli.train_layerwise.display import Display, open_display
from cli.train_layerwise.plan import RUN, DemoOptions, Place
from cli.train_layerwise.plot import draw
from cli.train_layerwise.record import Look, Record, Told
from p2pnode import connect
from p2pnode.clock import wall_time
from p2pnode.errors import LocalError
from p2pnode.security.tokens import RunKey, issue_invite
from p2pnode.trainer.layerwise.data import Examples
from simulations.sweep import cores

_POLL: Final = 0.1  # seconds, between two looks at what participants tell
_INVITE_LIFETIME: Final = 86_400.0
# For swarms on one machine: others are heard of at once, and rounds may follow each other quickly.
_LOCAL: Final = (
    "hosting.threads=1",
    "hosting.update_period=1",
    "gossip.announcement_rate=20",
    "gossip.announcement_burst=40",
    "averaging.arrival_timeout=10",
    "averaging.patience=5",
)


def run_demo(options: DemoOptions) -> int:
    """Train; 0 when every participant has found the threshold reached, 1 otherwise.

    Raises:
        P2PNodeError: a participant could not be started, or ended too soon.
    """
    torch.set_num_threads(1)  # as the participants, who share this machine
    options.report.mkdir(parents=True, exist_ok=True)
    told = [
        Told(name=f"peer-{number}", layer=options.place(number).number)
        for number in range(options.participants)
    ]
    record = Record(options=options, told=told, cores=cores())
    test = test_images()
    with open_display(record) as display:
        _train_together(record, display, test)
        display.note("one process trains the same network alone, on the same images")
        parts = [part_of(_part(options, number)) for number in range(options.participants)]

        def tell(look: Look) -> None:
            record.alone.append(look)
            display.alone(look)

        record.alone_test_accuracy = train_alone(options, parts, test, tell)
    text = json.dumps(record.report(), indent=1)
    (options.report / "report.json").write_text(text + "\n", encoding="utf-8")
    draw(record, options.report / "report.png")
    display.finish()
    return 0 if record.has_reached else 1


def _train_together(record: Record, display: Display, test: Examples) -> None:
    options = record.options
    key = RunKey.generate()
    with (
        sigterm_unwinds(),
        tempfile.TemporaryDirectory(
            prefix="p2pnode-layerwise-", ignore_cleanup_errors=True
        ) as name,
    ):
        peers = [_make(number, options, key, Path(name)) for number in range(options.participants)]
        with ending(peers):
            display.note(
                f"starting {options.participants} participants:"
                f" {options.layers} layers, {options.peers} peers each"
            )
            start_all(peers)
            display.note("all are ready; training")
            _watch(record, display, peers)
            display.note("testing what the swarms have learnt, on images that nobody has seen")
            living = [
                each for each, told in zip(peers, record.told, strict=True) if not told.killed
            ]
            record.test_accuracy = _test(options, key, living, test)
            display.note("stopping the participants")


def _watch(record: Record, display: Display, peers: Sequence[DemoDaemon]) -> None:
    """Read what the participants tell, until the last one's training has ended.

    Raises:
        LocalError: one of them ended before its training had.
    """
    while any(each.ended is None for each in record.living):
        time.sleep(_POLL)
        for number, (peer, told) in enumerate(zip(peers, record.told, strict=True)):
            if told.killed:
                continue
            running = peer.is_running
            for event in peer.events():
                if event["event"] == "error":
                    raise LocalError(f"{peer.name} failed: {event['message']}")
                if record.receive(number, event) and event["event"] == "round_ended":
                    display.score(told)
            if not running:
                raise LocalError(f"{peer.name} has ended; see its log in {record.options.report}")
        victim = record.told[-1]
        # Also when it has ended: those who still train call it. Who comes last may have nothing to
        # train, if the others' weights are good enough.
        is_due = victim.samples > 0 or victim.ended is not None
        if record.options.kill and not victim.killed and is_due:
            peers[-1].kill()
            victim.killed = True
            display.note(f"killed {victim.name} after {victim.samples} examples")


def _test(options: DemoOptions, key: RunKey, peers: Sequence[DemoDaemon], test: Examples) -> float:
    """Send the test set through the swarms, as anybody could who may call them."""
    right = 0
    bootstrap = [each.address for each in peers]
    with connect(bootstrap, run=RUN, invite=_invite(key, {"train"})) as swarm, torch.no_grad():
        layers = [swarm.expert(options.place(number).expert) for number in range(options.layers)]
        for rows in torch.split(torch.arange(len(test)), options.agreed.batch):
            passing = test.inputs[rows]
            for layer in layers:
                passing = layer(passing)
            right += int((passing.argmax(dim=1) == test.targets[rows]).sum())
    return right / len(test)


def _make(number: int, options: DemoOptions, key: RunKey, state: Path) -> DemoDaemon:
    name = f"peer-{number}"
    settings = (
        *_LOCAL,
        f"hosting.seed={options.seed}",
        f"hosting.learning_rate={options.learning_rate}",
        f"rounds.start_peers={max(1, options.peers - 1)}",
    )
    return DemoDaemon(
        name,
        state / name,
        options.report,
        [
            *("--position", str(options.place(number)), "--part", str(_part(options, number))),
            *("--run", RUN, "--invite", _invite(key, {"host", "train"})),
            *("--hidden-dim", str(options.hidden_dim), *options.agreed.flags()),
            *(part for setting in settings for part in ("--set", setting)),
        ],
        command=("train-layerwise", "join"),
    )


def _part(options: DemoOptions, number: int) -> Place:
    return Place(number + 1, options.participants)


def _invite(key: RunKey, scopes: set[str]) -> str:
    return issue_invite(key, RUN, scopes=scopes, expires_at=wall_time() + _INVITE_LIFETIME)
