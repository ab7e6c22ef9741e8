"""`train-layerwise join`: one participant, in the foreground."""

from typing import Final

import trio

from cli.daemon import run_daemon
from cli.options import data_dir_of
from cli.output import print_event, print_note
from cli.train_layerwise.plan import MIN_LAYERS, Agreed, Place
from p2pnode.config import Settings
from p2pnode.daemon.node import Node
from p2pnode.daemon.training import LayerwiseTraining
from p2pnode.errors import ConfigError
from p2pnode.swarm.rounds.events import End
from p2pnode.trainer.layerwise.data import Part
from p2pnode.trainer.layerwise.layers import layer_names
from p2pnode.wire.uids import Uid

_WHY: Final = {
    End.THRESHOLD: "as you asked for",
    End.ROUNDS: "when all rounds were over",
    End.LEFT: "when most others had long ended",
}


def settings_for(settings: Settings, position: Place, agreed: Agreed) -> Settings:
    """Return the settings of a participant that hosts and trains a layer.

    Raises:
        ConfigError: values do not fit, or the network has one layer.
    """
    if position.count < MIN_LAYERS:
        raise ConfigError("a network that swarms share has two layers or more, as in 1/2")
    return settings.replace(
        node={"experts": (position.expert,)},
        hosting={
            "layer": layer_names(position.count)[position.number - 1],
            "max_step_rows": agreed.batch,  # so that each micro-batch is a step of its own
        },
        rounds={
            "mode": agreed.mode,
            "threshold": agreed.threshold,
            "rounds": agreed.rounds,
            "samples": agreed.samples,
        },
        layerwise={
            "batch": agreed.batch,
            "in_flight": agreed.in_flight,
            "max_staleness": agreed.max_staleness,
            "codec": agreed.codec,
        },
    )


def join(settings: Settings, position: Place, part: Part, *, log_level: str, as_json: bool) -> None:
    """Run a node that hosts and trains a layer, until it is stopped.

    Raises:
        P2PNodeError: the node cannot start, or it cannot train.
    """

    async def train(node: Node) -> None:
        (hosted,) = node.hosted()
        training = LayerwiseTraining(
            node,
            Uid.parse(hosted["uid"]),
            part,
            layers=position.count,
            seed=int.from_bytes(part.digest[:4]),
        )
        began = trio.current_time()
        ended = await training.run()
        seconds = trio.current_time() - began
        if as_json:
            print_event(
                "trained",
                score=ended.score,
                round=ended.round,
                reason=str(ended.reason),
                seconds=seconds,
            )
        else:
            print_note(
                f"trained: {ended.score:.1%} of the hold-out is right after {ended.round} rounds"
                f" and {seconds:.0f} s, {_WHY[ended.reason]}; serving on until Ctrl-C, for those"
                " who still train"
            )

    run_daemon(data_dir_of(settings), settings, log_level=log_level, as_json=as_json, work=train)
