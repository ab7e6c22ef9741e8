"""Flags that are more than a text: what settings they amount to."""

import click
import pytest
from click.testing import CliRunner

from cli.options import node_options, settings_from
from p2pnode.config import MIB


@pytest.fixture
def settings_of():
    """Return what a command with these flags would run with."""

    def settings_of(*flags):
        found = []

        @click.command()
        @node_options
        def command(*, assignments, config_file, log_level, **flags):
            found.append(settings_from(flags, assignments, config_file))

        done = CliRunner().invoke(command, flags, standalone_mode=True)
        assert done.exit_code == 0, done.output
        return found[0]

    return settings_of


def test_without_flags_nothing_is_limited(settings_of):
    settings = settings_of()
    assert (settings.limits.max_upload, settings.limits.max_download) == (0, 0)
    assert (settings.owner.max_vram, settings.owner.max_memory) == (0, 0)
    assert settings.owner.max_cpu == ""
    assert not settings.owner.yield_to_others
    assert settings.metrics.listen == ""


@pytest.mark.parametrize(
    ("text", "up", "down"),
    [("1M/4M", MIB, 4 * MIB), ("500K/", 500 * 1024, 0), ("/100", 0, 100)],
)
def test_bandwidth_is_limited_each_way_or_one_way(settings_of, text, up, down):
    limits = settings_of("--max-bandwidth", text).limits
    assert (limits.max_upload, limits.max_download) == (up, down)


@pytest.mark.parametrize("text", ["", "/", "1M", "1M/4M/5M", "fast/slow", "-1/2"])
def test_what_is_no_bandwidth_is_refused(text):
    command = node_options(click.Command("command", callback=lambda **_: None))
    done = CliRunner().invoke(command, ["--max-bandwidth", text])
    assert done.exit_code == 2


def test_an_owners_flags_are_settings(settings_of):
    settings = settings_of(
        "--max-vram", "4G", "--max-memory", "500M", "--max-cpu", "50%", "--yield",
        "--quiet-hours", "mon-fri 09:00-17:00", "--quiet-hours", "22:00-07:00",
        "--metrics", "127.0.0.1:9400",
    )  # fmt: skip
    assert settings.owner.max_vram == 4096 * MIB
    assert settings.owner.max_memory == 500 * MIB
    assert settings.owner.max_cpu == "50%"
    assert settings.owner.yield_to_others
    assert settings.owner.quiet_hours == ("mon-fri 09:00-17:00", "22:00-07:00")
    assert settings.metrics.listen == "127.0.0.1:9400"
