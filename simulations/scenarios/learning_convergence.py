"""Accuracy against steps, for delays and failures: mixtures of experts beside a dense network.

The defaults are a small version of the published setting, which has `features` 512, `blocks` 4,
`experts` 16, 64 or 1,024, `steps` 20,480 and all of MNIST.
"""

from simulations import Parameter, Scenario, Simulation


async def run(sim: Simulation) -> None:
    """Train every combination, one after the other."""
    # Torch takes a second to import, and the list of scenarios should not have to wait for it.
    from simulations.learning.convergence import compare  # noqa: PLC0415  # see above

    await compare(sim)


SCENARIO = Scenario(
    name="learning-convergence",
    summary="Learning@home's emulation: accuracy against delay and failures (about a minute)",
    parameters={
        "data": Parameter("digits", "what is learnt", choices=("digits", "mnist")),
        "variant": Parameter(
            "both",
            "as-published: failed experts are replaced, the gate is frozen; trained-gate: dropped",
            choices=("both", "as-published", "trained-gate"),
        ),
        "delays": Parameter(
            (0.0, 100.0, 1000.0), "mean delays of a gradient, exponential", "ms", 0.0, 1e6
        ),
        "trainers": Parameter(
            (1, 16, 64), "how many train at once, for each delay", minimum=1, maximum=4096
        ),
        "failures": Parameter(
            (0.0, 0.1, 0.3), "how probable it is that an expert fails for a sample", "", 0.0, 1.0
        ),
        "steps": Parameter(600, "of the trunk, all trainers together", minimum=1),
        "evaluations": Parameter(20, "on the held-out images, while training", minimum=1),
        "batch": Parameter(4, "images of a step", minimum=1),
        "features": Parameter(16, "of an expert; a dense network has twice as many", minimum=1),
        "blocks": Parameter(2, "one after the other", minimum=1),
        "experts": Parameter(16, "of each block", minimum=1),
        "k_best": Parameter(4, "experts that a sample is sent to", minimum=1),
        "learning_rate": Parameter(1e-3, "of Adam (AMSGrad)", "", 0.0),
        "update_steps": Parameter(
            10, "steps after which an expert steps, at the latest", minimum=1
        ),
        "compute": Parameter(1.0, "that a batch keeps the model busy, modelled", "ms", 0.0),
    },
    run=run,
    fidelities=("light",),
)
