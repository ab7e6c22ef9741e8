"""The `p2pnode` command.

Each command lives in a module of its own and is imported only when it is run, so that `--help`
answers at once.
"""

import importlib
import sys
from typing import Final

import click

from cli.output import print_event, report_error
from p2pnode import __version__
from p2pnode.errors import P2PNodeError, first_leaf

EXIT_FAILURE: Final = 1
EXIT_INTERRUPTED: Final = 130

# name: (where the command is, its line in the help)
COMMANDS: Final = {
    "demo": ("cli.demo.command:demo", "Train on four local daemons, kill one, bring it back."),
    "train-lm": ("cli.train_lm.command:train_lm", "Train a language model through others' blocks."),
    "train-layerwise": (
        "cli.train_layerwise.command:train_layerwise",
        "Train a network whose layers have a swarm each.",
    ),
    "join": ("cli.commands.join:join", "Start this node's daemon and join the network."),
    "relay": ("cli.commands.relay:relay", "Run a relay, for nodes that others cannot dial."),
    "host": ("cli.commands.host:host", "Host experts, in the running daemon or a new one."),
    "run": ("cli.commands.run:run", "Create a training run, invite others, read invites."),
    "id": ("cli.commands.inspect:show_id", "Show this node's peer id."),
    "status": ("cli.commands.inspect:status", "Show what the running daemon is doing."),
    "peers": ("cli.commands.inspect:peers", "List the peers the daemon is connected to."),
    "experts": ("cli.commands.inspect:experts", "List hosted experts, or find who hosts some."),
    "swarm": ("cli.commands.swarm:swarm", "Show who shares a layer, and how good its weights are."),
    "dht": ("cli.commands.dht:dht", "Ask the DHT: its peers, and what lies under a key."),
    "ping": ("cli.commands.inspect:ping", "Measure the round trip to a peer."),
    "perf": ("cli.commands.perf:perf", "Measure how fast data goes to a peer, and comes back."),
    "bench": ("cli.commands.bench:bench", "Measure this machine and this software."),
    "simulate": ("cli.commands.simulate:simulate", "Run many nodes on a virtual network."),
    "pause": ("cli.commands.owner:pause", "Let the daemon stand aside for a while."),
    "resume": ("cli.commands.owner:resume", "Let a paused daemon take calls again."),
    "doctor": ("cli.commands.doctor:doctor", "Explain what is wrong, if anything, and what to do."),
    "stop": ("cli.commands.inspect:stop", "Stop the running daemon, saving its experts."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="p2pnode")
def cli() -> None:
    """Deep-learning training on volunteers' machines, peer to peer.

    Start with `p2pnode demo`. To take part in a run: `p2pnode join --help`.
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit; every expected error is one sentence."""
    args = sys.argv[1:] if args is None else args
    try:
        code = cli.main(args, prog_name="p2pnode", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(0)
    except click.ClickException as error:
        if "--json" in args:
            print_event("error", error=type(error).__name__, message=error.format_message())
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except P2PNodeError as error:
        report_error(error, as_json="--json" in args)
        sys.exit(EXIT_FAILURE)
    except BaseExceptionGroup as group:
        expected, others = group.split((P2PNodeError, KeyboardInterrupt))
        if expected is None or others is not None:
            raise
        leaf = first_leaf(expected)
        if isinstance(leaf, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        report_error(leaf, as_json="--json" in args)
        sys.exit(EXIT_FAILURE)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
