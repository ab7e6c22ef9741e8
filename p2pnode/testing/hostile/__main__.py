"""`python -m p2pnode.testing.hostile`: what attacks cost a well-behaved peer, as lines of JSON."""

import argparse

import trio

from p2pnode.testing.hostile.benchmark import (
    ATTACKS,
    figures,
    measure,
    run_attackers,
    run_victim,
)


async def _measure(names: list[str], seconds: float) -> None:
    async for line in measure(names, seconds):
        print(figures(line), flush=True)


async def _attack(name: str, address: str, seconds: float) -> None:
    print("began", flush=True)
    print(await run_attackers(name, address, seconds), flush=True)


def main() -> None:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(prog="python -m p2pnode.testing.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--only", action="append", choices=ATTACKS, help="measure these attacks")
    roles = parser.add_subparsers(dest="role", help="the parts, which the benchmark starts itself")
    roles.add_parser("victim")
    attack = roles.add_parser("attack")
    attack.add_argument("name", choices=ATTACKS)
    attack.add_argument("address")
    attack.add_argument("duration", type=float)
    options = parser.parse_args()
    if options.role == "victim":
        trio.run(run_victim)
    elif options.role == "attack":
        trio.run(_attack, options.name, options.address, options.duration)
    else:
        trio.run(_measure, options.only or list(ATTACKS), options.seconds)


if __name__ == "__main__":
    main()
