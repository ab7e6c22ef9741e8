import textwrap

import pytest

TOY = """
    import trio
    from simulations import Parameter, Scenario, at_least

    async def run(sim):
        sim.begin("ticking", until=5 * sim.parameters["pause"])
        for number in range(5):
            await trio.sleep(sim.rng.uniform(0, 2 * sim.parameters["pause"]))
            sim.log.record("tick", number=number)
        if sim.seed == sim.parameters["fails"]:
            raise RuntimeError("a bug of this scenario")
        sim.report.figure("drawn", sim.rng.random(), goal=at_least(sim.parameters["least"]))
        sim.report.series("line", [0, 1], [0, sim.seed], x_label="x", y_label="y")

    SCENARIO = Scenario(
        name="toy",
        summary="ticks five times",
        parameters={
            "pause": Parameter(1.0, "between two ticks, on average", "s", 0.0, 100.0),
            "least": Parameter(0.0, "what the figure should reach"),
            "fails": Parameter(-1, "the seed that fails"),
        },
        run=run,
    )
"""


@pytest.fixture
def toy(tmp_path):
    """The path of a scenario that takes no time and needs no nodes."""
    path = tmp_path / "toy.py"
    path.write_text(textwrap.dedent(TOY))
    return str(path)
