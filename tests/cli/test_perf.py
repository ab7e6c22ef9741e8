"""What `p2pnode perf` takes on its command line."""

import pytest
from click.testing import CliRunner

from cli.main import cli
from cli.options import Size
from p2pnode.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1000", 1000), ("64K", 65_536), ("100m", 104_857_600), ("2G", 2_147_483_648)],
)
def test_sizes_are_read_in_powers_of_1024(text, size):
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5M", "1MB", "1T", "1" * 16])
def test_what_is_no_size_is_a_usage_error(text):
    result = CliRunner().invoke(cli, ["perf", "/ip4/127.0.0.1/tcp/1", f"--upload={text}"])
    assert result.exit_code == 2
    assert "is not a size such as" in result.output


def test_the_settings_of_the_network_count(tmp_path):
    missing = tmp_path / "missing.pem"
    address = "/ip4/127.0.0.1/tcp/1/wss/p2p/12D3KooWPryHBhiK65dojSdtaZNt3V25kfPPosvZTZQmyJsN6j81"
    options = ["perf", address, "--set", f"network.tls_authorities={missing}"]
    result = CliRunner().invoke(cli, options)
    assert isinstance(result.exception, ConfigError)
    assert "missing.pem" in str(result.exception)
