"""Parameters that scenarios share, and what they mean: the network, who leaves it, who lies.

A scenario takes a group whole, with defaults of its own where it wants:

    parameters={"nodes": Parameter(200, "how many nodes"), **adapt(NETWORK, {"network.loss": 5.0})}
"""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from p2pnode.testing.network import (
    GRADES,
    IDEAL,
    REGIONS,
    Exponential,
    Fixed,
    Latency,
    Nat,
    RegionMatrix,
    VirtualNetwork,
)
from simulations.liars import KINDS as LIES
from simulations.parameters import Parameter
from simulations.sessions import KINDS, Sessions

GRAIN: Final = 1 / 64  # of a way's time, by which an arrival may be late: below what ways vary by
_MIXED: Final = {"fibre": 45, "dsl": 45, "mobile": 10}  # volunteers' links, in per cent

NETWORK: Final[Mapping[str, Parameter]] = {
    "network.latency": Parameter(
        "regions",
        "what lies between two machines: six regions of the world, or one delay for all",
        choices=("regions", "fixed", "exponential"),
    ),
    "network.delay": Parameter(
        0.05, "one way, where the latency is fixed; its mean where exponential", "s", 0.0, 60.0
    ),
    "network.grade": Parameter(
        "ideal",
        "each machine's own link; `mixed` are 45 % fibre, 45 % dsl and 10 % mobile",
        choices=("ideal", "mixed", *GRADES),
    ),
    "network.loss": Parameter(
        0.0, "packets lost on each way, on top of what the links lose", "%", 0.0, 99.0
    ),
    "network.resets": Parameter(
        0.0, "losses that break the connection; the others delay what was lost", "%", 0.0, 100.0
    ),
    "network.nats": Parameter(
        0.0, "nodes behind a NAT, each its own, whom nobody can dial first", "%", 0.0, 100.0
    ),
    "network.nat": Parameter(
        Nat.SYMMETRIC.value,
        "what kind of NAT that is",
        choices=tuple(each.value for each in Nat if each is not Nat.NONE),
    ),
    "stragglers.share": Parameter(0.0, "nodes on slow machines", "%", 0.0, 100.0),
    "stragglers.delay": Parameter(
        1.0, "what a slow machine adds to everything it sends and gets", "s", 0.0, 60.0
    ),
}

CHURN: Final[Mapping[str, Parameter]] = {
    "churn.median": Parameter(
        1800.0, "half of the sessions are shorter; 0 when nobody leaves", "s", 0.0
    ),
    "churn.mean": Parameter(
        0.0, "their mean, which counts in place of the median unless it is 0", "s", 0.0
    ),
    "churn.sessions": Parameter("exponential", "how session lengths are spread", choices=KINDS),
    "churn.shape": Parameter(
        0.5, "Weibull's k, or the lognormal's sigma", minimum=0.1, maximum=10.0
    ),
    "churn.crash": Parameter(
        100.0, "sessions that end by a crash; the others say goodbye", "%", 0.0, 100.0
    ),
    "churn.return": Parameter(
        0.0, "nodes that come back as the same peer; new ones replace the others", "%", 0.0, 100.0
    ),
    "churn.downtime": Parameter(
        300.0, "until a node comes back, on average (exponential)", "s", 0.0
    ),
}


LIARS: Final[Mapping[str, Parameter]] = {
    "liars.share": Parameter(0.0, "nodes that lie to whoever asks them", "%", 0.0, 100.0),
    "liars.kind": Parameter("mixed", "how they lie", choices=("mixed", *LIES)),
}


def adapt(group: Mapping[str, Parameter], defaults: Mapping[str, Any]) -> dict[str, Parameter]:
    """Return a group of parameters with some defaults changed.

    Raises:
        KeyError: the group has no such parameter.
        ParameterError: a default does not fit.
    """
    changed = {name: group[name].check(name, value) for name, value in defaults.items()}
    return {
        name: replace(parameter, default=changed.get(name, parameter.default))
        for name, parameter in group.items()
    }


def make_network(parameters: Mapping[str, Any], rng: random.Random) -> VirtualNetwork:
    """Return the empty network that the `network.` parameters describe; an ideal one without."""
    kind = parameters.get("network.latency", "fixed")
    delay = parameters.get("network.delay", 0.0)
    latency: Latency = RegionMatrix()
    if kind != "regions":
        latency = Exponential(delay) if kind == "exponential" else Fixed(delay)
    return VirtualNetwork(
        rng,
        latency=latency,
        loss=parameters.get("network.loss", 0.0) / 100,
        loss_resets=parameters.get("network.resets", 0.0) / 100,
        grain=GRAIN,
    )


def draw_machine(parameters: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """Draw what `VirtualNetwork.add_machine` takes: a grade, a region and a NAT.

    The same chance is drawn whatever the parameters are, so that changing one of them leaves the
    rest of a machine as it was.
    """
    region, kind = rng.choice(REGIONS), rng.choices([*_MIXED], [*_MIXED.values()])[0]
    is_slow, is_hidden = rng.random() * 100, rng.random() * 100
    chosen = parameters.get("network.grade", "ideal")
    grade = IDEAL if chosen == "ideal" else GRADES[kind if chosen == "mixed" else chosen]
    if is_slow < parameters.get("stragglers.share", 0.0):
        grade = replace(grade, delay=grade.delay + parameters["stragglers.delay"])
    hidden = is_hidden < parameters.get("network.nats", 0.0)
    return {
        "grade": grade,
        "region": region,
        "nat": Nat(parameters["network.nat"]) if hidden else Nat.NONE,
    }


def sessions_of(parameters: Mapping[str, Any]) -> Sessions | None:
    """Return the distribution that the `churn.` parameters describe; None when nobody leaves."""
    kind, shape = parameters["churn.sessions"], parameters["churn.shape"]
    if parameters["churn.mean"] > 0:
        return Sessions.with_mean(kind, parameters["churn.mean"], shape)
    if parameters["churn.median"] > 0:
        return Sessions.with_median(kind, parameters["churn.median"], shape)
    return None
