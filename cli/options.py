"""Options that several commands share, and the settings they amount to."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from p2pnode.config import KIB, MIB, Settings
from p2pnode.daemon.data_dir import DataDir, default_data_dir

F = TypeVar("F", bound=Callable[..., Any])

_DATA_DIR_HELP: Final = "Where this node keeps its identity and experts.  [~/.local/share/p2pnode]"


_UNITS: Final = {"": 1, "K": KIB, "M": MIB, "G": 1024 * MIB}


class Size(click.ParamType[int]):
    """A number of bytes, such as 1000, 64K, 100M or 2G."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read one."""
        found = re.fullmatch(r"(\d{1,15})([KMG]?)", str(value).upper())
        if found is None:
            self.fail(f"{value!r} is not a size such as 1000, 64K, 100M or 2G", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


class Bandwidth(click.ParamType[dict[str, int]]):
    """Bytes a second, up and down: 1M/4M; either may be left out, and is then not limited."""

    name = "bandwidth"

    def convert(
        self, value: str | dict[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, int]:
        """Return the limits by their settings."""
        if isinstance(value, dict):
            return value
        up, slash, down = value.partition("/")
        if not slash or not (up or down):
            self.fail(f"{value!r} is not UP/DOWN, such as 1M/4M, 1M/ or /4M", param, ctx)
        texts = {"max_upload": up, "max_download": down}
        return {name: Size().convert(text, param, ctx) for name, text in texts.items() if text}


_TIMES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Duration(click.ParamType[float]):
    """A number with a unit: 90m, 12h, 7d."""

    name = "duration"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d{1,9})([smhdw])", value)
        if match is None or match[1].strip("0") == "":
            self.fail(f"{value!r} is not a duration such as 90m, 12h or 7d", param, ctx)
        return int(match[1]) * float(_TIMES[match[2]])


def _to_data_dir(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> DataDir:
    return DataDir(value or default_data_dir())


def data_dir_option(command: F) -> F:
    """Add `--data-dir`, passed on as a `DataDir`."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        callback=_to_data_dir,
        help=_DATA_DIR_HELP,
    )(command)


def data_dir_of(settings: Settings) -> DataDir:
    """Return the data directory that `node_options` or the config file chose."""
    chosen = settings.node.data_dir
    return DataDir(Path(chosen) if chosen else default_data_dir())


def defaulted(
    flag: str, kind: click.ParamType[Any, Any], default: object, help_text: str
) -> Callable[[F], F]:
    """Return an option of one value, whose help tells what it is by default."""
    return click.option(flag, type=kind, default=default, show_default=True, help=help_text)


def json_option(command: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")(command)


# flag, setting, whether it may be repeated, help
_NODE_FLAGS: Final = (
    ("--data-dir", "node.data_dir", "DIR", False, _DATA_DIR_HELP),
    ("--bootstrap", "node.bootstrap", "ADDR", True, "A node to join through: /ip4/…/p2p/…"),
    (
        "--listen",
        "node.listen",
        "MULTIADDR",
        True,
        "Where to listen; /ws behind it for WebSocket.  [/ip4/0.0.0.0/tcp/4001]",
    ),
    ("--announce", "node.announce", "MULTIADDR", True, "Told to others instead of --listen."),
    ("--run", "node.run", "NAME", False, "The training run to take part in."),
    ("--invite", "node.invite", "TOKEN", False, "What the run's owner gave you."),
    ("--experts", "node.experts", "PATTERN", True, "Experts to host: 'digits/ffn.[0:4].[0:4]'."),
    ("--layers", "node.layers", "PATTERN", True, "Blocks of --model to host: 'lm/blocks.[0:6]'."),
    ("--model", "hosting.model", "NAME|DIR", False, "tiny, small, medium, or a model's directory."),
    (
        "--layer",
        "hosting.layer",
        "NAME",
        False,
        "Kind of expert, or a class of yours: module:Class or file.py:Class.  [ffn]",
    ),
    (
        "--max-layers",
        "placement.max_layers",
        "N",
        False,
        "Layers or experts that --auto hosts at once.  [as memory allows]",
    ),
    ("--hidden-dim", "hosting.hidden_dim", "N", False, "Width of the experts.  [64]"),
    (
        "--device",
        "hosting.device",
        "NAMES",
        False,
        "Where to compute: cpu, cuda:0, or cuda:0,cuda:1.  [cpu]",
    ),
    ("--max-cpu", "owner.max_cpu", "SHARE", False, "Of all cores: 50%; or a number of them: 1.5."),
    (
        "--quiet-hours",
        "owner.quiet_hours",
        "SPAN",
        True,
        "When to stand aside, such as 'mon-fri 09:00-17:00', or '22:00-07:00' for every day.",
    ),
    ("--metrics", "metrics.listen", "IP:PORT", False, "Serve Prometheus there: 127.0.0.1:9400."),
)
# flag, setting, help
_SIZE_FLAGS: Final = (
    ("--max-vram", "owner.max_vram", "Memory of a GPU that experts may take, such as 4G."),
    ("--max-memory", "owner.max_memory", "The same of main memory, for experts on the CPU."),
)


def config_options(command: F) -> F:
    """Add `--config` and `--set`; `settings_from` reads them."""
    command = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="SECTION.FIELD=VALUE",
        help="Any other setting, as in the config file. Repeatable.",
    )(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="A TOML file with any of these settings.",
    )(command)


def node_options(command: F) -> F:
    """Add the flags that describe a node; `settings_from` reads them."""
    command = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning"]),
        default="info",
        show_default=True,
        help="Which events the daemon reports.",
    )(command)
    command = config_options(command)
    command = click.option(
        "--mdns",
        "mdns__enabled",
        is_flag=True,
        default=None,
        help="Find nodes on the local network, and be found there.",
    )(command)
    command = click.option(
        "--auto",
        "placement__auto",
        is_flag=True,
        default=None,
        help="Host what the run needs most, of all that its owner, or --layers, says there is.",
    )(command)
    command = click.option(
        "--standby",
        "hosting__standby",
        is_flag=True,
        default=None,
        help="Keep replicas of the experts, and serve them only when no other host does.",
    )(command)
    command = click.option(
        "--yield",
        "owner__yield_to_others",
        is_flag=True,
        default=None,
        help="Stand aside while other programs need the device.",
    )(command)
    command = click.option(
        "--max-bandwidth",
        type=Bandwidth(),
        metavar="UP/DOWN",
        help="Bytes a second to send and to take, such as 1M/4M, 1M/ or /4M.",
    )(command)
    for flag, setting, text in reversed(_SIZE_FLAGS):
        command = click.option(
            flag, setting.replace(".", "__"), type=Size(), metavar="SIZE", help=text
        )(command)
    for flag, setting, metavar, many, text in reversed(_NODE_FLAGS):
        name = setting.replace(".", "__")
        note = " Repeatable." if many else ""
        command = click.option(flag, name, multiple=many, metavar=metavar, help=text + note)(
            command
        )
    return command


def settings_from(
    flags: dict[str, Any], assignments: tuple[str, ...], config_file: Path | None
) -> Settings:
    """Combine defaults, config file, environment and flags.

    Raises:
        ConfigError: one of them does not fit.
        click.UsageError: an assignment has no `=` or no section.
    """
    texts: dict[str, dict[str, str]] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        section, dot, setting = name.partition(".")
        if not (equals and dot):
            raise click.UsageError(f"--set takes SECTION.FIELD=VALUE, not {assignment!r}")
        texts.setdefault(section, {})[setting] = value
    typed: dict[str, dict[str, Any]] = {}
    switches = ("mdns.enabled", "hosting.standby", "owner.yield_to_others", "placement.auto")
    for setting in (*switches, *(each[1] for each in _SIZE_FLAGS)):
        chosen = flags.get(setting.replace(".", "__"))
        section, _, name = setting.partition(".")
        if chosen is not None:
            typed.setdefault(section, {})[name] = chosen
    for name, size in (flags.get("max_bandwidth") or {}).items():
        typed.setdefault("limits", {})[name] = size
    for _, setting, _, many, _ in _NODE_FLAGS:
        chosen = flags.get(setting.replace(".", "__"))
        section, _, name = setting.partition(".")
        if many and chosen:
            typed.setdefault(section, {})[name] = list(chosen)
        elif not many and chosen is not None:
            texts.setdefault(section, {})[name] = chosen
    return Settings.load(file=config_file, texts=texts, overrides=typed)
