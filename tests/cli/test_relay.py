"""What `p2pnode relay` makes of its command line."""

import pytest
from click.testing import CliRunner

import cli.daemon
from cli.main import cli as command
from p2pnode.config import KIB, MIB
from p2pnode.errors import ConfigError


@pytest.fixture
def started(monkeypatch):
    """Collect the settings of daemons instead of running them."""
    found = []
    monkeypatch.setattr(
        cli.daemon, "run_daemon", lambda _data_dir, settings, **_: found.append(settings)
    )
    return found


def run(*arguments):
    return CliRunner().invoke(command, ["relay", *arguments], catch_exceptions=False)


def test_a_relay_relays_whatever_its_reachability_and_is_no_client(started):
    assert run().exit_code == 0
    (settings,) = started
    assert (settings.relay.server, settings.relay.client) == ("always", "never")
    assert settings.relay.is_limited
    assert settings.relay.circuit_bytes == 128 * KIB
    assert settings.relay.max_rate == 0


def test_an_unlimited_relay_carries_the_main_job_at_the_rate_its_owner_allows(started):
    run("--unlimited", "--max-rate", "10M", "--listen", "/ip4/0.0.0.0/tcp/7")
    (settings,) = started
    assert not settings.relay.is_limited
    assert settings.relay.max_rate == 10 * MIB
    assert settings.node.listen == ("/ip4/0.0.0.0/tcp/7",)


def test_other_limits_are_settings_like_any_other(started):
    run("--set", "relay.max_reservations=7")
    assert started[0].relay.max_reservations == 7
    with pytest.raises(ConfigError, match="max_reservations must be more than 0"):
        run("--set", "relay.max_reservations=0")
