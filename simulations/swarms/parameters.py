"""What can be changed in the scenarios of swarms that train in rounds."""

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
