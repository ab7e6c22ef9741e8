"""What can be changed in several scenarios of swarms: how they train, what computing takes."""

from collections.abc import Mapping
from typing import Final

from simulations.conditions import NETWORK, adapt
from simulations.parameters import Parameter

SWARM: Final[Mapping[str, Parameter]] = {
    "data": Parameter("mnist", "what is learnt", choices=("digits", "mnist")),
    "mode": Parameter("best", "what becomes of the weights", choices=("best", "average", "diloco")),
    "aggregator": Parameter(
        "mean",
        "how weights are averaged",
        choices=("mean", "trimmed-mean", "centered-clipping"),
    ),
    "peers": Parameter(10, "that take part, liars included", minimum=2, maximum=64),
    "rounds": Parameter(20, "until the training ends", minimum=1),
    "samples": Parameter(300, "that each participant trains on in a round", minimum=1),
    "held_out": Parameter(100, "of its images, that each one scores on", minimum=10),
    "batch": Parameter(20, "images of a step", minimum=1),
    "learning_rate": Parameter(
        0.03, "of SGD with momentum, in the first round; falls to 0 by the last one", "", 0.0
    ),
    "compute": Parameter(
        0.1, "that a forward pass, a step and scoring take each, modelled", "s", 0.0
    ),
    "patience": Parameter(10.0, "for the others' announcements in a round", "s", 0.1),
    **adapt(NETWORK, {}),
}

COMPUTE: Final[Mapping[str, Parameter]] = {
    "compute.call": Parameter(
        0.5, "that a host takes for each call besides: reading, queueing, writing", "ms", 0.0
    ),
    "compute.entry_forward": Parameter(0.0, "of the first layer, for a pass", "ms", 0.0),
    "compute.entry_forward_row": Parameter(3.0, "and for each row", "ms", 0.0),
    "compute.entry_step": Parameter(0.0, "a backward call, for a pass", "ms", 0.0),
    "compute.entry_step_row": Parameter(12.5, "and for each row", "ms", 0.0),
    "compute.exit_forward": Parameter(0.0, "of the last layer, for a pass", "ms", 0.0),
    "compute.exit_forward_row": Parameter(3.0, "and for each row", "ms", 0.0),
    "compute.exit_step": Parameter(0.0, "a backward call, for a pass", "ms", 0.0),
    "compute.exit_step_row": Parameter(12.5, "and for each row", "ms", 0.0),
}
